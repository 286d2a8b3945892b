"""Export the int8 file of a quantised network, and let it answer for the network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle.nn import Layer
from paddle.static import InputSpec

from paddlelite_callbacks.benchmark.engines import Predict
from paddlelite_callbacks.export.artefact import Artefact

__all__ = ["answered_by", "int8_file"]


def int8_file(network: Layer, batch: list[paddle.Tensor], folder: Path) -> tuple[Artefact | None, str | None]:
    """Export a quantised network; return its int8 ONNX file, or why there is none.

    Args:
        network: Quantised network; not changed.
        batch: Inputs.
        folder: Folder for the files.
    """
    from paddlelite_callbacks.export.variants import export_forms

    specs = [
        InputSpec([None, *item.shape[1:]], dtype=str(item.dtype).rpartition(".")[2], name=f"x{i}")
        for i, item in enumerate(batch)
    ]
    forms = export_forms(network, folder, input_spec=specs)
    files = [item for item in forms.artefacts if item.kind == "onnx" and item.precision == "int8"]
    return (files[0], None) if files else (None, str(forms.errors.get(("onnx", "int8"))))


@contextmanager
def answered_by(network: Layer, predict: Predict) -> Iterator[None]:
    """Let a file answer for ``network`` inside the block.

    Args:
        network: Network whose ``forward`` is replaced.
        predict: Function of the file.
    """

    def forward(*inputs: paddle.Tensor) -> Any:
        results = [paddle.to_tensor(np.asarray(item)) for item in predict([x.numpy() for x in inputs])]
        return results if len(results) > 1 else results[0]

    network.forward = forward
    try:
        yield
    finally:
        del network.forward
