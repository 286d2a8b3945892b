"""Quantise a ready file, without its network and without training, in one call."""

from __future__ import annotations

import hashlib
import math
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from paddlelite_callbacks.benchmark.accuracy import FileMetrics, measure_metrics
from paddlelite_callbacks.benchmark.crash_probe import crash_of
from paddlelite_callbacks.benchmark.engines import ENGINES, EngineError, Predict, in_batches, missing_reason
from paddlelite_callbacks.benchmark.int8_advice import int8_notes
from paddlelite_callbacks.benchmark.load import LoadedFiles, load_files
from paddlelite_callbacks.benchmark.machine import this_machine
from paddlelite_callbacks.benchmark.onnx_cost import onnx_cost
from paddlelite_callbacks.benchmark.options import BenchOptions
from paddlelite_callbacks.benchmark.timing import Timing, time_files
from paddlelite_callbacks.benchmark.verdicts import file_verdicts, likely_causes
from paddlelite_callbacks.callbacks.export.run_folder import staged_export
from paddlelite_callbacks.errors import ExportError, MissingDependencyError
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.export.clean_onnx import describe_onnx, sign_onnx
from paddlelite_callbacks.export.float_onnx import FloatOnnx, read_float_onnx
from paddlelite_callbacks.export.metadata import checked_sidecar_options, described_outputs, write_sidecar
from paddlelite_callbacks.export.model_files import declared_inputs, find_model
from paddlelite_callbacks.export.onnx_calibration import observe_model
from paddlelite_callbacks.export.onnx_export import export_onnx
from paddlelite_callbacks.export.onnx_graph import OnnxGraph, copied_model
from paddlelite_callbacks.export.onnx_quantize import GraphScheme
from paddlelite_callbacks.export.onnx_tolerance import graph_reference
from paddlelite_callbacks.export.saturation import saturation_of
from paddlelite_callbacks.export.variants import Reference
from paddlelite_callbacks.nn.surgery import matches_any
from paddlelite_callbacks.quant.config import PACTConfig, ptq_defaults
from paddlelite_callbacks.quant.layer_search import FoundLayers, SearchPoint, search_layers
from paddlelite_callbacks.recipes.graph_files import FileMetric, FileTimer, GraphFiles, load_model, relative_error
from paddlelite_callbacks.recipes.quantize_state import Measured
from paddlelite_callbacks.recipes.sample_data import SampleData, read_metadata, read_samples
from paddlelite_callbacks.report.budget import Budget, stored_budget
from paddlelite_callbacks.report.gate import Verdict, judge
from paddlelite_callbacks.report.provenance import retraining_config
from paddlelite_callbacks.report.record import ArtefactFigures, LayerPoint, Record, append_record, now
from paddlelite_callbacks.report.write import write_report
from paddlelite_callbacks.utils.atomic_files import check_appendable, check_replaceable, check_writable
from paddlelite_callbacks.utils.checksum import sha256_of
from paddlelite_callbacks.utils.isolation import hushed_stdout, undisturbed
from paddlelite_callbacks.utils.metric_direction import falls_with_quality, keeps_metric
from paddlelite_callbacks.utils.numbers import check_number, check_whole
from paddlelite_callbacks.utils.progress import tqdm, write_lines

__all__ = ["Quantized", "quantize"]

_CHECKED = 8  # images of the checks
_BATCH = 16
_FASTER = 0.97  # of the time: less of a difference is not told from noise
_ROUNDS = 3  # timings that must all agree on it
_TO_FLOAT, _TO_8_BITS = "float", "8 bits"
_ACCURACY, _AGREEMENT, _FIDELITY = "acc", "agreement", "fidelity"


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """Result of `quantize`.

    Args:
        record: Record of the run.
        folder: Folder of the files.
        budget: Budget of the verdict, with the float file's metric as baseline.
        in_float: Layers that stay in float.
        raised: Layers whose weights have 8 bits instead of fewer.
    """

    record: Record
    folder: Path
    budget: Budget
    in_float: tuple[str, ...] = ()
    raised: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """Return the verdict of the budget."""
        return judge(self.record, self.budget)

    def __str__(self) -> str:
        report = self.folder.parent / "report.html"
        return f"{self.record.name}: {self.verdict}\nFiles: {self.folder}\nReport: {report}"


