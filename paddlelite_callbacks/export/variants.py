"""Build the exported variants of a trained network and their references."""

from __future__ import annotations

import functools
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

from paddlelite_callbacks.errors import ExportError
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.export.compare import compare_outputs
from paddlelite_callbacks.export.eval_copy import eval_copy, eval_outputs
from paddlelite_callbacks.export.fold_bn import folded
from paddlelite_callbacks.export.fp16 import round_to_fp16_, write_fp16_onnx
from paddlelite_callbacks.export.hooks import carry_hooks_, copy_with_hooks
from paddlelite_callbacks.export.lite import LiteOptions, find_opt
from paddlelite_callbacks.export.onnx_export import DEFAULT_OPSET, checked_opset, export_onnx
from paddlelite_callbacks.export.paddle_program import (
    export_lite_program,
    export_paddle,
    export_pdmodel,
    export_qdq_pdmodel,
)
from paddlelite_callbacks.export.qdq import write_int8_onnx
from paddlelite_callbacks.export.slim_program import number_parameters
from paddlelite_callbacks.export.tolerance import bias_noise, flip_noise, middle_noise
from paddlelite_callbacks.nn.nested import flat_outputs
from paddlelite_callbacks.nn.surgery import restored
from paddlelite_callbacks.quant.clip import clip_activations_, store_weights_on_grid_
from paddlelite_callbacks.quant.convert import convert_for_export_, store_small_in_float_
from paddlelite_callbacks.quant.output_quantizers import quantized_outputs
from paddlelite_callbacks.quant.prepare import quantization_of, quantized_layers
from paddlelite_callbacks.utils.error_text import reason
from paddlelite_callbacks.utils.peak_memory import release_free_memory
from paddlelite_callbacks.workarounds.tracing import without_repeated_conversions

__all__ = [
    "LITE_PROGRAMS",
    "Forms",
    "Reference",
    "Variants",
    "export_forms",
    "on_lite_grid",
    "references",
    "said_of",
    "write_forms",
    "write_lite",
]

