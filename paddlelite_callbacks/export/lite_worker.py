"""Run Paddle Lite: ``opt``, ``run`` or ``version``.

For a Python with Paddle Lite, which need not have this package.

    lite_worker.py opt MODEL PARAMETERS TARGET OUT
    lite_worker.py run FILE.nb INPUTS.npz OUTPUTS.npz
    lite_worker.py version

Needs ``paddlelite`` and NumPy alone, from Python 3.7 on.
"""

from __future__ import annotations

import importlib
import sys


def opt(model: str, parameters: str, target: str, out: str) -> None:
    """Write ``OUT.nb``."""
    tool = importlib.import_module("paddlelite.lite").Opt()
    tool.set_model_file(model)
    tool.set_param_file(parameters)
    tool.set_valid_places(target)
    tool.set_optimize_out(out)
    tool.run()


def run(file: str, inputs: str, outputs: str) -> None:
    """Run an x86 ``.nb`` on ``x0``, ``x1``, ... of ``inputs``.

    Its outputs are ``y0``, ``y1``, ... in ``outputs``.
    """
    import numpy as np

    lite = importlib.import_module("paddlelite.lite")
    config = lite.MobileConfig()
    config.set_model_from_file(file)
    predictor = lite.create_paddle_predictor(config)
    given = np.load(inputs)
    for number in range(len(given.files)):
        value = given["x%d" % number]  # noqa: UP031
        tensor = predictor.get_input(number)
        tensor.resize(list(value.shape))
        tensor.from_numpy(value)
    predictor.run()
    found = [predictor.get_output(i).numpy() for i in range(len(predictor.get_output_names()))]
    np.savez(outputs, **{"y%d" % i: value for i, value in enumerate(found)})  # noqa: UP031


def version() -> None:
    """Say which version is installed, if it loads."""
    importlib.import_module("paddlelite.lite")
    try:
        from importlib import metadata
    except ImportError:  # Python 3.7
        sys.stdout.write(importlib.import_module("pkg_resources").get_distribution("paddlelite").version)
    else:
        sys.stdout.write(metadata.version("paddlelite"))


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "opt":
        opt(*arguments)
    elif command == "run":
        run(*arguments)
    else:
        version()
