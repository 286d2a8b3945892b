"""Export, check, evaluate and time one network."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle.nn import Layer
from paddle.static import InputSpec

from paddlelite_callbacks.benchmark.accuracy import FileMetrics, measure_metrics
from paddlelite_callbacks.benchmark.load import LoadedFiles, load_files
from paddlelite_callbacks.benchmark.options import BenchOptions, latency_row
from paddlelite_callbacks.benchmark.requantizing import requantizing_note
from paddlelite_callbacks.benchmark.timing import Timing, time_files
from paddlelite_callbacks.benchmark.verdicts import file_verdicts, validate_files, violations
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.export.clean_onnx import describe_onnx
from paddlelite_callbacks.export.compare import Check
from paddlelite_callbacks.export.eval_copy import eval_outputs
from paddlelite_callbacks.export.lite import LiteOptions
from paddlelite_callbacks.export.metadata import described_outputs, fixed_rows, has_free_sizes, write_sidecar
from paddlelite_callbacks.export.onnx_export import DEFAULT_OPSET
from paddlelite_callbacks.export.saturation import saturation_of
from paddlelite_callbacks.export.signature import named_specs
from paddlelite_callbacks.export.validate import check_definite
from paddlelite_callbacks.export.variants import LITE_PROGRAMS, Forms, Variants, on_lite_grid, write_forms
from paddlelite_callbacks.nn.cost import count_macs
from paddlelite_callbacks.quant.prepare import quantization_of
from paddlelite_callbacks.utils.error_text import reason
from paddlelite_callbacks.utils.isolation import undisturbed
from paddlelite_callbacks.utils.peak_memory import MemoryMeter, PeakMemory, release_free_memory
from paddlelite_callbacks.workarounds.constructor_leak import without_argument_lists
from paddlelite_callbacks.workarounds.data_loader import ended_with_the_epoch

__all__ = ["Evaluation", "HandedOut", "hand_out"]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics and data to evaluate the files with.

    Args:
        metrics: Metrics of ``model.prepare``.
        batches: Function that returns an iterable of batches, inputs before labels.
        inputs: Number of the network's inputs in a batch.
        used: Indices of those that the files take; ``None`` for all.
    """

    metrics: Sequence[paddle.metric.Metric]
    batches: Callable[[], Iterable[Any]]
    inputs: int = 1
    used: Sequence[int] | None = None


@dataclass(frozen=True, kw_only=True)
class HandedOut:
    """Result of one export: files, checks, metrics and latencies.

    Args:
        artefacts: Written files.
        errors: Reasons of missing files, by kind and precision.
        checks: Comparisons with the network, per engine and file.
        file_metrics: Metrics per engine and file; empty without an evaluation.
        timing: Latencies, warnings about noise, roofline.
        macs: Multiply-accumulates per image; ``None`` if they cannot be counted.
        notes: Notes for the reader.
        remarks: Reasons why an engine differs, with remedies.
        violations: Failures under ``strict``, see `violations`.
        failure: Reason why no file was exported; ``None`` if there is one.
        peak_memory: Peak memory of the export; ``None`` if it was not measured.
    """

    artefacts: tuple[Artefact, ...] = ()
    errors: Mapping[tuple[str, str], str] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    file_metrics: tuple[FileMetrics, ...] = ()
    timing: Timing = field(default_factory=Timing)
    macs: int | None = None
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    violations: tuple[str, ...] = ()
    failure: str | None = None
    peak_memory: PeakMemory | None = None


