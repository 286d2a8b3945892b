"""One network handed out: exported, checked, its accuracy measured on the files, timed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle.nn import Layer
from paddle.static import InputSpec

from paddlelite_callbacks.backbone.cost import count_macs
from paddlelite_callbacks.deploy.accuracy import FileMetrics, measure_metrics
from paddlelite_callbacks.deploy.bench import LoadedFiles, Timing, load_files, time_files
from paddlelite_callbacks.deploy.check import Check
from paddlelite_callbacks.deploy.engines import ENGINES, reason
from paddlelite_callbacks.deploy.export import Artefact, ExportError
from paddlelite_callbacks.deploy.forms import Forms, Reference, export_forms, references
from paddlelite_callbacks.deploy.half import fp16_reference, write_fp16_onnx
from paddlelite_callbacks.deploy.loading import checked
from paddlelite_callbacks.deploy.options import BenchOptions
from paddlelite_callbacks.deploy.refuse import refuse_indefinite, refuse_wrong
from paddlelite_callbacks.deploy.sidecar import described_outputs, fixed_rows, has_free_sizes, write_sidecar
from paddlelite_callbacks.deploy.undisturbed import undisturbed
from paddlelite_callbacks.loaders import ended_with_the_epoch
from paddlelite_callbacks.tensors import without_argument_lists

__all__ = ["Evaluation", "HandedOut", "hand_out"]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How accuracy is measured on the files.

    Args:
        metrics: of ``model.prepare``.
        batches: makes or returns the evaluation data, inputs first and labels behind.
        inputs: how many of a batch's items the network takes.
        used: which of these the files take; ``None`` for all.
    """

    metrics: Sequence[paddle.metric.Metric]
    batches: Callable[[], Iterable[Any]]
    inputs: int = 1
    used: Sequence[int] | None = None


@dataclass(frozen=True, kw_only=True)
class HandedOut:
    """What came of it.

    Args:
        artefacts: the files, where they were written.
        errors: why others are missing, by kind and precision.
        checks: per engine and file.
        file_metrics: per engine and file; empty without an evaluation.
        timing: latencies, doubts, roofline.
        macs: multiply-accumulates of one image; ``None`` where they cannot be counted.
        notes: what a reader should know.
    """

    artefacts: tuple[Artefact, ...] = ()
    errors: Mapping[tuple[str, str], str] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    file_metrics: tuple[FileMetrics, ...] = ()
    timing: Timing = field(default_factory=Timing)
    macs: int | None = None
    notes: tuple[str, ...] = ()


def hand_out(
    network: Layer,
    folder: Path,
    *,
    sample: Sequence[np.ndarray],
    input_spec: Sequence[InputSpec],
    options: BenchOptions,
    fp16: bool = False,
    evaluation: Evaluation | None = None,
    sidecar: Mapping[str, Any] | None = None,
    progress: bool = True,
    own: list[np.ndarray] | None = None,
) -> HandedOut:
    """Write every form of ``network`` into ``folder``, check each, and measure.

    The process is left as it was: random streams, threads, gradient mode, screen.

    Args:
        network: a copy in eval mode, see `eval_copy`.
        folder: exists; a `staged_folder` where an older export stands.
        sample: real inputs for the checks and the timing, one array per input.
        input_spec: one per input.
        options: see `BenchOptions`.
        fp16: whether to write ``model.fp16.onnx`` too.
        evaluation: measures the metrics on every file.
        sidecar: of `checked_sidecar_options`.
        progress: whether to show bars.
        own: what the trained network itself gives for ``sample``; ``None`` for what ``network`` gives.

    Raises:
        ExportError: the program cannot be written, an engine gets something else from a file than the network gives, or
            the network gives nothing definite.
    """
    rows = fixed_rows(input_spec)
    with undisturbed(), without_argument_lists():
        expected = references(network, sample, own=own)
        refuse_indefinite(network, sample, next(reversed(expected.values())).outputs)
        onnx = any(engine.kind == "onnx" for engine in options.chosen())
        forms = export_forms(network, folder, input_spec=input_spec, onnx=onnx, sample=sample)
        if fp16 and onnx:
            _add_fp16(forms, folder, expected, network, sample)
        macs = _macs(network, sample)
        files = load_files(forms.artefacts, sample, expected, options, errors=forms.errors, rows=rows)
        refuse_wrong(network, sample, files.checks)
        _verify_rest(forms, files, sample, expected, options)
        write_sidecar(
            folder,
            forms.artefacts,
            inputs=[_described(spec, i) for i, spec in enumerate(input_spec)],
            outputs=described_outputs(forms.artefacts, next(iter(expected.values())).outputs, input_spec),
            options=sidecar or {},
        )
        metrics, notes = _metrics_of_files(files, evaluation, progress)
        timing = time_files(files, sample, options, macs=macs, progress=progress)
    return HandedOut(
        artefacts=tuple(forms.artefacts),
        errors=forms.errors,
        checks=files.checks,
        file_metrics=metrics,
        timing=timing,
        macs=macs,
        notes=(*_sizes_note(input_spec, sample), *notes, *timing.notes),
    )


