"""A file that computes something else than the network is not handed out; the refusal says what to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.deploy.check import Check
from paddlelite_callbacks.deploy.export import ExportError, flat_outputs
from paddlelite_callbacks.quant.noise import rounding_noise

__all__ = ["own_movement", "refuse_wrong"]


def refuse_wrong(network: Layer, sample: Sequence[np.ndarray], checks: Iterable[Check]) -> None:
    """Raise where an engine's outputs are not the network's, whichever engine it is.

    A network whose own output changes with the last bits of its input (a deep one whose batch norms hold no statistics
    yet) has no output that engines could agree on: the message says so where it is the case.

    Args:
        network: in eval mode; not changed.
        sample: inputs of the checks, one array each.
        checks: of all engines and files.

    Raises:
        ExportError: a check has not passed.
    """
    checks = list(checks)
    wrong = [check for check in checks if not check.passed]
    if not wrong:
        return
    said = "; ".join(
        f"{c.engine}/{c.precision}: {c.error or f'{c.max_abs_diff:.3g} > {c.tolerance:.3g}'}" for c in wrong
    )
    text = f"The export of {type(network).__name__} computes something else than the network: {said}."
    moved = own_movement(network, sample)
    allowed = min((check.tolerance for check in wrong if check.tolerance is not None), default=np.inf)
    if moved > allowed:
        text += (
            f" Its own output moves by {moved:.3g} when its input moves by one part in a million, so no two engines "
            "can agree: are its batch-norm statistics settled? Train it, or run some batches in train mode, first."
        )
    elif {check.engine for check in wrong} == {"paddle-onednn"} and len(wrong) < len(checks):
        text += (
            " The other engines agree, so the program is right and Paddle's default kernels are not. Deploy it with "
            "another engine, and leave this one out: engines=['paddle', 'onnxruntime', 'openvino']."
        )
    raise ExportError(text)


def own_movement(network: Layer, sample: Sequence[np.ndarray]) -> float:
    """Return the largest change of any output when the network's first input moves in the last bits of fp32.

    Args:
        network: in eval mode; not changed.
        sample: its inputs, one array each.
    """
    inputs = [paddle.to_tensor(item) for item in sample]

    def outputs() -> list[Tensor]:
        return flat_outputs(network(*inputs))

    return max(rounding_noise([network], outputs), default=0.0)
