"""Run programs of Paddle in a process of its own, of this Paddle or another: ``paddle_child.py FOLDER...``.

Each folder holds ``inputs.npz`` (``x0``, ``x1``, ...); what ``model.pdmodel`` + ``model.pdiparams`` in it give is
written to ``outputs.npz`` there, an error to ``error.txt``. Needs Paddle and NumPy alone. ``PROGRAM_END=.json`` runs
Paddle 3's program instead, ``PASSES=0`` the operators as they are written.
"""

import os
import sys
from pathlib import Path

import numpy as np


def run(folder, name):
    import paddle.inference as inference

    config = inference.Config(
        *[str(folder / (name + end)) for end in (os.environ.get("PROGRAM_END", ".pdmodel"), ".pdiparams")]
    )
    config.disable_glog_info()
    config.disable_gpu()
    if os.environ.get("ONEDNN") == "1":
        config.enable_mkldnn()
    elif hasattr(config, "disable_mkldnn"):
        config.disable_mkldnn()
    config.switch_ir_optim(os.environ.get("PASSES") != "0")
    config.set_cpu_math_library_num_threads(1)
    predictor = inference.create_predictor(config)
    inputs = np.load(folder / "inputs.npz")
    for number, key in enumerate(predictor.get_input_names()):
        predictor.get_input_handle(key).copy_from_cpu(inputs[f"x{number}"])
    predictor.run()
    return [predictor.get_output_handle(key).copy_to_cpu() for key in predictor.get_output_names()]


def main(folders):
    name = os.environ.get("PROGRAM_NAME", "model")
    for folder in map(Path, folders):
        (folder / "outputs.npz").unlink(missing_ok=True)
        (folder / "error.txt").write_text("the process died")
        try:
            outputs = run(folder, name)
        except Exception as error:
            (folder / "error.txt").write_text(str(error)[-1500:])
            continue
        np.savez(folder / "outputs.npz", **{f"y{i}": value for i, value in enumerate(outputs)})
        (folder / "error.txt").unlink()


if __name__ == "__main__":
    main(sys.argv[1:])