def _verify_rest(
    forms: Forms,
    files: LoadedFiles,
    sample: Sequence[np.ndarray],
    expected: dict[str, Reference],
    options: BenchOptions,
) -> None:
    """Believe no file that no engine ran: Paddle's is loaded by ``paddle.jit.load``, an ONNX file is not handed out."""
    kinds = {(ENGINES[check.engine].kind, check.precision) for check in files.checks if check.passed}
    for artefact in [a for a in forms.artefacts if (a.kind, a.precision) not in kinds]:
        if artefact.kind == "paddle":
            got, reference = _loaded_outputs(artefact, sample), expected[artefact.precision]
            check = checked("paddle.jit.load", artefact, got, reference, options)
            if not check.passed:
                raise ExportError(
                    f"{artefact.path.name} computes something else than the network: {check.engine}: "
                    + (check.error or f"{check.max_abs_diff:.3g} > {check.tolerance:.3g}")
                )
            continue
        tried = [r for r in files.failed if ENGINES[r.engine].kind == "onnx" and r.precision == artefact.precision]
        why = "; ".join(f"{row.engine}: {row.error}" for row in tried) or "no engine for it was chosen"
        artefact.path.unlink()
        forms.artefacts.remove(artefact)
        forms.errors[artefact.kind, artefact.precision] = f"no engine could run the file ({why})"


def _loaded_outputs(artefact: Artefact, sample: Sequence[np.ndarray]) -> list[np.ndarray]:
    try:
        program = paddle.jit.load(str(artefact.path.with_suffix("")))
        program.eval()
        with paddle.no_grad():
            outputs = program(*[paddle.to_tensor(item) for item in sample])
    except Exception as error:
        raise ExportError(f"{artefact.path.name} was written but cannot be loaded: {reason(error)}") from error
    return [item.numpy() for item in (outputs if isinstance(outputs, (list, tuple)) else [outputs])]


def _add_fp16(
    forms: Forms, folder: Path, expected: dict[str, Reference], network: Layer, sample: Sequence[np.ndarray]
) -> None:
    plain = [a for a in forms.artefacts if (a.kind, a.precision) == ("onnx", "fp32")]
    if not plain:
        forms.errors["onnx", "fp16"] = "no fp32 ONNX file to take it from"
        return
    try:
        forms.artefacts.append(write_fp16_onnx(plain[0], folder / "model.fp16.onnx"))
        expected["fp16"] = fp16_reference(network, sample, stored=forms.plain)
    except (ExportError, ImportError) as error:
        forms.errors["onnx", "fp16"] = str(error)


def _metrics_of_files(
    files: LoadedFiles, evaluation: Evaluation | None, progress: bool
) -> tuple[tuple[FileMetrics, ...], list[str]]:
    if evaluation is None or not evaluation.metrics:
        return (), []
    ready = {key: predict for key, (predict, _) in files.ready.items()}
    try:
        with ended_with_the_epoch(evaluation.batches()) as batches:
            found = measure_metrics(
                ready,
                evaluation.metrics,
                batches,
                inputs=evaluation.inputs,
                used=evaluation.used,
                rows=files.rows,
                progress=progress,
            )
    except Exception as error:  # the data of the user; the export is good nevertheless
        return (), [f"Accuracy was not measured on the files: {reason(error)}."]
    failed = [row for row in found if row.error]
    return found, [f"No accuracy of the file on {r.engine} {r.precision}: {r.error}." for r in failed]


def _macs(network: Layer, sample: Sequence[np.ndarray]) -> int | None:
    try:
        return count_macs(network, [paddle.to_tensor(item[:1]) for item in sample])
    except Exception:  # a forward that takes no single image, layers of unknown kinds: the figure is left out
        return None


def _sizes_note(input_spec: Sequence[InputSpec], sample: Sequence[np.ndarray]) -> list[str]:
    if not has_free_sizes(input_spec):
        return []
    sizes = ", ".join("x".join(map(str, item.shape[1:])) for item in sample)
    return [f"Sizes behind the batch are free: checked and timed at {sizes}, those of the first training batch."]


def _described(spec: InputSpec, number: int) -> dict[str, Any]:
    shape = [None if size in (None, -1) else int(size) for size in spec.shape]
    return {"name": spec.name or f"x{number}", "shape": shape, "dtype": str(spec.dtype).rpartition(".")[2].lower()}
