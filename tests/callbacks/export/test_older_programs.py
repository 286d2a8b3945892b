"""``FLAGS_enable_pir_api=0`` is refused before training, with its name and the remedy."""

from __future__ import annotations

import os
import subprocess
import sys

from places import HELPERS

CODE = """
import sys
sys.path.insert(0, {tests!r})
import paddle
from toy import TinyNet, equal_weights, fit, hapi_model, weights_of
from paddlelite_callbacks import ExportBenchCallback

model = hapi_model()
before = weights_of(model.network)
try:
    fit(model, [ExportBenchCallback({folder!r}, engines=["paddle"])])
except Exception as error:
    print("REFUSED", type(error).__name__, error, equal_weights(before, weights_of(model.network)))
"""


def test_it_is_refused_at_train_begin(tmp_path):
    code = CODE.format(tests=str(HELPERS), folder=str(tmp_path))
    environment = {**os.environ, "FLAGS_enable_pir_api": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    (said,) = [line for line in done.stdout.splitlines() if line.startswith("REFUSED")]
    assert "ExportError FLAGS_enable_pir_api=0" in said
    assert "run without this variable" in said
    assert said.endswith("True")  # no weight has moved