def quantize(
    model: str | Path,
    data: Any,
    budget: Budget | None = None,
    *,
    metric_drop: float | None = None,
    folder: str | Path = "quantized",
    name: str | None = None,
    weight_bits: int = 8,
    activation_bits: int = 8,
    reduce_range: bool = True,
    calibration: str | None = None,
    alpha_percentile: float | None = None,
    bias_correction: bool = True,
    quantize_outputs: bool | None = None,
    skip: Sequence[str] = (),
    metric: paddle.metric.Metric | None = None,
    preprocess: Mapping[str, Any] | None = None,
    calibration_images: int = 100,
    images: int | None = None,
    most_files: int = 60,
    benchmark: BenchOptions | None = None,
    verbose: int = 1,
) -> Quantized:
    """Quantise a Paddle program or any ONNX file to int8, without training.

    The file is calibrated on real inputs, its biases are corrected, and what is written is checked, evaluated, timed
    and judged as after a ``fit``: ``folder/name`` holds ``model.int8.onnx``, ``model.onnx`` (the float file, with batch
    norms folded) and ``deploy.json``, ``folder`` the record and the report. A Paddle program is converted to ONNX; no
    int8 program of Paddle is written.

    The metric is the accuracy (``"acc"``) where there are labels. Without them it is the share of images on which the
    files give the same class as the float model (``"agreement"``), and for other outputs than classes ``1 - RMS
    error / RMS`` (``"fidelity"``).

    With ``metric_drop`` the file that ships keeps it: layers are put back to float (with fewer than 8 ``weight_bits``
    first to 8 bits) until it does, the fewest that were found. A call that was killed goes on where it was when it is
    repeated.

    Args:
        model: An ``.onnx`` file, or a Paddle program, its prefix or its folder.
        data: A folder of pictures (labels are its sub-folders, or ``list.txt`` with a path and a class number a line),
            a ``.npy`` or ``.npz`` file (arrays by input name, labels as ``label``), an array or several (by input
            name, or in the file's order, labels last), or a data set or loader of such.
        budget: Limits to judge by; ``None`` for none but ``metric_drop``. Its ``engine`` is the one that ships.
        metric_drop: Accepted drop of the metric on the engine that ships, as a share of the float file's, in [0, 1);
            ``None`` puts no layer back.
        folder: Folder of this and further runs; created if missing.
        name: Name of the run and its subfolder; ``None`` for that of the file, or its folder.
        weight_bits: Weight bits, 2-8.
        activation_bits: Activation bits, 2-8.
        reduce_range: Whether 8-bit weights use half their range, on which no CPU saturates.
        calibration: How the ranges of activations are chosen: ``"min_max"``, ``"percentile"``, ``"mse"`` (the smallest
            squared error of quantisation) or ``"kl"`` (as TensorRT calibrates); ``None`` for ``"mse"``, or
            ``"percentile"`` with ``alpha_percentile``.
        alpha_percentile: Percentile of the magnitudes, in (50, 100]; ``None`` for 99.9.
        bias_correction: Whether to correct biases per channel, layer by layer (Nagel et al. 2019, arXiv:1906.04721).
        quantize_outputs: Whether outputs of convolutions are quantised too, which ONNX Runtime needs to compute in
            int8; ``None`` measures which is faster on the engine that ships.
        skip: Globs of layers to leave in float. A layer is named by its weight (``conv.weight`` gives ``conv``), else
            by its node.
        metric: A metric of Paddle to compute on the outputs and labels; ``None`` for the above.
        preprocess: How pictures become inputs: ``size`` (pixels), ``crop`` (share of the shorter side), ``mean``
            and ``std`` (for pixels of 0-255); what is left out is taken from the file's metadata or ``deploy.json``.
        calibration_images: Number of images to calibrate on.
        images: Largest number of images in all; ``None`` for all.
        most_files: Largest number of files that are made to keep ``metric_drop``.
        benchmark: A `BenchOptions`; ``None`` for ONNX Runtime and OpenVINO with the defaults.
        verbose: 1 shows progress, 0 nothing.

    Returns:
        Record, verdict, and the layers that stay in float.

    Raises:
        TypeError: ``model`` is not a path, or data of another kind.
        ValueError: An option out of range, a file that is quantised already or holds no product, or data that do not
            fit it.
        ExportError: The program cannot be converted, or nothing that was written computes what it should.
        MissingDependencyError: ``onnx`` or ONNX Runtime is not installed.
        OSError: The folder is not writable.

    Example:
        >>> made = quantize("net.onnx", "pictures", Budget(size_mb=5), metric_drop=0.01)  # doctest: +SKIP
        >>> print(made.verdict, made.in_float)  # doctest: +SKIP
    """
    if not isinstance(model, (str, Path)):
        raise TypeError(
            f"model must be the path of an ONNX file or a Paddle program, got {type(model).__name__}: export a network "
            "with ExportBenchCallback first, or quantise it with ptq_int8."
        )
    config = ptq_defaults(
        PACTConfig(
            weight_bits=weight_bits,
            activation_bits=activation_bits,
            reduce_range=reduce_range,
            calibration=calibration,
            alpha_percentile=alpha_percentile,
        )
    )
    if metric_drop is not None:
        words, remedy = "a share of the float metric in [0, 1)", "give 0.01 for one per cent"
        check_number("metric_drop", metric_drop, lambda drop: 0 <= drop < 1, words, remedy=remedy)
    check_whole("calibration_images", calibration_images, 1, remedy="give 100")
    check_whole("most_files", most_files, 2, remedy="leave it out for 60")
    if images is not None:
        check_whole("images", images, 1, remedy="leave it out for all")
    for option, value in (("bias_correction", bias_correction), ("quantize_outputs", quantize_outputs)):
        if value is not None and not isinstance(value, bool):
            raise TypeError(f"{option} must be True or False, got {value!r}: leave it out for the default.")
    if isinstance(skip, str):
        raise TypeError(f"skip must be a list of globs, got {skip!r}: write skip=[{skip!r}].")
    artefact = find_model(model)
    with undisturbed(), tempfile.TemporaryDirectory() as work:
        return _Quantization(
            artefact=artefact,
            data=data,
            budget=budget or Budget(size_mb=None, latency_ms=None),
            metric_drop=metric_drop,
            folder=Path(folder),
            name=name or _name_of(artefact),
            config=config,
            bias_correction=bias_correction,
            quantize_outputs=quantize_outputs,
            skip=tuple(skip),
            metric=metric,
            preprocess=preprocess,
            calibration_images=calibration_images,
            images=images,
            most_files=most_files,
            options=_onnx_options(benchmark or BenchOptions()),
            work=Path(work),
            verbose=verbose,
        ).run()


