"""All the files that one trained network is handed out as, and what each has to compute."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import paddle
from paddle import Tensor
from paddle.nn import Layer
from paddle.static import InputSpec

from paddlelite_callbacks.deploy.engines import reason
from paddlelite_callbacks.deploy.eval_copy import eval_copy
from paddlelite_callbacks.deploy.export import (
    Artefact,
    ExportError,
    export_onnx,
    export_paddle,
    export_pdmodel,
    flat_outputs,
)
from paddlelite_callbacks.deploy.fold import folded
from paddlelite_callbacks.deploy.hooks import carry_hooks_, copy_with_hooks
from paddlelite_callbacks.deploy.int8 import write_int8_onnx
from paddlelite_callbacks.deploy.lean import number_parameters
from paddlelite_callbacks.quant.clip import clip_activations_, store_weights_on_grid_
from paddlelite_callbacks.quant.convert import convert_for_export_, store_small_in_float_
from paddlelite_callbacks.quant.noise import bias_noise, flip_noise, middle_noise
from paddlelite_callbacks.quant.outputs import quantized_outputs
from paddlelite_callbacks.quant.prepare import quantized_layers

__all__ = ["Forms", "Reference", "export_forms", "references", "said_of"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reference:
    """What a file has to compute.

    Args:
        outputs: of the live network.
        noise: per output, how far it moves by rounding alone; empty for a float network.
        middle: per output, how far the middle one of its rows moves so; the same.
        flips: per output, how far one value in the next quantisation step moves it; the same.
        biases: per output, how far it moves by int32 biases, see `bias_noise`; the same.
    """

    outputs: list[np.ndarray]
    noise: list[float] = field(default_factory=list)
    middle: list[float] = field(default_factory=list)
    flips: list[float] = field(default_factory=list)
    biases: list[float] = field(default_factory=list)

    def with_rounded_biases(self) -> Reference:
        """Return the same for an engine that rounds biases of a file that is right as it is written.

        A bias is off in every row, so the middle one tells nothing.
        """
        return replace(self, noise=[a + b for a, b in zip(self.noise, self.biases, strict=True)], middle=[])


@dataclass
class Forms:
    """Exported files, and why others are missing.

    Args:
        artefacts: what was written.
        errors: reason by kind and precision.
        plain: the float network as it stands in ``model.onnx``: activations clipped where they are quantised, weights
            on their grid, batch norms folded.
    """

    artefacts: list[Artefact]
    errors: dict[tuple[str, str], str]
    plain: Layer | None = None


def export_forms(
    network: Layer,
    folder: Path,
    *,
    input_spec: Sequence[InputSpec],
    onnx: bool = True,
    pdmodel: bool = False,
    sample: Sequence[np.ndarray] | None = None,
) -> Forms:
    """Write every form of ``network`` into ``folder``, with its batch norms folded (see `folded`).

    A float network: Paddle's program, and ``model.onnx``. A quantised one: Paddle's program with int8 weights (small;
    it computes in float), ``model.int8.onnx`` (computes in int8, see `write_int8_onnx`), and ``model.onnx``, the
    trained network without the rounding of activations (see `clip_activations_`), which an int8 file has to beat.

    Args:
        network: any mode; not changed. What its forward hooks change is exported too, see `eval_copy`.
        folder: exists.
        input_spec: one per input.
        onnx: whether to write the ONNX files.
        pdmodel: whether to write Paddle's program in the format of Paddle 2, too.
        sample: real inputs, one array each, by which batch norms are folded; ``None`` for noise, where ``input_spec``
            leaves only the batch open (otherwise nothing is folded).

    Raises:
        ExportError: no file could be written; a file that could not, where others could, is an entry of ``errors``.
        ValueError: a quantised layer has seen no batch.
    """
    forms, work = Forms([], {}), folder / ".work"
    inputs = _inputs(sample, input_spec)
    network = eval_copy(network, inputs)
    try:
        if quantized_layers(network):
            _quantized_forms(forms, network, folder, work, input_spec, inputs, onnx)
        else:
            _float_forms(forms, _folded(network, inputs), folder, input_spec, onnx)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for artefact in list(forms.artefacts):
        if artefact.kind == "paddle":
            if pdmodel:
                _attempt(forms, "pdmodel", artefact.precision, lambda program=artefact: export_pdmodel(program))  # type: ignore[misc]
            number_parameters(artefact.path)  # ONNX files, made of the program, keep the names of state_dict
    if not forms.artefacts:
        said = "; ".join(dict.fromkeys(forms.errors.values()))
        raise ExportError(said)
    return forms


def _float_forms(forms: Forms, network: Layer, folder: Path, input_spec: Sequence[InputSpec], onnx: bool) -> None:
    forms.plain = network
    _attempt(forms, "paddle", "fp32", lambda: export_paddle(network, folder, input_spec=input_spec, hooks=True))
    if onnx and forms.artefacts:
        program = forms.artefacts[0]
        _attempt(forms, "onnx", "fp32", lambda: export_onnx(program, folder / "model.onnx"))
    elif onnx:
        forms.errors["onnx", "fp32"] = "there is no Paddle program to convert"


def _quantized_forms(
    forms: Forms,
    network: Layer,
    folder: Path,
    work: Path,
    input_spec: Sequence[InputSpec],
    inputs: list[Tensor] | None,
    onnx: bool,
) -> None:
    converted = _folded(_converted(network), inputs)
    small = copy_with_hooks(converted)
    store_small_in_float_(small)
    _attempt(
        forms,
        "paddle",
        "int8",
        lambda: export_paddle(small, folder, input_spec=input_spec, precision="int8", hooks=True),
    )
    forms.plain = _folded(store_weights_on_grid_(clip_activations_(copy_with_hooks(network))), inputs)
    if not onnx:
        return
    plain = forms.plain

    def write_int8() -> Artefact:
        # The same network once more, with the integers of every layer in it: engines want them all.
        whole = export_paddle(converted, work, input_spec=input_spec, precision="int8", name="int8", hooks=True)
        return write_int8_onnx(export_onnx(whole, work / "int8.onnx"), folder / "model.int8.onnx")

    def write_fp32() -> Artefact:
        return export_onnx(export_paddle(plain, work, input_spec=input_spec, hooks=True), folder / "model.onnx")

    _attempt(forms, "onnx", "fp32", write_fp32)
    _attempt(forms, "onnx", "int8", write_int8)


def _converted(network: Layer) -> Layer:
    """Return a copy with int8 layers in place of the fake-quantised ones, their forward hooks with them."""
    duplicate = copy_with_hooks(network)
    before = dict(duplicate.named_sublayers())
    convert_for_export_(duplicate)
    after = dict(duplicate.named_sublayers())
    for name, old in before.items():
        if name in after and after[name] is not old and old not in after[name].sublayers():
            carry_hooks_(old, after[name])
    return duplicate


def _folded(network: Layer, inputs: list[Tensor] | None) -> Layer:
    return network if inputs is None else folded(network, inputs)


def _inputs(sample: Sequence[np.ndarray] | None, input_spec: Sequence[InputSpec]) -> list[Tensor] | None:
    if sample is not None:
        return [paddle.to_tensor(item) for item in sample]
    shapes = [[2 if i == 0 and size in (None, -1) else size for i, size in enumerate(s.shape)] for s in input_spec]
    if any(size in (None, -1) for shape in shapes for size in shape):
        return None
    random = np.random.RandomState(0)
    noise = [random.standard_normal(shape) for shape in shapes]
    return [paddle.to_tensor(x.astype("float32")).astype(s.dtype) for x, s in zip(noise, input_spec, strict=True)]


def references(
    network: Layer, sample: Sequence[np.ndarray], *, own: list[np.ndarray] | None = None
) -> dict[str, Reference]:
    """Return what the files of each precision have to compute for ``sample``.

    Args:
        network: in eval mode; not changed.
        sample: one array per input.
        own: what the trained network itself gives for it; ``None`` for what ``network`` gives.
    """
    inputs = [paddle.to_tensor(item) for item in sample]

    def outputs_of(net: Layer) -> list[Tensor]:
        with paddle.no_grad():
            return flat_outputs(net(*inputs))

    layers = quantized_layers(network)
    own = [item.numpy() for item in outputs_of(network)] if own is None else own
    if not layers:
        return {"fp32": Reference(own)}
    plain = clip_activations_(copy_with_hooks(network))
    moved = {id(layer): layer for layer in (*layers.values(), *quantized_outputs(network).values())}
    noise = middle_noise(moved.values(), lambda: outputs_of(network))
    ran = [layer for layer in layers.values() if layer.weight_quanter is not None]
    biases = bias_noise(ran, lambda: outputs_of(network))
    quanters = [layer.output_quanter for layer in quantized_outputs(network).values()]
    flips = flip_noise([*layers.values(), *quanters], lambda: outputs_of(network))
    return {
        "fp32": Reference([item.numpy() for item in outputs_of(plain)]),
        "int8": Reference(
            own,
            [a for a, _ in noise],
            [b for _, b in noise],
            flips,
            biases,
        ),
    }


def said_of(error: BaseException) -> str:
    """Return what an error says of an export, on one line.

    Args:
        error: that was caught.
    """
    return " ".join(str(error).split()) if isinstance(error, (ExportError, ImportError)) else reason(error)


def _attempt(forms: Forms, kind: str, precision: str, make: Callable[[], Artefact]) -> None:
    """Write one file; a failure costs no other file, unless the disk is full."""
    try:
        forms.artefacts.append(make())
    except OSError:
        raise
    except Exception as error:
        forms.errors[kind, precision] = said_of(error)
        _log.warning("No %s %s file: %s", precision, kind, forms.errors[kind, precision])