_ORDER = (("paddle", "fp32"), ("paddle", "int8"), ("onnx", "fp32"), ("onnx", "int8"), ("onnx", "fp16"))  # of the files
LITE_PROGRAMS = ".lite"
"""Folder beside the files with the programs that those for Paddle Lite were made from, until they are checked."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reference:
    """Reference outputs for a file, with their tolerances.

    Args:
        outputs: Outputs of the network, ``[N, ...]`` each.
        noise: Per output, its change by rounding alone; empty for a float network.
        middle: Per output, the change of its median row by rounding alone; empty for a float network.
        flips: Per output, its change when one value takes the next quantisation step; empty for a float network.
        biases: Per output, its change by int32 biases, see `bias_noise`; empty for a float network.
    """

    outputs: list[np.ndarray]
    noise: list[float] = field(default_factory=list)
    middle: list[float] = field(default_factory=list)
    flips: list[float] = field(default_factory=list)
    biases: list[float] = field(default_factory=list)

    def with_rounded_biases(self) -> Reference:
        """Return the reference for an engine that rounds biases of a right file.

        A bias moves every row, so the median row says nothing.
        """
        return replace(self, noise=[a + b for a, b in zip(self.noise, self.biases, strict=True)], middle=[])


class Variants:
    """Variants of one trained network and their references, each built once.

    A float network is exported with its batch norms folded (see `folded`). A quantised one as two variants: with int8
    weights, and in float without the rounding of activations (see `clip_activations_`).

    Args:
        network: Copy in eval mode, see `eval_copy`; not changed.
        inputs: Real inputs, with which batch norms are folded; ``None`` folds nothing.
        own: Outputs of the trained network for ``inputs``; ``None`` for those of ``network``.
    """

    def __init__(
        self, network: Layer, inputs: Sequence[Tensor] | None, *, own: Sequence[np.ndarray] | None = None
    ) -> None:
        self.network, self.inputs = network, inputs
        self.is_quantized = bool(quantized_layers(network))
        self._own = own
        self._references: dict[str, Reference] | None = None
        self._clipped: Layer | None = None  # built for the references, not folded yet

    @classmethod
    def of(cls, network: Layer, inputs: Sequence[Tensor] | None) -> Variants:
        """Copy a network in any mode; its own outputs are the reference.

        Args:
            network: Trained network.
            inputs: Real inputs; ``None`` folds nothing.

        Raises:
            ExportError: See `eval_copy`.
        """
        own = None if inputs is None else eval_outputs(network, inputs)
        return cls(eval_copy(network, inputs, expected=own), inputs, own=own)

    @property
    def references(self) -> dict[str, Reference]:
        """References of the files by precision, for ``inputs``; computed once.

        Raises:
            ValueError: There are no inputs.
        """
        if self._references is None:
            if not self.is_quantized:
                own = self.outputs_of(self.network) if self._own is None else list(self._own)
                self._references = {"fp32": Reference(own)}
            else:
                self._clipped = self._make_clipped()
                clipped = Reference(self.outputs_of(self._clipped))
                self._references = {"fp32": clipped, "int8": self._int8_reference()}
        return self._references

    def float_network(self) -> Layer:
        """Build the network of ``model.onnx``; the caller owns it."""
        if not self.is_quantized:
            return self._folded(lambda: copy_with_hooks(self.network), "fp32")
        made = [self._clipped] if self._clipped is not None else []
        self._clipped = None
        return self._folded(lambda: store_weights_on_grid_(made.pop() if made else self._make_clipped()), "fp32")

    def int8_network(self) -> Layer:
        """Build the network with int8 weights; the caller owns it.

        Raises:
            ValueError: No quantised layer has seen a batch.
        """
        return self._folded(lambda: _converted(self.network), "int8")

    def _folded(self, make: Callable[[], Layer], precision: str) -> Layer:
        release_free_memory()
        if self.inputs is None:
            return make()

        def same(got: list[np.ndarray]) -> bool:
            known = self.references[precision]
            return compare_outputs(
                known.outputs, got, engine="folded", noise=known.noise, middle=known.middle, flips=known.flips
            ).passed

        try:
            return folded(make, self.inputs, same)
        finally:
            release_free_memory()

    def _make_clipped(self) -> Layer:
        return clip_activations_(copy_with_hooks(self.network))

    def _int8_reference(self) -> Reference:
        network = self.network
        layers, outputs = quantized_layers(network), quantized_outputs(network)
        moved = {id(layer): layer for layer in (*layers.values(), *outputs.values())}
        ran = [layer for layer in layers.values() if layer.weight_quanter is not None]
        quantizers = [layer.output_quanter for layer in outputs.values()]

        def run() -> list[Tensor]:
            return self._run(network)

        unmoved = run()
        noise = middle_noise(moved.values(), run, expected=unmoved)
        return Reference(
            [item.numpy() for item in unmoved] if self._own is None else list(self._own),
            [largest for largest, _ in noise],
            [middle for _, middle in noise],
            flip_noise([*layers.values(), *quantizers], run, expected=unmoved),
            bias_noise(ran, run, expected=unmoved),
        )

    def _run(self, network: Layer) -> list[Tensor]:
        if self.inputs is None:
            raise ValueError("Without inputs nothing can be compared: give a sample.")
        with paddle.no_grad():
            return flat_outputs(network(*self.inputs))

    def outputs_of(self, network: Layer) -> list[np.ndarray]:
        """Return the outputs of ``network`` for the inputs.

        Args:
            network: One of the variants.

        Raises:
            ValueError: There are no inputs.
        """
        return [item.numpy() for item in self._run(network)]


@dataclass
class Forms:
    """Exported files, and reasons for missing ones.

    Args:
        artefacts: Files that were written.
        errors: Reason by kind and precision.
    """

    artefacts: list[Artefact]
    errors: dict[tuple[str, str], str]


def export_forms(
    network: Layer,
    folder: Path,
    *,
    input_spec: Sequence[InputSpec],
    onnx: bool = True,
    pdmodel: bool = False,
    onnx_opset: int = DEFAULT_OPSET,
    lite: LiteOptions | None = None,
    sample: Sequence[np.ndarray] | None = None,
) -> Forms:
    """Export ``network`` in every form into ``folder``, with its batch norms folded.

    A float network: Paddle's program, and ``model.onnx``. A quantised one: Paddle's program with int8 weights (small;
    computes in float), ``model.int8.onnx`` (computes in int8), and ``model.onnx``, the trained network without the
    rounding of activations, the baseline of the int8 file.

    Args:
        network: Network in any mode; not changed. Forward hooks that change outputs are exported.
        folder: Existing folder.
        input_spec: One per input.
        onnx: Whether to write the ONNX files.
        pdmodel: Whether to write Paddle's program also in the format of Paddle 2.
        onnx_opset: Opset version of the ONNX files, 13-19; below 13 there are no weight scales per channel.
        lite: Files for Paddle Lite to write, such as ``model.arm.nb``; for a network trained with
            ``activation_symmetric`` also ``model.int8.arm.nb``. ``None`` for none.
        sample: Real inputs, one array each, with which batch norms are folded; ``None`` for random ones, where
            ``input_spec`` leaves only the batch dynamic (otherwise nothing is folded).

    Raises:
        ExportError: No file could be written. A failure of some files is recorded in ``errors``.
        ValueError: A quantised layer has seen no batch, or ``onnx_opset`` is out of range.

    Example:
        >>> forms = export_forms(network, Path("out"), input_spec=[InputSpec([None, 3, 224, 224])])  # doctest: +SKIP
        >>> forms.artefacts, forms.errors  # doctest: +SKIP
    """
    inputs = _inputs(sample, input_spec)
    variants = Variants.of(network, inputs)
    try:
        return write_forms(
            variants, folder, input_spec=input_spec, onnx=onnx, pdmodel=pdmodel, onnx_opset=onnx_opset, lite=lite
        )
    finally:
        shutil.rmtree(folder / LITE_PROGRAMS, ignore_errors=True)


@without_repeated_conversions()  # all forms are of the same classes
def write_forms(
    variants: Variants,
    folder: Path,
    *,
    input_spec: Sequence[InputSpec],
    onnx: bool,
    fp16: bool = False,
    pdmodel: bool = False,
    onnx_opset: int = DEFAULT_OPSET,
    lite: LiteOptions | None = None,
) -> Forms:
    """Write the files of `export_forms`.

    At most two variants are in memory beside the trained network.

    Args:
        variants: Variants of the network; gets the reference of ``"fp16"`` where that file is written.
        folder: Existing folder.
        input_spec: One per input.
        onnx: Whether to write the ONNX files.
        fp16: Whether to write ``model.fp16.onnx`` too.
        pdmodel: See `export_forms`.
        onnx_opset: See `export_forms`.
        lite: See `export_forms`; the programs that they are made from stay in the folder `LITE_PROGRAMS`.

    Raises:
        ExportError: See `export_forms`.
        ValueError: See `export_forms`.
    """
    forms, work, opset = Forms([], {}), folder / ".work", checked_opset(onnx_opset)
    phone = Forms([], forms.errors)  # what is made for Paddle 2 and Paddle Lite alone
    symmetric = on_lite_grid(variants.network)
    try:
        if variants.is_quantized:
            whole = symmetric and (pdmodel or lite is not None)
            program = _write_int8(forms, variants.int8_network(), folder, work, input_spec, onnx, opset, whole=whole)
            if program is not None and pdmodel and symmetric:
                pair = functools.partial(export_qdq_pdmodel, program, folder / "model.int8")
                _attempt(phone, "pdmodel", "int8", pair)
            if program is not None and lite is not None and symmetric:
                _write_lite(phone, program, folder, lite)
            release_free_memory()
        if onnx or lite is not None or not variants.is_quantized:
            program = _write_float(forms, variants, folder, work, input_spec, onnx, fp16, opset)
            if program is not None and lite is not None:
                _write_lite(phone, program, folder, lite)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        release_free_memory()
    forms.artefacts.sort(key=lambda artefact: _ORDER.index((artefact.kind, artefact.precision)))
    for artefact in list(forms.artefacts):
        if artefact.kind == "paddle":
            if pdmodel and not symmetric:
                _attempt(forms, "pdmodel", artefact.precision, lambda program=artefact: export_pdmodel(program))  # type: ignore[misc]
            number_parameters(artefact.path)  # after the ONNX files, which keep the names of state_dict
    forms.artefacts += sorted(phone.artefacts, key=lambda artefact: (artefact.kind != "pdmodel", artefact.path.name))
    if not forms.artefacts:
        said = "; ".join(dict.fromkeys(forms.errors.values()))
        raise ExportError(said)
    return forms


def _write_float(
    forms: Forms,
    variants: Variants,
    folder: Path,
    work: Path,
    input_spec: Sequence[InputSpec],
    onnx: bool,
    fp16: bool,
    opset: int,
) -> Artefact | None:
    """Write the float files; return the program, ``None`` where there is none."""
    network, target = variants.float_network(), folder / "model.onnx"
    shipped = not variants.is_quantized  # else the program is only an intermediate of the ONNX file

    def program() -> Artefact:
        return export_paddle(network, folder if shipped else work, input_spec=input_spec, in_place=True)

    made = Forms([], forms.errors)
    _attempt(made, "paddle" if shipped else "onnx", "fp32", program)
    source = made.artefacts[0] if made.artefacts else None
    if shipped:
        forms.artefacts += made.artefacts
    if not onnx:
        return source
    if source is not None:
        _attempt(forms, "onnx", "fp32", lambda: export_onnx(source, target, opset=opset))
    elif shipped:
        forms.errors["onnx", "fp32"] = "there is no Paddle program to convert"
    if fp16:
        plain = next((a for a in forms.artefacts if (a.kind, a.precision) == ("onnx", "fp32")), None)
        if plain is None:
            forms.errors["onnx", "fp16"] = "there is no fp32 ONNX file to convert"
        else:
            _attempt(forms, "onnx", "fp16", lambda: _write_fp16(variants, network, plain))
    return source


def _write_fp16(variants: Variants, network: Layer, plain: Artefact) -> Artefact:
    """Write ``model.fp16.onnx``; round ``network``, which is not used again."""
    exact = variants.references["fp32"].outputs
    round_to_fp16_(network)
    moved = variants.outputs_of(network)
    noise = [float(np.abs(a - b).max(initial=0.0)) for a, b in zip(exact, moved, strict=True)]
    variants.references["fp16"] = Reference(exact, noise)
    return write_fp16_onnx(plain, plain.path.with_name("model.fp16.onnx"))


def _write_int8(
    forms: Forms,
    network: Layer,
    folder: Path,
    work: Path,
    input_spec: Sequence[InputSpec],
    onnx: bool,
    opset: int,
    *,
    whole: bool,
) -> Artefact | None:
    """Write the int8 files; with ``whole`` return the program with all integers."""

    def small() -> Artefact:
        with restored(network):
            store_small_in_float_(network)
            return export_paddle(network, folder, input_spec=input_spec, precision="int8", in_place=True)

    def program() -> Artefact:
        # The same network with the integers of every layer in the program, as engines need them.
        return export_paddle(network, work, input_spec=input_spec, precision="int8", name="int8", in_place=True)

    def qdq(source: Artefact) -> Artefact:
        return write_int8_onnx(export_onnx(source, work / "int8.onnx", opset=opset), folder / "model.int8.onnx")

    _attempt(forms, "paddle", "int8", small)
    release_free_memory()
    if not onnx and not whole:
        return None
    made = Forms([], forms.errors)
    _attempt(made, "onnx" if onnx else "pdmodel", "int8", program)
    if not made.artefacts:
        return None
    if onnx:
        _attempt(forms, "onnx", "int8", lambda: qdq(made.artefacts[0]))
    return made.artefacts[0]


def on_lite_grid(network: Layer) -> bool:
    """Whether ``network`` is quantised on Paddle Lite's symmetric grid.

    Args:
        network: looked through.
    """
    settings = quantization_of(network)
    return settings is not None and bool(settings["activation_symmetric"])


def write_lite(program: Artefact, folder: Path, options: LiteOptions) -> list[Artefact]:
    """Write the files for Paddle Lite of a finished program.

    Args:
        program: Program of Paddle 2 or 3.
        folder: Folder of the files; what they were made from stays in its `LITE_PROGRAMS`.
        options: Targets and ``opt``.

    Raises:
        ExportError: One of them could not be written.
    """
    forms = Forms([], {})
    _write_lite(forms, program, folder, options)
    if forms.errors:
        raise ExportError("; ".join(dict.fromkeys(forms.errors.values())))
    return forms.artefacts


def _write_lite(forms: Forms, program: Artefact, folder: Path, options: LiteOptions) -> None:
    """Write a ``.nb`` for each target.

    A quantised network has none for x86, where Paddle Lite's kernels are faulty.
    """
    int8 = program.precision == "int8"
    targets = [target for target in options.targets if not (int8 and target == "x86")]
    if not targets:
        return
    prefix = folder / LITE_PROGRAMS / program.precision / "model"
    made = Forms([], forms.errors)
    _attempt(made, f"lite-{targets[0]}", program.precision, lambda: export_lite_program(program, prefix))
    for target in targets if made.artefacts else []:
        path = folder / f"model{'.int8' * int8}.{target}.nb"
        write = functools.partial(_nb_of, made.artefacts[0], path, target, options.opt)
        _attempt(forms, f"lite-{target}", program.precision, write)


def _nb_of(program: Artefact, path: Path, target: str, opt: str | Path | None) -> Artefact:
    find_opt(opt).write(program.files[0], program.files[1], path, target=target)
    kind = f"lite-{target}"
    return Artefact(kind=kind, path=path, files=(path,), precision=program.precision, program=program.files)


def _converted(network: Layer) -> Layer:
    """Copy ``network`` with int8 layers for the fake-quantised ones, hooks included."""
    duplicate = copy_with_hooks(network)
    before = dict(duplicate.named_sublayers())
    convert_for_export_(duplicate)
    after = dict(duplicate.named_sublayers())
    for name, old in before.items():
        if name in after and after[name] is not old and old not in after[name].sublayers():
            carry_hooks_(old, after[name])
    return duplicate


def _inputs(sample: Sequence[np.ndarray] | None, input_spec: Sequence[InputSpec]) -> list[Tensor] | None:
    if sample is not None:
        return [paddle.to_tensor(item) for item in sample]
    shapes = [[2 if i == 0 and size in (None, -1) else size for i, size in enumerate(s.shape)] for s in input_spec]
    if any(size in (None, -1) for shape in shapes for size in shape):
        return None
    random = np.random.RandomState(0)
    noise = [random.standard_normal(shape) for shape in shapes]
    return [paddle.to_tensor(x.astype("float32")).astype(s.dtype) for x, s in zip(noise, input_spec, strict=True)]


def references(network: Layer, sample: Sequence[np.ndarray]) -> dict[str, Reference]:
    """Return the references of the files by precision for ``sample``.

    Args:
        network: Network in eval mode; not changed.
        sample: Inputs, one array each.
    """
    return Variants(network, [paddle.to_tensor(item) for item in sample]).references


def said_of(error: BaseException) -> str:
    """Format an error of an export on one line.

    Args:
        error: Caught exception.
    """
    return " ".join(str(error).split()) if isinstance(error, (ExportError, ImportError)) else reason(error)


def _attempt(forms: Forms, kind: str, precision: str, make: Callable[[], Artefact]) -> None:
    """Write one file; a failure does not affect the others, unless the disk is full."""
    try:
        forms.artefacts.append(make())
    except OSError:
        raise
    except Exception as error:
        forms.errors[kind, precision] = said_of(error)
        _log.warning("No %s %s file: %s", precision, kind, forms.errors[kind, precision])
