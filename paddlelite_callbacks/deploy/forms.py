"""All the files that one trained network is handed out as, and what each has to compute."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import Tensor
from paddle.nn import Layer
from paddle.static import InputSpec

from paddlelite_callbacks.deploy.export import Artefact, ExportError, copy_network, export_onnx, export_paddle
from paddlelite_callbacks.deploy.int8 import write_int8_onnx
from paddlelite_callbacks.quant.convert import convert_for_export_
from paddlelite_callbacks.quant.noise import rounding_noise
from paddlelite_callbacks.quant.outputs import quantized_outputs
from paddlelite_callbacks.quant.prepare import quantized_layers
from paddlelite_callbacks.quant.switch import strip_quantisers_

__all__ = ["Forms", "Reference", "export_forms", "references"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reference:
    """What a file has to compute.

    Args:
        outputs: of the live network.
        noise: per output, how far it moves by rounding alone; empty for a float network.
    """

    outputs: list[np.ndarray]
    noise: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Forms:
    """Exported files, and why others are missing.

    Args:
        artefacts: what was written.
        errors: reason by kind and precision.
    """

    artefacts: list[Artefact]
    errors: dict[tuple[str, str], str]


def export_forms(network: Layer, folder: Path, *, input_spec: Sequence[InputSpec], onnx: bool = True) -> Forms:
    """Write every form of ``network`` into ``folder``.

    A float network: Paddle's program, and ``model.onnx``. A quantised one: Paddle's program with int8 weights (small;
    it computes in float), ``model.int8.onnx`` (computes in int8, see `write_int8_onnx`), and ``model.onnx``, the
    trained network with its quantisers off, which an int8 file has to beat.

    Args:
        network: any mode; not changed.
        folder: exists.
        input_spec: one per input.
        onnx: whether to write the ONNX files.

    Raises:
        ExportError: Paddle's program cannot be written; a failing ONNX file is an entry of ``errors``.
        ValueError: a quantised layer has seen no batch.
    """
    work = folder / ".work"
    forms = Forms([], {})
    quantized = bool(quantized_layers(network))
    main = copy_network(network)
    if quantized:
        convert_for_export_(main)
    program = export_paddle(main, folder, input_spec=input_spec, precision="int8" if quantized else "fp32")
    forms.artefacts.append(program)
    if not onnx:
        return forms
    try:
        if quantized:
            plain = strip_quantisers_(copy_network(network))
            _attempt(
                forms,
                "fp32",
                lambda: export_onnx(export_paddle(plain, work, input_spec=input_spec), folder / "model.onnx"),
            )
            _attempt(forms, "int8", lambda: _int8(program, work, folder / "model.int8.onnx"))
        else:
            _attempt(forms, "fp32", lambda: export_onnx(program, folder / "model.onnx"))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return forms


def references(network: Layer, sample: Sequence[np.ndarray]) -> dict[str, Reference]:
    """Return what the files of each precision have to compute for ``sample``.

    Args:
        network: in eval mode; not changed.
        sample: one array per input.
    """
    inputs = [paddle.to_tensor(item) for item in sample]

    def outputs_of(net: Layer) -> list[Tensor]:
        with paddle.no_grad():
            return _flat(net(*inputs))

    layers = quantized_layers(network)
    if not layers:
        return {"fp32": Reference([item.numpy() for item in outputs_of(network)])}
    plain = strip_quantisers_(copy_network(network))
    moved = {id(layer): layer for layer in (*layers.values(), *quantized_outputs(network).values())}
    noise = rounding_noise(moved.values(), lambda: outputs_of(network))
    return {
        "fp32": Reference([item.numpy() for item in outputs_of(plain)]),
        "int8": Reference([item.numpy() for item in outputs_of(network)], noise),
    }


def _int8(program: Artefact, work: Path, path: Path) -> Artefact:
    work.mkdir(exist_ok=True)
    return write_int8_onnx(export_onnx(program, work / "float.onnx"), path)


def _attempt(forms: Forms, precision: str, make: Callable[[], Artefact]) -> None:
    try:
        forms.artefacts.append(make())
    except (ExportError, ImportError) as error:
        _log.warning("No %s ONNX file: %s", precision, error)
        forms.errors["onnx", precision] = str(error)


def _flat(output: Any) -> list[Tensor]:
    """Flatten as ``paddle.jit.save`` does: dictionaries in the order of their keys, sorted."""
    if isinstance(output, dict):
        output = [output[key] for key in sorted(output)]
    if isinstance(output, (list, tuple)):
        return [item for part in output for item in _flat(part)]
    return [output]
