"""What a call of the others leaves behind, without us. ``python -m pytest tests/benchmarks/bench_alone.py -s``.

``bench_soak.py`` says what a fit with our callbacks leaves; this says what of it is whose. Each row is 120 calls, the
slope of a line through the second half. Paddle's call stacks are left out (see
`workarounds/tracing.py`), they hide the rest.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from growth import CALLS, Alone

from paddlelite_callbacks.workarounds.tracing import without_call_stacks


def test_alone(tmp_path, report):
    alone, rows = Alone(tmp_path), {}
    for name, call in alone.calls().items():
        with without_call_stacks():
            rows[name] = alone.growth(call)
    report("alone", {"calls": CALLS, "a call": rows})
