"""A network that is broken already is refused before anything is written, by the names of what is broken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import paddle
from paddle.nn import Layer

from paddlelite_callbacks.deploy.export import ExportError
from paddlelite_callbacks.deploy.forms import Reference

__all__ = ["refuse_not_finite"]

_NAMED = 4


def refuse_not_finite(network: Layer, sample: Sequence[np.ndarray], expected: Mapping[str, Reference]) -> None:
    """Raise where the network's weights, its inputs or what it gives for them are NaN or infinite.

    Batch-norm statistics count as weights: a ReLU turns the NaN that they cause into 0 in Paddle, and into NaN
    elsewhere. Infinite buffers (masks) are no fault.

    Args:
        network: to be exported.
        sample: real inputs, one array each.
        expected: of `references`.

    Raises:
        ExportError: names weights, inputs or outputs, and says what to do.
    """
    name = type(network).__name__
    broken = _broken(network)
    if broken:
        more = f" and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
        raise ExportError(
            f"{name} is not exported, its weights are NaN or infinite: {'; '.join(broken[:_NAMED])}{more}. Go back to "
            "a checkpoint from before, and lower the learning rate or clip gradients "
            "(grad_clip=paddle.nn.ClipGradByGlobalNorm(1.0)). An older export stays as it was."
        )
    bad = [i for i, array in enumerate(sample) if array.dtype.kind == "f" and not np.isfinite(array).all()]
    if bad:
        raise ExportError(
            f"{name} is not exported: input {bad[0]} of the first training batch, on which the files are checked, "
            "holds NaN or infinite values. Clean the data."
        )
    for reference in expected.values():
        bad = [i for i, output in enumerate(reference.outputs) if not np.isfinite(output).all()]
        if bad:
            raise ExportError(
                f"{name} is not exported: its weights and inputs are finite, but its output {bad[0]} is NaN or "
                "infinite. Look for an overflow, a division or a logarithm in forward()."
            )


def _broken(network: Layer) -> list[str]:
    parameters = {id(parameter) for parameter in network.parameters()}
    found = []
    for key, tensor in network.state_dict().items():
        if not tensor.is_floating_point():
            continue
        values = tensor.astype("float32")
        wrong = paddle.logical_not(paddle.isfinite(values)) if id(tensor) in parameters else paddle.isnan(values)
        count = int(wrong.astype("int64").sum())
        if count:
            found.append(f"{key} ({count} of {int(np.prod(tensor.shape))} values)")
    return found