def _name_of(artefact: Artefact) -> str:
    generic = artefact.path.stem in ("inference", "model", "__model__")
    return artefact.path.resolve().parent.name if generic else artefact.path.stem


def _onnx_options(options: BenchOptions) -> BenchOptions:
    if options.engines is None:
        return replace(options, engines=["onnxruntime", "openvino"])
    other = [name for name in options.engines if ENGINES[name].kind != "onnx"]
    if other:
        raise ValueError(
            f"quantize writes ONNX files, which {other} cannot read: name some of onnxruntime, openvino, mnn, ncnn."
        )
    return options


@dataclass(frozen=True, kw_only=True)
class _Quantization:
    """One run, with the arguments of `quantize`."""

    artefact: Artefact
    data: Any
    budget: Budget
    metric_drop: float | None
    folder: Path
    name: str
    config: PACTConfig
    bias_correction: bool
    quantize_outputs: bool | None
    skip: tuple[str, ...]
    metric: paddle.metric.Metric | None
    preprocess: Mapping[str, Any] | None
    calibration_images: int
    images: int | None
    most_files: int
    options: BenchOptions
    work: Path
    verbose: int

    def run(self) -> Quantized:
        check_writable(self.folder)
        check_replaceable(self.folder / self.name)
        check_appendable(self.folder / "runs.jsonl")
        engine = self._engine
        source = self._source
        self._say(f"{self.artefact.path}: {len(source.products)} layers to quantise, {len(self._samples)} images")
        for path, why in list(self._samples.broken.items())[:5]:
            self._say(f"  left out: {path}: {why}")
        files = self._files
        state = Measured(self.folder / f".{self.name}.quantize.json", self._settings)
        if state.resumed:
            self._say("  an interrupted run is continued")
        scheme = self._fastest_places(files, engine, state)
        scheme, points, notes = self._accurate(files, scheme, state)
        record = self._written(files, scheme, points, notes)
        append_record(self.folder / "runs.jsonl", record)
        state.delete()
        write_report(self.folder, budget=self._judged)
        made = Quantized(
            record=record,
            folder=self.folder / self.name,
            budget=self._judged,
            in_float=tuple(sorted({*source.left, *scheme.skip})),
            raised=tuple(sorted(set(scheme.raised) - set(scheme.skip))),
        )
        self._say(str(made))
        return made

    # ---- what is given

    @cached_property
    def _engine(self) -> str:
        """Return the name of the engine that ships."""
        chosen = [engine for engine in self.options.chosen() if not missing_reason(engine)]
        if self.budget.engine is not None:
            if self.budget.engine not in [engine.name for engine in self.options.chosen()]:
                raise ValueError(
                    f"The budget's engine {self.budget.engine!r} is none of {[e.name for e in self.options.chosen()]}: "
                    "name one that reads ONNX files."
                )
            chosen = [engine for engine in chosen if engine.name == self.budget.engine]
        if not chosen:
            raise MissingDependencyError(
                "quantize needs an engine for ONNX files: pip install 'paddlelite_callbacks[deploy]'."
            )
        return chosen[0].name

    @cached_property
    def _float_file(self) -> Artefact:
        """Return the ONNX file of the float model."""
        if self.artefact.precision != "fp32":
            raise ValueError(
                f"{self.artefact.path} holds {self.artefact.precision} weights: give the fp32 file that it was made "
                "from."
            )
        if self.artefact.kind == "onnx":
            return self.artefact
        self._say("Converting the program to ONNX")
        return export_onnx(self.artefact, self.work / "program.onnx")

    @cached_property
    def _source(self) -> FloatOnnx:
        source = read_float_onnx(self._float_file.path)
        if not source.products:
            why = "; ".join(f"{name}: {reason}" for name, reason in source.left.items()) or "it has none"
            raise ValueError(
                f"{self.artefact.path} has no convolution or matrix product with a constant weight to quantise ({why})."
            )
        wrong = [pattern for pattern in self.skip if not any(matches_any(name, [pattern]) for name in source.products)]
        if wrong:
            raise ValueError(f"skip={wrong} matches no layer; the layers are {list(source.products)[:20]}.")
        return source

    @cached_property
    def _metadata(self) -> dict[str, Any]:
        return read_metadata(self.artefact)

    @cached_property
    def _declared(self) -> dict[str, tuple[list[int], str]]:
        return declared_inputs(self._float_file)

    @cached_property
    def _rows(self) -> int | None:
        """Return the batch size that the file fixes; ``None`` for any."""
        shape = next(iter(self._declared.values()))[0]
        return int(shape[0]) if shape and shape[0] > 0 else None

    @cached_property
    def _samples(self) -> SampleData:
        return read_samples(
            self.data,
            self._declared,
            preprocess=self.preprocess,
            metadata=self._metadata,
            most=self.images,
            work=self.work,
            verbose=self.verbose,
        )

    @cached_property
    def _split(self) -> tuple[np.ndarray, np.ndarray]:
        return self._samples.split(self.calibration_images)

    @cached_property
    def _sample(self) -> list[np.ndarray]:
        """Return a few real inputs, for checks and timing."""
        rows = self._split[1][:_CHECKED]
        return list(self._samples.rows(rows).values())

    @cached_property
    def _settings(self) -> dict[str, Any]:
        return {
            "files": [sha256_of(file) for file in self.artefact.files],
            "images": len(self._samples),
            "split": [len(part) for part in self._split],
            "config": repr(self.config),
            "bias_correction": self.bias_correction,
            "quantize_outputs": self.quantize_outputs,
            "skip": list(self.skip),
            "engine": self._engine,
            "metric": self._measure.name,
            "preprocess": repr(self._samples.preprocess),
            "data": self._digest,
        }

    @property
    def _digest(self) -> str:
        """Return a checksum of some inputs and of all labels."""
        rows = np.unique(np.linspace(0, len(self._samples) - 1, _CHECKED).round().astype(int))
        digest = hashlib.sha256()
        for array in (*self._samples.rows(rows).values(), self._samples.labels):
            digest.update(b"none" if array is None else np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    # ---- metric

    @cached_property
    def _float_predict(self) -> Predict:
        return load_model(self._engine, self._source.model, self.work, threads=self._threads, rows=self._rows)

    @cached_property
    def _float_outputs(self) -> list[np.ndarray]:
        return self._outputs(self._float_predict, "float model")

    @property
    def _threads(self) -> int:
        return self.options.settings[0][0]

    def _outputs(self, predict: Predict, what: str) -> list[np.ndarray]:
        """Return the outputs for all evaluated images."""
        rows = self._split[1]
        batches = self._samples.batches(rows, self._rows or _BATCH)
        count = -(-len(rows) // (self._rows or _BATCH))
        bar = tqdm(batches, desc=what, total=count, unit="batch", leave=False, disable=not self.verbose)
        parts = [predict(list(batch.values())) for batch in bar]
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    @cached_property
    def _measure(self) -> FileMetric:
        """Return the metric that is judged."""
        rows = self._split[1]
        labels = self._samples.labels
        if self.metric is not None:
            return self._given_metric(self.metric, rows)
        first = self._float_outputs[0]
        classes = first.ndim == 2 and first.shape[1] > 1
        if labels is not None and classes:
            wanted = labels[rows].reshape(-1)
            if wanted.max() >= first.shape[1]:
                raise ValueError(
                    f"The labels go up to {wanted.max()}, the file has {first.shape[1]} classes: name the folders of "
                    "the classes like the labels in its metadata, or by their numbers."
                )
            return FileMetric(name=_ACCURACY, of=self._share_of(wanted), samples=len(rows))
        if classes:
            return FileMetric(name=_AGREEMENT, of=self._share_of(first.argmax(axis=1)), samples=len(rows))
        expected = self._float_outputs
        return FileMetric(
            name=_FIDELITY,
            of=lambda predict: 1.0 - relative_error(expected, self._outputs(predict, "outputs")),
            samples=len(rows),
        )

    def _share_of(self, wanted: np.ndarray) -> Callable[[Predict], float]:
        return lambda predict: float(np.mean(self._outputs(predict, "outputs")[0].argmax(axis=1) == wanted))

    def _given_metric(self, metric: paddle.metric.Metric, rows: np.ndarray) -> FileMetric:
        labels = self._samples.labels
        if labels is None:
            raise ValueError(f"metric={type(metric).__name__} needs labels, and the data have none: leave it out.")

        def of(predict: Predict) -> float:
            batches = ([*self._samples.rows([i]).values(), labels[[i]]] for i in rows)
            found = measure_metrics(
                {("file", "int8"): predict}, [metric], batches, inputs=len(self._declared), verbose=0
            )[0]
            if found.error:
                raise ExportError(f"The metric {type(metric).__name__} failed: {found.error}.")
            return next(iter(found.metrics.values()))

        names = metric.name()
        name = names if isinstance(names, str) else names[0]
        return FileMetric(name=name, of=of, samples=len(rows), higher_is_better=not falls_with_quality(name))

    @cached_property
    def _baseline(self) -> float:
        return self._measure.of(self._float_predict)

    @cached_property
    def _judged(self) -> Budget:
        """Return the budget with the float file's metric as baseline."""
        given = self.budget
        if given.metric is not None and given.metric != self._measure.name:
            raise ValueError(f"Unknown metric {given.metric!r} in the budget; measured is {self._measure.name!r}.")
        if given.baseline is not None or given.metric_limit is not None:
            return given
        if self.metric_drop is None or self._baseline == 0:
            return replace(given, metric=self._measure.name, metric_drop=None)
        return replace(given, metric=self._measure.name, baseline=self._baseline, metric_drop=self.metric_drop)

    def _keeps(self, value: float) -> bool:
        falls = not self._measure.higher_is_better
        return keeps_metric(value, self._baseline, self.metric_drop or 0.0, falls=falls)

    # ---- files

    @cached_property
    def _files(self) -> GraphFiles:
        calibration = self._split[0]
        batches = self._samples.batches(calibration, self._rows or 8)
        count = -(-len(calibration) // (self._rows or 8))
        method, percentile = self.config.resolved_calibration
        with tqdm(total=count, desc="calibration", unit="batch", leave=False, disable=not self.verbose) as bar:
            seen = observe_model(
                self._source,
                batches,
                percentile=percentile if method == "percentile" else 100.0,  # others need none, and a sort is slow
                threads=self._threads,
                progress=bar.update,
            )
        return GraphFiles(
            self._source,
            seen,
            self._samples,
            calibration,
            method=method,
            bits=self.config.activation_bits,
            correct=self.bias_correction,
            threads=self._threads,
            verbose=self.verbose,
        )

    @cached_property
    def _timer(self) -> FileTimer:
        return FileTimer(self._float_predict, self._sample, self._rows, self.options)

    def _fastest_places(self, files: GraphFiles, engine: str, state: Measured) -> GraphScheme:
        """Return the scheme, with the outputs quantised where that is faster."""
        scheme = GraphScheme(
            weight_bits=self.config.weight_bits,
            activation_bits=self.config.activation_bits,
            reduce_range=self.config.reduce_range,
            skip=tuple(name for name in files.source.products if matches_any(name, self.skip)),
        )
        if self.quantize_outputs is not None:
            return replace(scheme, quantize_outputs=self.quantize_outputs)
        if state.quantize_outputs is not None:
            return replace(scheme, quantize_outputs=state.quantize_outputs)
        plain = files.model(scheme, correct=False)
        more = files.model(replace(scheme, quantize_outputs=True), correct=False)
        found = self._timer.ratios({False: self._loaded(plain), True: self._loaded(more)})
        faster = found[True] < _FASTER * found[False]
        self._say(
            f"  {engine}: {found[False]:.2f} of the time of fp32, with quantised outputs {found[True]:.2f}: "
            f"quantize_outputs={faster}"
        )
        state.keep_outputs(faster)
        return replace(scheme, quantize_outputs=faster)

    def _loaded(self, model: Any) -> Predict:
        return load_model(self._engine, model, self.work, threads=self._threads, rows=self._rows)

    def _accurate(
        self, files: GraphFiles, scheme: GraphScheme, state: Measured
    ) -> tuple[GraphScheme, list[LayerPoint], list[str]]:
        """Put layers back until the file keeps the limit."""
        if self.metric_drop is None:
            return scheme, [], []
        curve: list[LayerPoint] = []
        ranked = self._ranked(files, scheme, state)
        if scheme.weight_bits < 8:
            found = self._searched(files, scheme, state, ranked, _TO_8_BITS)
            curve += _curve(found, _TO_8_BITS)
            if found.best is not None:  # the fewest: bits of weights change no time
                best = found.best.layers
                return (
                    replace(scheme, raised=best),
                    _marked(curve, best, _TO_8_BITS),
                    self._told(found, best, _TO_8_BITS),
                )
            scheme = replace(scheme, raised=frozenset(files.source.products))
        found = self._searched(files, scheme, state, ranked, _TO_FLOAT)
        curve += _curve(found, _TO_FLOAT)
        if found.best is None or len(found.best.layers) == len(ranked):
            return (
                scheme,
                _marked(curve, frozenset(), _TO_FLOAT),
                [
                    f"No int8 file was found that keeps {self._measure.name} within {100 * self.metric_drop:g} % of "
                    f"{self._baseline:.4g}: ship model.onnx, or accept more."
                ],
            )
        best = self._quickest(files, found, scheme)
        return _skipping(scheme, best), _marked(curve, best, _TO_FLOAT), self._told(found, best, _TO_FLOAT)

    def _ranked(self, files: GraphFiles, scheme: GraphScheme, state: Measured) -> list[str]:
        names = [name for name in files.source.products if name not in scheme.skip]
        first = self._evaluated(files, scheme, state, frozenset(), _TO_8_BITS if scheme.weight_bits < 8 else _TO_FLOAT)
        if not self._keeps(first.metric):  # else no layer is put back
            files.sensitivities(scheme, state.sensitivity, state.keep_sensitivity)
        return sorted(names, key=lambda name: -state.sensitivity.get(name, 0.0))

    def _searched(
        self, files: GraphFiles, scheme: GraphScheme, state: Measured, ranked: Sequence[str], to: str
    ) -> FoundLayers:
        return search_layers(
            ranked,
            lambda layers: self._evaluated(files, scheme, state, layers, to),
            self._keeps,
            higher_is_better=self._measure.higher_is_better,
            most=self.most_files,
        )

    def _evaluated(
        self, files: GraphFiles, scheme: GraphScheme, state: Measured, layers: frozenset[str], to: str
    ) -> SearchPoint:
        """Return metric and latency of the file with some layers put back."""
        if (known := state.point(to, layers)) is not None:
            return known
        if to == _TO_FLOAT and len({*scheme.skip, *layers}) == len(files.source.products):  # the float file
            self._timer.ratios({})
            point = SearchPoint(layers=layers, metric=self._baseline, latency_ms=self._timer.fp32_ms)
        else:
            changed = replace(scheme, raised=layers) if to == _TO_8_BITS else _skipping(scheme, layers)
            predict = self._loaded(files.model(changed))
            metric = self._measure.of(predict)
            ratio = self._timer.ratios({"file": predict})["file"]
            point = SearchPoint(layers=layers, metric=metric, latency_ms=ratio * self._timer.fp32_ms)
        state.keep_point(to, point)
        self._say(
            f"  {len(layers)} layers in {to}: {self._measure.name} {point.metric:.4f} (float {self._baseline:.4f})"
            + ("" if point.latency_ms is None else f", {point.latency_ms:.2f} ms")
        )
        return point

    def _quickest(self, files: GraphFiles, found: FoundLayers, scheme: GraphScheme) -> frozenset[str]:
        """Return the fewest layers, or others that keep the limit with a faster file."""
        fewest, *others = found.passing(self._keeps)
        others = [p for p in others if len(p.layers) < len(files.source.products) and p.latency_ms is not None]
        rivals = sorted(others, key=lambda p: p.latency_ms or math.inf)[:2]
        rivals = [p for p in rivals if (p.latency_ms or math.inf) < _FASTER * (fewest.latency_ms or math.inf)]
        if not rivals:
            return fewest.layers
        predicts = {p.layers: self._loaded(files.model(_skipping(scheme, p.layers))) for p in (fewest, *rivals)}
        rounds = [self._timer.ratios(predicts) for _ in range(_ROUNDS)]
        shares = {p.layers: max(one[p.layers] / one[fewest.layers] for one in rounds) for p in rivals}
        best = min(shares, key=lambda layers: shares[layers])
        return best if shares[best] < _FASTER else fewest.layers

    def _told(self, found: FoundLayers, best: frozenset[str], to: str) -> list[str]:
        names = ", ".join(sorted(best)) or "none"
        notes = [
            f"Layers put back to {to} to keep {self._measure.name} within {100 * (self.metric_drop or 0):g} %: {names}."
        ]
        if not found.complete:
            notes.append(f"The search ended after {len(found.points)} files: fewer layers may do (most_files).")
        return notes

    # ---- the end

    def _written(
        self, files: GraphFiles, scheme: GraphScheme, points: Sequence[LayerPoint], notes: Sequence[str]
    ) -> Record:
        """Write, check, evaluate and time the files."""
        home = self.folder / self.name
        known = dict(self._metadata)
        if self._samples.preprocess is not None:
            used = self._samples.preprocess
            known["preprocess"] = {k: v for k, v in vars(used).items() if v is not None} | known.get("preprocess", {})
        sidecar = checked_sidecar_options(known)
        with staged_export(home) as stage:
            model = files.model(scheme)
            artefacts = [
                _stored(self._source.model, stage / "model.onnx", "fp32"),
                _stored(model, stage / "model.int8.onnx", "int8"),
            ]
            describe_onnx(artefacts, sidecar)
            names = list(self._declared)
            references = {
                "fp32": Reference(self._original_outputs()),
                "int8": graph_reference(model, dict(zip(names, self._sample, strict=True))),
            }
            loaded = load_files(artefacts, self._sample, references, self.options, rows=self._rows)
            remarks = self._remarks(artefacts, loaded)
            wrong = [a for a in artefacts if not any(c.passed and c.precision == a.precision for c in loaded.checks)]
            if wrong:
                said = "; ".join(c.verdict for c in loaded.checks if not c.passed) or "no engine could run it"
                raise ExportError(f"{wrong[0].path.name} computes something else than {self.artefact.path}: {said}.")
            write_sidecar(
                stage,
                artefacts,
                inputs=[
                    {"name": key, "shape": [None if size < 0 else size for size in shape], "dtype": kind}
                    for key, (shape, kind) in self._declared.items()
                ],
                outputs=described_outputs(artefacts, references["fp32"].outputs, self._specs),
                options=sidecar,
                verdicts=file_verdicts(loaded.checks, loaded.failed),
                quantization={
                    "method": f"ptq, {self.config.resolved_calibration[0]}",
                    "weight_bits": scheme.weight_bits,
                    "reduce_range": scheme.reduce_range,
                    "activation_bits": scheme.activation_bits,
                    "activation_symmetric": False,
                    "quantize_outputs": scheme.quantize_outputs,
                    "in_float": sorted({*self._source.left, *scheme.skip}),
                },
            )
            metrics = self._file_metrics(loaded)
            macs, weights = self._cost(artefacts[0])
            timing = time_files(loaded, self._sample, self.options, macs=macs, verbose=self.verbose)
            figures = [replace(ArtefactFigures.of(a), path=str(home / a.path.name)) for a in artefacts]
            saturation = saturation_of("onnx", "int8", artefacts[1].path)
        return Record(
            name=self.name,
            created=now(),
            parameters=weights,
            artefacts=tuple(figures),
            latencies=timing.latencies,
            checks=loaded.checks,
            metrics={},
            machine=this_machine(),
            command=shlex.join(sys.orig_argv),
            notes=(
                *self._advice(loaded, metrics, timing, figures),
                *notes,
                *self._scope(scheme, references),
                *([] if saturation is None or not saturation.channels else [saturation.note("model.int8.onnx")]),
                *timing.notes,
            ),
            file_metrics=metrics,
            macs=macs,
            roofline_gflops={str(threads): value for threads, value in timing.roofline.items()},
            config=self._config(scheme),
            remarks=remarks,
            layer_curve=tuple(points),
        )

    @cached_property
    def _specs(self) -> list[Any]:
        return [
            paddle.static.InputSpec([None if size < 0 else size for size in shape], dtype=kind, name=name)
            for name, (shape, kind) in self._declared.items()
        ]

    def _original_outputs(self) -> list[np.ndarray]:
        """Return the outputs of the given file for the sample, as it stands."""
        engine = "paddle" if self.artefact.kind == "paddle" else "onnxruntime"
        if (why := crash_of(engine, self.artefact, self._sample)) is not None:
            raise EngineError(f"{why}.")
        with hushed_stdout():
            predict = ENGINES[engine].load(self.artefact, threads=1)
            return in_batches(predict, self._rows)(self._sample)

    def _remarks(self, artefacts: Sequence[Artefact], loaded: LoadedFiles) -> tuple[str, ...]:
        remarks = []
        for artefact in artefacts:
            wrong = [c for c in loaded.checks if c.precision == artefact.precision and not c.passed]
            remarks += likely_causes(artefact, wrong)
        return tuple(remarks)

    def _file_metrics(self, loaded: LoadedFiles) -> tuple[FileMetrics, ...]:
        rows = []
        agreement = self._measure.name == _ACCURACY
        for (engine, precision), (predict, _) in loaded.ready.items():
            run = in_batches(predict, self._rows)
            metrics = {self._measure.name: self._measure.of(run)}
            if agreement:
                metrics[_AGREEMENT] = self._share_of(self._float_outputs[0].argmax(axis=1))(run)
            rows.append(FileMetrics(engine=engine, precision=precision, metrics=metrics, samples=self._measure.samples))
        return tuple(rows)

    def _cost(self, artefact: Artefact) -> tuple[int | None, int]:
        try:
            return onnx_cost(artefact.path, [item[: self._rows or 1].shape for item in self._sample])
        except Exception:  # unknown shapes: cost not counted
            return None, int(artefact.size_mb * 1e6 / 4)

    def _advice(
        self,
        loaded: LoadedFiles,
        metrics: Sequence[FileMetrics],
        timing: Timing,
        figures: Sequence[ArtefactFigures],
    ) -> tuple[str, ...]:
        main = [r for r in timing.latencies if (r.threads, r.batch_size) == self.options.settings[0]]
        return int8_notes(
            main,
            agreeing={(check.engine, check.precision) for check in loaded.checks if check.passed},
            file_metrics=metrics,
            noisy=any(note.startswith("Noise") for note in timing.notes),
            float_layers=[name for figure in figures for name in figure.float_layers or ()],
        )

    def _scope(self, scheme: GraphScheme, references: Mapping[str, Reference]) -> list[str]:
        error = relative_error(references["fp32"].outputs, references["int8"].outputs)
        count = len(self._source.products) - len(scheme.skip)
        calibrated, evaluated = self._split
        apart = "other" if len(np.intersect1d(calibrated, evaluated)) == 0 else "all"
        notes = [
            f"{count} of {len(self._source.products) + len(self._source.left)} layers in int8, calibrated on "
            f"{len(calibrated)} images ({self.config.resolved_calibration[0]}), evaluated on {len(evaluated)} "
            f"({apart}); RMS error of the outputs {error:.3g} of their RMS.",
        ]
        notes += [f"{name} stays in float: {why}." for name, why in list(self._source.left.items())[:10]]
        if self.artefact.kind == "paddle":
            notes.append("The int8 file is ONNX; no int8 program of Paddle is written without the network.")
        if self._samples.broken:
            notes.append(f"{len(self._samples.broken)} pictures cannot be read and were left out.")
        return notes

    def _config(self, scheme: GraphScheme) -> dict[str, Any]:
        return retraining_config(
            model=str(self.artefact.path.resolve()),
            data=str(self.data) if isinstance(self.data, (str, Path)) else type(self.data).__name__,
            quantize={
                "weight_bits": scheme.weight_bits,
                "activation_bits": scheme.activation_bits,
                "reduce_range": scheme.reduce_range,
                "calibration": self.config.resolved_calibration[0],
                "bias_correction": self.bias_correction,
                "quantize_outputs": scheme.quantize_outputs,
                "skip": sorted(scheme.skip),
                "raised": sorted(scheme.raised),
                "metric_drop": self.metric_drop,
                "calibration_images": len(self._split[0]),
                "images": len(self._samples),
            },
            budget=stored_budget(self._judged),
        )

    def _say(self, text: str) -> None:
        if self.verbose:
            write_lines(text)


def _skipping(scheme: GraphScheme, layers: frozenset[str]) -> GraphScheme:
    return replace(scheme, skip=frozenset({*scheme.skip, *layers}))


def _curve(found: FoundLayers, to: str) -> list[LayerPoint]:
    return [
        LayerPoint(layers=tuple(sorted(p.layers)), metric=p.metric, latency_ms=p.latency_ms, to=to)
        for p in found.points
    ]


def _marked(curve: Sequence[LayerPoint], best: frozenset[str], to: str) -> list[LayerPoint]:
    return [replace(p, chosen=p.to == to and frozenset(p.layers) == best) for p in curve]


def _stored(model: Any, path: Path, precision: str) -> Artefact:
    compact = OnnxGraph(copied_model(model)).to_model()
    sign_onnx(compact)
    path.write_bytes(compact.SerializeToString(deterministic=True))
    return Artefact(kind="onnx", path=path, files=(path,), precision=precision)
