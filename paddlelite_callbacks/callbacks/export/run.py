"""Run one export: into a staged folder, with record and report."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import Tensor
from paddle.nn import Layer
from paddle.static import InputSpec

from paddlelite_callbacks.benchmark.options import BenchOptions
from paddlelite_callbacks.callbacks.export.fit_facts import batch_specs, file_evaluation, fit_config
from paddlelite_callbacks.callbacks.export.history import History
from paddlelite_callbacks.callbacks.export.pipeline import HandedOut, hand_out
from paddlelite_callbacks.callbacks.export.record import draw_report, layer_curve_of, record_of
from paddlelite_callbacks.callbacks.export.run_folder import LOG, WEIGHTS, staged_export, write_training
from paddlelite_callbacks.callbacks.session import FitSession
from paddlelite_callbacks.errors import ExportError, require
from paddlelite_callbacks.export.eval_copy import eval_copy, eval_outputs
from paddlelite_callbacks.export.lite import LiteOptions
from paddlelite_callbacks.export.used_inputs import take_inputs_, used_inputs
from paddlelite_callbacks.export.variants import said_of
from paddlelite_callbacks.hapi import input_count, metric_names
from paddlelite_callbacks.nn.surgery import same_modes
from paddlelite_callbacks.report.gate import Budget
from paddlelite_callbacks.report.record import Record, append_record
from paddlelite_callbacks.utils.isolation import undisturbed
from paddlelite_callbacks.utils.peak_memory import MemoryMeter
from paddlelite_callbacks.workarounds.data_loader import ended_with_the_epoch, loader_of

__all__ = ["ExportRun", "Trained", "one_export_at_a_time", "trained_before"]

_log = logging.getLogger(__name__)
_ROWS = 8  # images of the first batch to keep, for the checks
_one_at_a_time = threading.RLock()
_NO_BEST = "which='best' found no evaluation in this fit: the last weights were exported."


@contextmanager
def one_export_at_a_time() -> Iterator[None]:
    """Wait for exports in other threads, which would disturb traces and timings."""
    with _one_at_a_time:
        yield


@dataclass(kw_only=True)
class Trained:
    """Trained network with the history of its training.

    Args:
        model: Prepared model, or a model with a network only.
        history: Metrics of its training.
        training: Session of the ``fit``; ``None`` without a ``fit``.
        params: ``Callback.params`` of hapi.
        sample: Images of the first batch, one array per input; ``None`` before the first batch.
        rows: Number of images in that batch.
    """

    model: paddle.Model
    history: History
    training: FitSession | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    sample: list[np.ndarray] | None = None
    rows: int = 1

    def keep_sample(self, inputs: Sequence[Tensor | np.ndarray]) -> None:
        """Keep a few images of the first batch.

        Args:
            inputs: Batch of each input.
        """
        if self.sample is None:
            _check_tensors(inputs)
            self.rows = int(inputs[0].shape[0])
            first = [item[:_ROWS] for item in inputs]
            self.sample = [i.detach().cpu().numpy() if isinstance(i, Tensor) else np.asarray(i) for i in first]


@dataclass(frozen=True, kw_only=True)
class ExportRun:
    """Settings of one export, from the arguments of `ExportBenchCallback`.

    Args:
        folder: Folder of all runs.
        name: Name of this run.
        input_spec: See `ExportOptions`.
        options: Options of the benchmark.
        eval_data: Data set or loader; ``None`` or ``False`` for no evaluation of the files.
        last: Whether to export the last weights instead of the best.
        fp16: See `ExportOptions`.
        forms: See `ExportOptions`.
        onnx_opset: See `ExportOptions`.
        lite: Targets and ``opt`` of the files for Paddle Lite; ``None`` for none.
        dynamic_batch: See `ExportOptions`.
        sidecar: Result of `checked_sidecar_options`.
        strict: See `ExportOptions`.
        budget: Budget for the report.
        report: Whether to write the report.
        verbose: 1 shows progress bars, 0 nothing.
    """

    folder: Path
    name: str
    input_spec: Sequence[InputSpec] | None
    options: BenchOptions
    eval_data: Any
    last: bool
    fp16: bool
    forms: Sequence[str]
    onnx_opset: int
    lite: LiteOptions | None
    dynamic_batch: bool
    sidecar: Mapping[str, Any]
    strict: bool
    budget: Budget | None
    report: bool
    verbose: int

    def make(self, trained: Trained, notes: Sequence[str]) -> tuple[Record, Exception | None]:
        """Write weights and log, export, check and time; add the record and report.

        Args:
            trained: Network to export; its model is not changed.
            notes: Notes for the record.

        Returns:
            The record, and the error that `ExportBenchCallback` raises; ``None`` if there is none.

        Raises:
            ExportError: No batch was seen: nothing was trained, and nothing is written.
            OSError: The weights, or the record of a successful export, could not be written.
        """
        if trained.sample is None:
            raise ExportError(
                "No training batch was seen, so the inputs are unknown: nothing was exported. Train on at least one "
                "batch."
            )
        home = self.folder / self.name
        _import_engines(self.options)  # once per process: not part of an export's memory
        with one_export_at_a_time(), MemoryMeter("writing") as meter:
            self._write_training(home, trained)
            made, failure = HandedOut(), None
            try:
                with staged_export(home) as stage:
                    made = self._made_in(stage, trained, trained.sample, meter)
                    _check_something(made)  # raises, and leaves the folder as it is
                    record = self._record_of(made, None, trained, notes)
            except Exception as error:  # the trained weights must not be lost
                failure = error
                nothing = HandedOut(errors=made.errors, checks=made.checks, macs=made.macs)
                record = self._record_of(nothing, failure, trained, notes)
            else:
                failure = self._refused(made)
        try:
            append_record(self.folder / "runs.jsonl", record)
        except OSError as error:
            if failure is None:
                raise
            _log.warning("The failed export was not recorded: %s.", error)
        if self.report:
            draw_report(self.folder, self.budget)
        return record, failure

    def _refused(self, made: HandedOut) -> ExportError | None:
        """Return the error of ``strict``, raised after all correct files are written."""
        if not self.strict or not made.violations:
            return None
        return ExportError(
            f"strict=True, but not every file is right on every engine: {'; '.join(made.violations)}. The correct "
            f"files are written to {self.folder / self.name}. {' '.join(made.remarks)}".rstrip()
        )

    def _write_training(self, home: Path, trained: Trained) -> None:
        network, history = trained.model.network, trained.history
        best = history.state is not None
        other = best and bool(history.rows) and history.epoch != history.rows[-1]["epoch"]
        write_training(
            home,
            history.state if history.state is not None else network.state_dict(),
            last=network.state_dict() if other else None,
            log=None if trained.training is None else history.rows,
        )

    def _made_in(self, stage: Path, trained: Trained, sample: list[np.ndarray], meter: MemoryMeter) -> HandedOut:
        model, history = trained.model, trained.history
        inputs = [paddle.to_tensor(item) for item in sample]
        with undisturbed(), history.best_weights(model.network):
            own = eval_outputs(model.network, inputs)
            network = eval_copy(model.network, inputs, expected=own)
            used = used_inputs(network, inputs, own)
            take_inputs_(network, inputs, used)
        sample = [sample[i] for i in used]
        return hand_out(
            network,
            stage,
            sample=sample,
            own=own,
            input_spec=batch_specs(
                self.input_spec,
                sample,
                rows=None if self.dynamic_batch else self.options.settings[0][1],
                used=used,
            ),
            options=self.options,
            fp16=self.fp16,
            pdmodel="pdmodel" in self.forms,
            onnx_opset=self.onnx_opset,
            lite=self.lite,
            evaluation=file_evaluation(model, self.eval_data, batch_size=trained.rows, used=used),
            sidecar=self.sidecar,
            verbose=self.verbose,
            meter=meter,
        )

    def _record_of(self, made: HandedOut, failure: Exception | None, trained: Trained, notes: Sequence[str]) -> Record:
        model, history, home = trained.model, trained.history, self.folder / self.name
        without = not self.last and history.epoch is None and trained.training is not None
        record = record_of(
            made,
            model.network,
            home=home,
            weights=WEIGHTS,
            log=None if trained.training is None else LOG,
            history=history,
            last=self.last,
            setting=self.options.settings[0],
            notes=[*notes, *made.notes, *([_NO_BEST] if without else [])],
            config=fit_config(model, {**trained.params, "batch_size": trained.rows}, trained.training, self.budget),
            failure=None if failure is None else said_of(failure),
        )
        return replace(record, layer_curve=layer_curve_of(trained.training))


def _import_engines(options: BenchOptions) -> None:
    packages = [engine.package for engine in options.chosen() if engine.kind == "onnx"]
    for package in [*packages, "onnx"] if packages else []:
        with contextlib.suppress(ImportError):  # reported when the package is needed
            require(package, needed_for="the export")  # without its telemetry


def _check_something(made: HandedOut) -> None:
    if made.failure is not None:
        raise ExportError(made.failure)


def trained_before(model: paddle.Model | Layer, data: Any, *, eval_data: Any, verbose: int) -> Trained:
    """Return `Trained` for a network that was trained before.

    Args:
        model: Network, or a ``paddle.Model`` with one.
        data: Batch (an array or tensor, or a list of one per input), or a data set or loader, whose first batch is
            used.
        eval_data: Data to compute the metrics of a prepared model on; ``None`` or ``False`` for none.
        verbose: 1 shows hapi's progress, 0 nothing.

    Raises:
        TypeError: Not a model, or no data.
        ValueError: Data without a batch, or an item that is not a batch.
    """
    if not isinstance(model, (paddle.Model, Layer)):
        raise TypeError(
            f"model must be a paddle.Model or a paddle.nn.Layer, got {type(model).__name__}: export(network, images)."
        )
    model = model if isinstance(model, paddle.Model) else paddle.Model(model)
    trained = Trained(model=model, history=History(keep_best=False, monitor=None, mode="auto"))
    trained.keep_sample(_first_batch(data, input_count(model)))
    if eval_data is not None and eval_data is not False and metric_names(model):
        with same_modes(model.network):
            iterable = isinstance(eval_data, paddle.io.IterableDataset)
            batches = loader_of(eval_data, batch_size=trained.rows) if iterable else eval_data
            figures = model.evaluate(batches, batch_size=trained.rows, verbose=2 if verbose else 0)
        trained.history.evaluated(model.network, figures, metric_names(model))
    return trained


def _check_tensors(inputs: Sequence[Any]) -> None:
    """Check that the network is called with tensors, as every exported file is.

    Raises:
        TypeError: An input is not a tensor.
    """
    others = [type(item).__name__ for item in inputs if not isinstance(item, (Tensor, np.ndarray))]
    if others or not inputs:
        raise TypeError(
            f"The network is called with {others or 'no inputs'}, and a file takes tensors: leave ExportBenchCallback "
            "out of the training, and call its export(layer, images) afterwards, with a layer whose forward takes the "
            "tensors and calls the network."
        )


def _first_batch(data: Any, inputs: int) -> list[Tensor | np.ndarray]:
    if isinstance(data, (Tensor, np.ndarray)):
        data = [data]
    if not (isinstance(data, (list, tuple)) and data and all(isinstance(i, (Tensor, np.ndarray)) for i in data)):
        data = _read(data, inputs)
    for number, item in enumerate(data):
        if not item.shape or not item.shape[0]:
            raise ValueError(
                f"Input {number} has the shape {list(item.shape)}, which is not a batch: give [images, ...], with "
                "at least one."
            )
    return list(data)


def _read(data: Any, inputs: int) -> list[Tensor | np.ndarray]:
    loader = loader_of(data, batch_size=_ROWS)
    try:
        with ended_with_the_epoch(loader) as batches:
            batch = next(iter(batches), None)
    except TypeError as error:
        raise TypeError(
            f"data must be a batch (an array, a tensor, a list of them), a data set or a loader, got "
            f"{type(data).__name__}: export(network, images)."
        ) from error
    if batch is None:
        raise ValueError("data gives no batch, so the inputs are unknown: give at least one image.")
    items = list(batch) if isinstance(batch, (list, tuple)) else [batch]
    return items[:inputs]
