"""Run by the Python that has Paddle Lite, which need not have this package: ``opt``, ``run`` or ``version``.

    lite_worker.py opt MODEL PARAMETERS TARGET OUT
    lite_worker.py run FILE.nb INPUTS.npz OUTPUTS.npz
    lite_worker.py version

Needs ``paddlelite`` and NumPy alone, from Python 3.7 on.
"""

from __future__ import annotations

import sys


def opt(model: str, parameters: str, target: str, out: str) -> None:
    """Write ``OUT.nb``."""
    from paddlelite.lite import Opt

    tool = Opt()
    tool.set_model_file(model)
    tool.set_param_file(parameters)
    tool.set_valid_places(target)
    tool.set_optimize_out(out)
    tool.run()


def run(file: str, inputs: str, outputs: str) -> None:
    """Run an x86 ``.nb`` on ``x0``, ``x1``, ... of ``inputs``; what it gives is ``y0``, ``y1``, ... in ``outputs``."""
    import numpy as np
    from paddlelite.lite import MobileConfig, create_paddle_predictor

    config = MobileConfig()
    config.set_model_from_file(file)
    predictor = create_paddle_predictor(config)
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
    """Say which version is installed."""
    try:
        from importlib import metadata
    except ImportError:  # Python 3.7
        import pkg_resources

        sys.stdout.write(pkg_resources.get_distribution("paddlelite").version)
        return
    import paddlelite.lite  # noqa: F401  (it must load, too)

    sys.stdout.write(metadata.version("paddlelite"))


if __name__ == "__main__":
    {"opt": opt, "run": run, "version": version}[sys.argv[1]](*sys.argv[2:])