def hand_out(
    network: Layer,
    folder: Path,
    *,
    sample: Sequence[np.ndarray],
    input_spec: Sequence[InputSpec],
    options: BenchOptions,
    fp16: bool = False,
    pdmodel: bool = False,
    onnx_opset: int = DEFAULT_OPSET,
    lite: LiteOptions | None = None,
    evaluation: Evaluation | None = None,
    sidecar: Mapping[str, Any] | None = None,
    verbose: int = 1,
    own: list[np.ndarray] | None = None,
    meter: MemoryMeter | None = None,
) -> HandedOut:
    """Write every form of ``network``, then check, evaluate and time the files.

    A wrong file does not affect the others.

    Random generators, threads, gradient mode and output of the process are restored.

    Args:
        network: Copy in eval mode, see `eval_copy`.
        folder: Existing folder; a `staged_folder` if there is an older export.
        sample: Real inputs for the checks and the timing, one array per input.
        input_spec: One `InputSpec` per input.
        options: Options of the benchmark.
        fp16: Whether to write ``model.fp16.onnx`` too.
        pdmodel: Whether to write ``model.pdmodel`` too.
        onnx_opset: Opset of the ONNX files, 13-19.
        lite: Targets and ``opt`` of the files for Paddle Lite; ``None`` for none.
        evaluation: Metrics and data to evaluate every file with; ``None`` for no evaluation.
        sidecar: Result of `checked_sidecar_options`.
        verbose: 1 shows progress bars, 0 nothing.
        own: Outputs of the trained network itself for ``sample``; ``None`` for those of ``network``.
        meter: Running memory meter; ``None`` measures no memory.

    Raises:
        ExportError: No file could be written, or the network's outputs are not deterministic.
    """
    rows, input_spec = fixed_rows(input_spec), named_specs(network, input_spec)
    with undisturbed(), without_argument_lists():
        own = eval_outputs(network, [paddle.to_tensor(item) for item in sample]) if own is None else own
        check_definite(network, sample, own)
        variants = Variants(network, [paddle.to_tensor(item) for item in sample], own=own)
        onnx = any(engine.kind == "onnx" for engine in options.chosen())
        forms = write_forms(
            variants,
            folder,
            input_spec=input_spec,
            onnx=onnx,
            fp16=fp16,
            pdmodel=pdmodel,
            onnx_opset=onnx_opset,
            lite=lite,
        )
        expected = variants.references
        describe_onnx(forms.artefacts, sidecar or {})
        macs = _macs(network, sample)
        meter = MemoryMeter("") if meter is None else meter
        release_free_memory()
        meter.stage("engines")
        opt = None if lite is None else lite.opt
        files = load_files(forms.artefacts, sample, expected, options, errors=forms.errors, rows=rows, opt=opt)
        files, said = validate_files(forms, files, variants, sample, options)
        shutil.rmtree(folder / LITE_PROGRAMS, ignore_errors=True)
        if not forms.artefacts:
            return HandedOut(
                errors=forms.errors, checks=files.checks, macs=macs, failure=_said_of_all(network, forms.errors)
            )
        write_sidecar(
            folder,
            forms.artefacts,
            inputs=[_described(spec, i) for i, spec in enumerate(input_spec)],
            outputs=described_outputs(forms.artefacts, next(iter(expected.values())).outputs, input_spec),
            options=sidecar or {},
            verdicts=file_verdicts(files.checks, files.failed),
            quantization=quantization_of(network),
        )
        metrics, notes = _metrics_of_files(files, evaluation, verbose)
        if lite is not None and variants.is_quantized and not on_lite_grid(network):
            given = {} if evaluation is None else vars(evaluation)
            notes = [*notes, requantizing_note(network, sample, **given)]
        meter.__exit__()  # it would disturb the timing
        timing = _timed(files, sample, options, macs, verbose)
    return HandedOut(
        artefacts=tuple(forms.artefacts),
        errors=forms.errors,
        checks=files.checks,
        file_metrics=metrics,
        timing=timing,
        macs=macs,
        notes=(*_sizes_note(input_spec, sample), *_saturation_notes(forms), *notes, *timing.notes),
        remarks=said,
        violations=violations(forms.errors, files, options),
        peak_memory=_peak_memory(meter, network),
    )


def _peak_memory(meter: MemoryMeter, network: Layer) -> PeakMemory | None:
    if not meter.peaks:
        return None
    *writing, engines = meter.peaks.values()
    held = sum(tensor.size * tensor.element_size() for tensor in network.state_dict().values())
    return PeakMemory(network_mb=held / 1e6, writing_mb=max(writing), engines_mb=engines, children_mb=meter.children)


def _timed(
    files: LoadedFiles, sample: Sequence[np.ndarray], options: BenchOptions, macs: int | None, verbose: int
) -> Timing:
    """Time the files; if an engine fails, the latencies are lost, not the files."""
    try:
        return time_files(files, sample, options, macs=macs, verbose=verbose)
    except OSError:
        raise
    except Exception as error:
        rows = [latency_row(*key, options, error=reason(error)) for key in files.ready]
        return Timing((*rows, *files.failed), (f"No latency was measured: {reason(error)}.",))


def _said_of_all(network: Layer, errors: Mapping[tuple[str, str], str]) -> str:
    said = "; ".join(f"{kind} {precision}: {why}" for (kind, precision), why in errors.items())
    return f"Nothing of {type(network).__name__} could be exported. {said}"


def _metrics_of_files(
    files: LoadedFiles, evaluation: Evaluation | None, verbose: int
) -> tuple[tuple[FileMetrics, ...], list[str]]:
    if evaluation is None or not evaluation.metrics:
        return (), []
    ready = {key: predict for key, (predict, _) in {**files.ready, **files.exact}.items()}
    try:
        with ended_with_the_epoch(evaluation.batches()) as batches:
            found = measure_metrics(
                ready,
                evaluation.metrics,
                batches,
                inputs=evaluation.inputs,
                used=evaluation.used,
                rows=files.rows,
                verbose=verbose,
            )
    except Exception as error:  # faulty evaluation data do not spoil the export
        return (), [f"Accuracy was not measured on the files: {reason(error)}."]
    failed = [row for row in found if row.error]
    return found, [f"No accuracy of the file on {r.engine} {r.precision}: {r.error}." for r in failed]


def _macs(network: Layer, sample: Sequence[np.ndarray]) -> int | None:
    try:
        return count_macs(network, [paddle.to_tensor(item[:1]) for item in sample], in_place=True)
    except Exception:  # forward takes no single image, or unknown layers: no count
        return None


def _sizes_note(input_spec: Sequence[InputSpec], sample: Sequence[np.ndarray]) -> list[str]:
    if not has_free_sizes(input_spec):
        return []
    sizes = ", ".join("x".join(map(str, item.shape[1:])) for item in sample)
    return [f"Sizes besides the batch are dynamic: checked and timed at {sizes}, those of the first training batch."]


def _saturation_notes(forms: Forms) -> list[str]:
    found = [(a.path.name, saturation_of(a.kind, a.precision, a.path)) for a in forms.artefacts]
    return [report.note(name) for name, report in found if report is not None and report.channels]


def _described(spec: InputSpec, number: int) -> dict[str, Any]:
    shape = [None if size in (None, -1) else int(size) for size in spec.shape]
    return {"name": spec.name or f"x{number}", "shape": shape, "dtype": str(spec.dtype).rpartition(".")[2].lower()}
