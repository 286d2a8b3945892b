"""Run Paddle Lite: ``opt``, ``run`` or ``version``.

Started with a Python that has Paddle Lite; this package need not be installed there.

    lite_worker.py opt MODEL PARAMETERS TARGET OUT
    lite_worker.py run FILE.nb INPUTS.npz OUTPUTS.npz
    lite_worker.py version

Needs only ``paddlelite`` and NumPy; Python 3.7 or later.
"""

from __future__ import annotations

import importlib
import sys


def opt(model: str, parameters: str, target: str, out: str) -> None:
    """Convert a ``.pdmodel`` to ``OUT.nb``."""
    tool = importlib.import_module("paddlelite.lite").Opt()
    tool.set_model_file(model)
    tool.set_param_file(parameters)
    tool.set_valid_places(target)
    tool.set_optimize_out(out)
    tool.run()


def run(file: str, inputs: str, outputs: str) -> None:
    """Run an x86 ``.nb`` file on the arrays of an ``.npz`` file.

    The inputs are ``x0``, ``x1``, ... in ``inputs``; the outputs are written as ``y0``, ``y1``, ... to ``outputs``.
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
    """Print the version of Paddle Lite; raises if it cannot be loaded."""
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
