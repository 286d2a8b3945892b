"""Trace and convert a copy of the network before training, to fail early."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle
from paddle.nn import Layer
from paddle.static import InputSpec

from paddlelite_callbacks.benchmark.engines import ENGINES, missing_reason
from paddlelite_callbacks.benchmark.options import BenchOptions
from paddlelite_callbacks.benchmark.requantizing import NOT_ON_LITE_GRID
from paddlelite_callbacks.callbacks.export.fit_facts import batch_specs
from paddlelite_callbacks.callbacks.export.run import one_export_at_a_time
from paddlelite_callbacks.errors import ExportError, MissingDependencyError
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.export.eval_copy import eval_copy, eval_outputs
from paddlelite_callbacks.export.fp16 import write_fp16_onnx
from paddlelite_callbacks.export.lite import LiteOptions, find_opt
from paddlelite_callbacks.export.used_inputs import take_inputs_, used_inputs
from paddlelite_callbacks.export.validate import check_definite
from paddlelite_callbacks.export.variants import export_forms, said_of
from paddlelite_callbacks.hapi import input_specs, sample_inputs
from paddlelite_callbacks.nn.attributes import same_state
from paddlelite_callbacks.nn.surgery import same_modes, unwrapped
from paddlelite_callbacks.nn.trace import noise
from paddlelite_callbacks.quant.prepare import activation_quantizers, quantization_of, quantized_layers
from paddlelite_callbacks.quant.quantizers import Switched
from paddlelite_callbacks.quant.switch import switch_quantizers_
from paddlelite_callbacks.utils.error_text import reason
from paddlelite_callbacks.utils.isolation import beside_readers, undisturbed
from paddlelite_callbacks.utils.progress import write_lines
from paddlelite_callbacks.utils.signals import uninterrupted
from paddlelite_callbacks.workarounds.constructor_leak import without_argument_lists

__all__ = ["Preflight", "example_batches"]

_log = logging.getLogger(__name__)
_converted: set[str] = set()  # digests of programs that this process has converted to every requested ONNX file
_REMEDY = "Nothing was trained; preflight=False trains anyway."

Arrays = Sequence[np.ndarray]


def example_batches(model: paddle.Model, loader: object) -> Iterator[list[np.ndarray]]:
    """Yield batches to try the network on: seeded random inputs, then a real sample.

    Args:
        model: Model of hapi.
        loader: Loader of the training data, whose batches are not read; ``None`` if unknown.
    """
    specs = input_specs(model)
    if specs is not None and all(size is not None for shape, _ in specs for size in shape[1:]):
        yield [item.numpy() for item in noise([([2, *shape[1:]], dtype) for shape, dtype in specs])]
    if (sample := sample_inputs(model, loader)) is not None:
        yield sample


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """Trial export of an untrained copy, with the options of `ExportBenchCallback`.

    Args:
        input_spec: See `ExportOptions`.
        options: Options of the benchmark, which is not run.
        dynamic_batch: See `ExportOptions`.
        fp16: See `ExportOptions`.
        forms: See `ExportOptions`.
        onnx_opset: See `ExportOptions`.
        lite: Targets and ``opt`` of the files for Paddle Lite; ``None`` for none.
        strict: See `ExportOptions`.
        engine: Engine of the budget; ``None`` for any.
        verbose: 1 prints progress, 0 nothing.
    """

    input_spec: Sequence[InputSpec] | None
    options: BenchOptions
    dynamic_batch: bool
    fp16: bool
    forms: Sequence[str]
    onnx_opset: int
    lite: LiteOptions | None
    strict: bool
    engine: str | None
    verbose: int

    def run(self, network: Layer, batches: Iterator[Arrays], *, last: bool = False) -> bool:
        """Export a copy of ``network`` to a temporary folder and report failures.

        Network, random generators and gradient mode are restored.

        Args:
            network: Network before training, with its layers converted.
            batches: Inputs to try; the first that the network accepts is used.
            last: Whether these are real inputs, in the middle of an epoch. A network that does not accept them is then
                an error, and determinism is not checked, see `beside_readers`.

        Returns:
            Whether it was tried; ``False`` if the network accepts none of ``batches``.

        Raises:
            ExportError: Nothing could be exported after training, or not what was requested by name.
            TypeError: The network cannot be copied.
        """
        self._check_engines_installed()
        if self.lite is not None:
            try:
                find_opt(self.lite.opt)
            except MissingDependencyError as error:
                raise ExportError(f"forms ask for Paddle Lite's files. {error} {_REMEDY}") from error
            if (settings := quantization_of(network)) is not None and not settings["activation_symmetric"]:
                _log.warning("%s", NOT_ON_LITE_GRID)
        name, begin = type(unwrapped(network)).__name__, time.monotonic()
        with ExitStack() as scope:
            if last:
                scope.enter_context(beside_readers())
            scope.enter_context(_as_found(network))
            scope.enter_context(_with_remedy(name))
            found = self._callable_with(network, batches, name, last=last)
            if found is None:
                return False
            if self.verbose:
                write_lines(f"Preflight: exporting a copy of {name} (preflight=False leaves this out).")
            try:
                with _temporary_folder() as folder:
                    written = self._tried(network, *found, folder, again=not last)
            except (OSError, MemoryError) as error:  # a temporary fault, not one of the network
                _log.warning("Preflight of %s was not completed: %s.", name, reason(error))
                return True
        if self.verbose:
            seconds = time.monotonic() - begin
            write_lines(f"Preflight: {', '.join(written)} can be written ({seconds:.1f} s).")
        return True

    def _callable_with(
        self, network: Layer, batches: Iterator[Arrays], name: str, *, last: bool
    ) -> tuple[Arrays, list[np.ndarray]] | None:
        """Return the first batch that ``network`` accepts in eval mode, with its outputs."""
        for batch in batches:
            try:
                return batch, eval_outputs(network, [paddle.to_tensor(item) for item in batch])
            except ExportError:
                raise
            except Exception as error:  # a network may reject random inputs and accept real ones
                if last:
                    shapes = [list(item.shape) for item in batch]
                    raise ExportError(
                        f"{name} cannot be called in eval mode with inputs {shapes}, and so not be exported: "
                        f"{reason(error)}. Let forward() take them where network.training is False."
                    ) from error
        return None

    def _tried(self, network: Layer, batch: Arrays, own: list[np.ndarray], folder: Path, *, again: bool) -> list[str]:
        """Return the names of the files that can be written; report the others."""
        inputs = [paddle.to_tensor(item) for item in batch]
        duplicate = eval_copy(network, inputs, expected=own)
        if again and all(np.isfinite(item).all() for item in own):
            check_definite(duplicate, batch, own)
        used = used_inputs(duplicate, inputs, own)
        take_inputs_(duplicate, inputs, used)
        sample = [batch[i] for i in used]
        rows = None if self.dynamic_batch else self.options.settings[0][1]
        specs = batch_specs(self.input_spec, sample, rows=rows, used=used)
        if not _settle_scales_(duplicate):
            return ["all files of which scales are known"]
        artefacts, errors = self._exported(duplicate, sample, specs, folder)
        self._judge(type(unwrapped(network)).__name__, artefacts, errors)
        return [artefact.path.name for artefact in artefacts]

    def _exported(
        self, network: Layer, sample: Arrays, specs: Sequence[InputSpec], folder: Path
    ) -> tuple[list[Artefact], dict[tuple[str, str], str]]:
        onnx = any(engine.kind == "onnx" for engine in self.options.chosen())

        def written(name: str, *, onnx: bool) -> tuple[list[Artefact], dict[tuple[str, str], str], str]:
            (folder / name).mkdir()
            with _silent(export_forms):
                try:
                    forms = export_forms(
                        network,
                        folder / name,
                        input_spec=specs,
                        onnx=onnx,
                        pdmodel="pdmodel" in self.forms,
                        onnx_opset=self.onnx_opset,
                        lite=self.lite,
                        sample=sample,
                    )
                except ExportError as error:
                    _raise_full_disk([str(error)])
                    raise
            _raise_full_disk(forms.errors.values())
            return forms.artefacts, forms.errors, self._key(forms.artefacts, specs)

        if onnx and _converted:  # from an earlier fit: conversion takes longer than tracing
            artefacts, errors, key = written("program", onnx=False)
            if key in _converted:
                return artefacts, errors
        artefacts, errors, key = written("all", onnx=onnx)
        if onnx and self.fp16:
            _try_fp16(artefacts, errors, folder / "model.fp16.onnx")
        if onnx and artefacts and not errors:
            _converted.add(key)
        return artefacts, errors

    def _key(self, artefacts: Sequence[Artefact], specs: Sequence[InputSpec]) -> str:
        digest = hashlib.sha256(
            repr((self.fp16, self.onnx_opset, [(spec.shape, spec.dtype, spec.name) for spec in specs])).encode()
        )
        for artefact in artefacts:
            if artefact.kind == "paddle":
                digest.update(artefact.path.read_bytes())
        return digest.hexdigest()

    def _check_engines_installed(self) -> None:
        """Check that the engines requested by name are installed."""
        for name in self._named():
            if (why := missing_reason(ENGINES[name])) is not None:
                present = [engine.name for engine in ENGINES.values() if missing_reason(engine) is None]
                raise ExportError(
                    f"The engine {name!r} was requested but is not installed ({why}). Installed: {present}. Install "
                    f"it, or leave it out of engines. {_REMEDY}"
                )

    def _named(self) -> list[str]:
        return list(dict.fromkeys([*(self.options.engines or ()), *([self.engine] if self.engine else [])]))

    def _judge(self, name: str, artefacts: Sequence[Artefact], errors: Mapping[tuple[str, str], str]) -> None:
        """Raise for impossible files requested by name; warn about all others."""
        if not errors:
            return
        lost = "; ".join(f"no {precision} {kind} file ({why})" for (kind, precision), why in errors.items())
        files = [artefact.path.name for artefact in artefacts]
        kinds = {artefact.kind for artefact in artefacts}
        useless = [engine for engine in self._named() if ENGINES[engine].kind not in kinds]
        if useless:
            others = [engine for engine, known in ENGINES.items() if known.kind in kinds]
            raise ExportError(
                f"{name} cannot be exported for {useless}, which engines or budget request: {lost}. The files "
                f"that can be written are {files}, for {others}: change the network, or name those engines."
            )
        if missing := [form for form in self.forms if any(kind.split("-")[0] == form for kind, _ in errors)]:
            raise ExportError(
                f"{name} cannot be exported with forms={missing}: {lost}. The files that can be written are {files}: "
                "change the network, or leave these forms out."
            )
        if self.fp16 and ("onnx", "fp16") in errors:
            raise ExportError(
                f"{name} cannot be exported with fp16=True: {lost}. The files that can be written are {files}: "
                "change the network, or leave fp16 out."
            )
        present = {
            engine.kind for engine in self.options.chosen() if self.options.engines or not missing_reason(engine)
        }
        if self.strict and any(kind in present for kind, _ in errors):
            raise ExportError(
                f"{name} cannot be exported completely, as strict=True requires: {lost}. The files that can be written "
                f"are {files}: change the network, or leave strict out."
            )
        _log.warning(
            "Preflight: of %s there will be %s. The files that can be written are %s. Training continues; "
            "engines=[...] leaves out what is not needed, preflight=False skips this check.",
            name,
            lost,
            files,
        )


@contextmanager
def _as_found(network: Layer) -> Iterator[None]:
    """Isolate the block from the training of ``network`` and its mixed precision."""
    with (
        one_export_at_a_time(),
        undisturbed(),
        without_argument_lists(),
        same_state(network),
        same_modes(network),
        paddle.amp.auto_cast(enable=False),
    ):
        yield


@contextmanager
def _with_remedy(name: str) -> Iterator[None]:
    """Append to errors raised in the block how to train without preflight."""
    try:
        yield
    except (ExportError, TypeError) as error:
        raise type(error)(f"{error} {_REMEDY}") from error
    except Exception as error:
        raise ExportError(f"{name} cannot be exported: {reason(error)}. {_REMEDY}") from error


def _raise_full_disk(reasons: Iterable[str]) -> None:
    """Raise ``OSError`` if one of ``reasons`` is a full temporary folder."""
    if any(os.strerror(errno.ENOSPC) in said or "is the disk full?" in said for said in reasons):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), tempfile.gettempdir())


def _settle_scales_(network: Layer) -> bool:
    """Set a scale in uncalibrated quantizers of a copy, in place.

    Returns whether all quantizers have a scale.
    """
    if any(not isinstance(layer.activation_quanter, Switched) for layer in quantized_layers(network).values()):
        return False  # quantizers of PaddleSlim or Paddle find their scales in training
    switch_quantizers_(network, True)
    for quantizer in activation_quantizers(network).values():
        if not quantizer.calibrated:
            quantizer.set_range(1.0, lowest=-1.0)
    return True


def _try_fp16(artefacts: list[Artefact], errors: dict[tuple[str, str], str], path: Path) -> None:
    plain = [a for a in artefacts if (a.kind, a.precision) == ("onnx", "fp32")]
    try:
        if not plain:
            raise ExportError("no fp32 ONNX file to take it from")
        artefacts.append(write_fp16_onnx(plain[0], path))
    except OSError:
        raise
    except Exception as error:
        errors["onnx", "fp16"] = said_of(error)


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Yield a temporary folder that is deleted after the block, also on Ctrl-C."""
    folder: Path | None = None
    try:
        with uninterrupted():
            folder = Path(tempfile.mkdtemp(prefix="paddlelite_preflight_"))
        yield folder
    finally:
        if folder is not None:
            with uninterrupted():
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _silent(function: Callable[..., object]) -> Iterator[None]:
    """Suppress the log of ``function``'s module in the block."""
    log = logging.getLogger(function.__module__)

    def hold_back(record: logging.LogRecord) -> bool:
        return False

    log.addFilter(hold_back)
    try:
        yield
    finally:
        log.removeFilter(hold_back)
