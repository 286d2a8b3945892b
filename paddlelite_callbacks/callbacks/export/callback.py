"""Export, check, benchmark and record a network after ``fit``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.benchmark.options import BenchOptions
from paddlelite_callbacks.callbacks.export.arguments import (
    check_budget_engine,
    check_budget_metric,
    check_choices,
    check_input_sizes,
    check_monitor,
    checked_arguments,
)
from paddlelite_callbacks.callbacks.export.history import History
from paddlelite_callbacks.callbacks.export.options import ExportOptions
from paddlelite_callbacks.callbacks.export.preflight import Preflight, example_batches
from paddlelite_callbacks.callbacks.export.record import notes_of, summary_lines
from paddlelite_callbacks.callbacks.export.run import ExportRun, Trained, trained_before
from paddlelite_callbacks.callbacks.session import ScopedCallback
from paddlelite_callbacks.export.metadata import checked_sidecar_options
from paddlelite_callbacks.export.paddle_program import check_program_format
from paddlelite_callbacks.hapi import LoopModel, evaluates_in_fit, metric_names
from paddlelite_callbacks.nn.surgery import unwrapped
from paddlelite_callbacks.report.gate import GATE_FAILED, Budget, GateError, Verdict, judge
from paddlelite_callbacks.report.record import Record
from paddlelite_callbacks.utils.atomic_files import check_appendable, check_replaceable, check_writable
from paddlelite_callbacks.utils.deprecation import Moved, old_arguments, old_attributes
from paddlelite_callbacks.utils.distributed import first_rank_works
from paddlelite_callbacks.utils.progress import write_lines
from paddlelite_callbacks.utils.representation import constructor_repr

__all__ = ["ExportBenchCallback"]

T = TypeVar("T")
# arguments of older versions, now in ExportOptions and BenchOptions
_ONCE_OF_FILES = (
    *("forms", "fp16", "input_spec", "dynamic_batch", "sidecar"),
    *("monitor", "mode", "preflight", "strict", "report"),
)
_ONCE_OF_TIMING = ("threads", "batch_size", "warmup", "repeats", "peak_memory", "roofline")


class ExportBenchCallback(ScopedCallback):
    """Export the trained network after ``fit``, check the files, and time them.

    Written into ``folder/name``, before anything is exported: ``model.pdparams`` (the exported weights; for
    `load_pact_` if quantised), ``last.pdparams`` (with ``which="best"``, if the last epoch was not the best) and
    ``train_log.jsonl`` (metrics of every epoch). Then ``model.json`` + ``model.pdiparams`` (``paddle.jit.save``; int8
    weights for a network trained with PACT) and, with the extra ``deploy``, ``model.onnx`` (fp32) and for a network
    trained with PACT ``model.int8.onnx``, which computes in int8 (see `export_forms`); ``deploy.json`` (inputs,
    checksums, verdicts, and the ``sidecar`` of `ExportOptions`). All files are made from a copy, loaded by every
    engine, and compared with the network on images of the first training batch. Each file gets a verdict per engine:
    agrees, differs by an amount, or could not run. A file that an engine, or its exact reference, computes correctly is
    kept with the verdicts of the others; one that none computes correctly is removed. An engine that differs does not
    count at the gate. The metrics of ``model.prepare`` are then computed from the outputs of each file on the
    evaluation data.

    An older export of this name is kept in ``previous_export`` until a set that passed replaces it; other files in that
    folder stay. The results are appended to ``folder/runs.jsonl``, and ``report.md``, ``report.html`` and their
    pictures are written again from all its lines. If nothing can be exported, weights and log are kept, the record and
    the report say why, and then `ExportError` is raised. All this happens after hapi's last checkpoint; the model is
    restored. `export` does it without a ``fit``.

    Frequent options are arguments of their own; those that are set once for a project are in two groups:
    `ExportOptions` for the files (forms, sizes, checks), `BenchOptions` for the timing (threads, batch sizes, repeats).

    Args:
        folder: Folder of this and further runs; created if missing.
        name: Name of the run and its subfolder; the network's class name if ``None``.
        engines: Some of ``"paddle"`` (Paddle Inference without oneDNN, as the guide measured), ``"paddle-onednn"``
            (Paddle 3's default), ``"onnxruntime"``, ``"openvino"``; ``None`` for these, or for those of ``benchmark``.
            A missing or failing one gives its reason in the record; a named one must be installed at train begin.
        eval_data: Data set or loader to measure the files' accuracy on; ``None`` takes the evaluation data of this
            ``fit`` (with several processes, the share of rank 0), ``False`` measures none.
        which: ``"last"`` exports the weights at the end of ``fit``; ``"best"`` those of the epoch with the best
            evaluation (``model.network`` keeps the last ones), see ``monitor`` of `ExportOptions`.
        budget: A `Budget` to judge the run by.
        gate: ``"report"`` prints and records the verdict; ``"fail"`` also ends the process with exit code 3 if the
            budget is exceeded, after everything is written.
        export: An `ExportOptions`: further forms, input sizes, ``deploy.json``, preflight; ``None`` for the defaults.
        benchmark: A `BenchOptions`: threads, batch sizes, warm-up, repeats, memory; ``None`` for the defaults. The gate
            uses the first of several threads or batch sizes.
        verbose: 1 shows progress bars and one line per engine, 0 nothing.

    Attributes:
        record: The `Record` of the last ``fit`` or `export`; ``None`` before it has ended.
        verdict: Its `Verdict`, if a budget was given.
        export_options: The argument ``export``, or the defaults.
        bench_options: The argument ``benchmark``, or the defaults, with ``engines``.

    Raises:
        TypeError: A folder that is not a path, a budget that is not a `Budget`, ``export`` or ``benchmark`` of another
            type, ``engines`` also in ``benchmark``. At train begin: a network that cannot be copied.
        ValueError: An unknown engine, a name that is not a plain folder name, empty data. At train begin: an
            ``input_spec`` of other sizes than the data's, a ``monitor`` that the evaluation does not compute.
        ExportError: At train begin, see ``preflight`` of `ExportOptions`. At the end of ``fit``: nothing can be
            exported, or see ``strict`` there.
        GateError: At the end of ``fit``, see ``gate``.
        OSError: At train begin: ``folder`` is not writable.

    Example:
        >>> model.fit(train_data, eval_data, callbacks=[ExportBenchCallback("out")])  # doctest: +SKIP
        >>> ExportBenchCallback(
        ...     "out",
        ...     engines=["onnxruntime", "openvino"],
        ...     budget=Budget(size_mb=5, latency_ms=20),
        ...     export=ExportOptions(fp16=True),
        ...     benchmark=BenchOptions(threads=[1, 4]),
        ... )  # doctest: +SKIP
    """

    if not TYPE_CHECKING:  # IDEs and help() show only the new names
        __getattr__ = old_attributes(
            options="bench_options",
            input_spec="export_options.input_spec",
            sidecar="export_options.sidecar",
            monitor="export_options.monitor",
            mode="export_options.mode",
            strict="export_options.strict",
            preflight="export_options.preflight",
            forms="export_options.forms",
            fp16="export_options.fp16",
            dynamic_batch="export_options.dynamic_batch",
            report="export_options.report",
        )

    @old_arguments(
        **dict.fromkeys(_ONCE_OF_FILES, Moved("export", lambda: ExportOptions)),
        **dict.fromkeys(_ONCE_OF_TIMING, Moved("benchmark", lambda: BenchOptions)),
    )
    def __init__(
        self,
        folder: str | Path,
        *,
        name: str | None = None,
        engines: Sequence[str] | None = None,
        eval_data: Any = None,
        which: str = "last",
        budget: Budget | None = None,
        gate: str = "report",
        export: ExportOptions | None = None,
        benchmark: BenchOptions | None = None,
        verbose: int = 1,
    ) -> None:
        super().__init__()
        self.folder = checked_arguments(folder, budget, eval_data)
        check_choices(folder, name, gate=gate, which=which, budget=budget)
        self.export_options = _of_type("export", export, ExportOptions, "fp16=True")
        bench = _of_type("benchmark", benchmark, BenchOptions, "threads=4")
        if engines is not None and bench.engines is not None:
            raise TypeError(
                f"Give the engines once, got engines={list(engines)} and benchmark=BenchOptions(engines="
                f"{list(bench.engines)}): leave one out."
            )
        self.bench_options = bench if engines is None else replace(bench, engines=engines)
        check_budget_engine(budget, [engine.name for engine in self.bench_options.chosen()])
        self.name, self.which, self.verbose = name, which, verbose
        self.budget, self.gate, self.eval_data = budget, gate, eval_data
        self._untried = False
        self.record: Record | None = None
        self.verdict: Verdict | None = None
        self._trained: Trained | None = None

    def __repr__(self) -> str:
        """Return the constructor call with all options that are not defaults."""
        timing = replace(self.bench_options, engines=None)
        return constructor_repr(
            self,
            {
                "engines": self.bench_options.engines,
                "export": None if self.export_options == ExportOptions() else self.export_options,
                "benchmark": None if timing == BenchOptions() else timing,
            },
        )

    def export(self, model: paddle.Model | Layer, data: Any) -> Record | None:
        """Export a trained network now, as at the end of ``fit``.

        Args:
            model: Network, or a ``paddle.Model`` with one. The metrics of its ``prepare``, if any, are computed with it
                and on the files if the callback has ``eval_data``. Build a network that was trained with PACT from its
                checkpoint with `load_pact_`.
            data: Real inputs for check and timing: a batch (an array or tensor ``[N, ...]``, or a list of one per
                input), or a data set or loader, whose first batch is used.

        Returns:
            The record, also in ``record``; ``verdict`` is set if there is a budget. With several processes, which must
            all call this, rank 0 exports and the others get ``None``.

        Raises:
            TypeError: Not a model, or no data.
            ValueError: Data without a batch.
            ExportError: See the class.
            GateError: See ``gate``.
            OSError: ``folder`` is not writable.

        Example:
            >>> ExportBenchCallback("out", name="mine").export(network, images)  # doctest: +SKIP
        """
        self._check_writable(model.network if isinstance(model, paddle.Model) else model)
        evaluated = self._has_eval_data and isinstance(model, paddle.Model) and bool(metric_names(model))
        if isinstance(model, (paddle.Model, Layer)):
            check_budget_metric(self.budget, model, evaluated=evaluated)
        self.record = self.verdict = None
        self._finish(trained_before(model, data, eval_data=self.eval_data, verbose=self.verbose), [])
        return self.record

    def check(self) -> None:
        """Check folder, inputs and metric before hours of training."""
        super().check()
        check_input_sizes(self.model, self.export_options.input_spec, self.session.data)
        if self.which == "best" and not isinstance(self.model, LoopModel):  # in a loop, the user reports the metrics
            check_monitor(self.model, self.export_options.monitor)
        if not self.session.own_loop:
            evaluated = self._has_eval_data or evaluates_in_fit(self.model)
            check_budget_metric(self.budget, self.model, evaluated=evaluated)
        self._check_writable(self.model.network)

    def dry_run(self) -> None:
        """Export a copy of the untrained network on rank 0, see ``preflight``."""
        self._untried = self.export_options.preflight
        if self.export_options.preflight:
            self._try_export(example_batches(self.model, self.session.data))

    def _try_export(self, batches: Iterator[Sequence[np.ndarray]], *, last: bool = False) -> None:
        with first_rank_works() as turn:
            if turn.mine:
                tried = Preflight(
                    input_spec=self.export_options.input_spec,
                    options=self.bench_options,
                    dynamic_batch=self.export_options.dynamic_batch,
                    fp16=self.export_options.fp16,
                    forms=self.export_options.forms,
                    onnx_opset=self.export_options.onnx_opset,
                    lite=self.export_options.lite,
                    strict=self.export_options.strict,
                    engine=None if self.budget is None else self.budget.engine,
                    verbose=self.verbose,
                ).run(self.model.network, batches, last=last)
                turn.answer = int(not tried)
        self._untried = bool(turn.answer)

    def attach(self, scope: ExitStack) -> None:
        """Keep a few images of the first batch."""
        self.record, self.verdict = None, None
        history = History(
            keep_best=self.which == "best", monitor=self.export_options.monitor, mode=self.export_options.mode
        )
        trained = Trained(model=self.model, history=history, training=self.session, params=self.params or {})

        def keep_sample(network: Layer, inputs: tuple[Tensor, ...]) -> None:
            if network.training and paddle.in_dynamic_mode():  # not during a trace of another export
                trained.keep_sample(inputs)
                if self._untried and trained.sample is not None:
                    self._try_export(iter([trained.sample]), last=True)

        scope.callback(self.model.network.register_forward_pre_hook(keep_sample).remove)
        self._trained = trained

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Record the metrics of the training epoch (called by hapi)."""
        self._in_training.history.trained(epoch, logs, (self.params or {}).get("metrics", ()))

    def on_eval_end(self, logs: dict[str, Any] | None = None) -> None:
        """Record the metrics of an evaluation, and the best weights (called by hapi)."""
        if self._trained is not None:  # only for evaluations inside a training
            self._trained.history.evaluated(self.model.network, logs, metric_names(self.model))

    def on_evaluated(self, epoch: int, logs: dict[str, Any], figures: dict[str, float]) -> None:
        """Record the metrics of an evaluation in the user's own loop, see `on_eval_end`."""
        self.on_epoch_end(epoch, logs)
        self.on_eval_end(figures)

    def finish(self) -> None:
        """Export, check, time, record and report on rank 0 while others wait.

        Raises:
            ExportError: See the class.
            GateError: See the class; on the other ranks a ``SystemExit`` with the same code.
            RuntimeError: On the other ranks, if rank 0 failed.
        """
        trained, self._trained = self._in_training, None
        notes = notes_of(trained.training)  # these may evaluate, on all ranks together
        for figures, state in trained.training.candidates if trained.training is not None else ():
            trained.history.consider(figures, state)
        self._finish(trained, notes)

    def summary(self) -> str:
        """Return the measurements of the last run, one line per engine.

        Raises:
            RuntimeError: No ``fit`` has ended yet.
        """
        record = self.record
        if record is None:
            raise RuntimeError("summary() needs a finished fit(): call model.fit with this callback first.")
        return "\n".join(summary_lines(record, self.folder, self.verdict, settings=len(self.bench_options.settings)))

    @property
    def _has_eval_data(self) -> bool:
        return self.eval_data is not None and self.eval_data is not False

    @property
    def _in_training(self) -> Trained:
        if self._trained is None:
            raise RuntimeError("ExportBenchCallback is not in training: pass it to model.fit(callbacks=[...]).")
        return self._trained

    def _check_writable(self, network: Layer) -> None:
        check_program_format()
        if paddle.distributed.get_rank() == 0:  # others may run on machines without this folder
            check_writable(self.folder)
            check_replaceable(self.folder / self._name_of(network))
            check_appendable(self.folder / "runs.jsonl")

    def _name_of(self, network: Layer) -> str:
        return self.name or type(unwrapped(network)).__name__

    def _finish(self, trained: Trained, notes: Sequence[str]) -> None:
        with first_rank_works() as turn:
            if turn.mine:
                self._hand_out(trained, notes)
                turn.answer = GATE_FAILED if self._fails() else 0
        if self.record is not None and self.verdict is not None and self._fails():
            error = GateError(self.record.name, self.verdict)
            sys.stderr.write(f"{error}\n")  # a SystemExit prints nothing itself
            raise error
        if turn.answer:
            raise SystemExit(turn.answer)

    def _hand_out(self, trained: Trained, notes: Sequence[str]) -> None:
        eval_data = self.eval_data
        if eval_data is None and trained.training is not None:
            eval_data = trained.training.eval_loader
        run = ExportRun(
            folder=self.folder,
            name=self._name_of(trained.model.network),
            input_spec=self.export_options.input_spec,
            options=self.bench_options,
            eval_data=eval_data,
            last=self.which == "last",
            fp16=self.export_options.fp16,
            forms=self.export_options.forms,
            onnx_opset=self.export_options.onnx_opset,
            lite=self.export_options.lite,
            dynamic_batch=self.export_options.dynamic_batch,
            sidecar=checked_sidecar_options(self.export_options.sidecar),
            strict=self.export_options.strict,
            budget=self.budget,
            report=self.export_options.report,
            verbose=self.verbose,
        )
        record, failure = run.make(trained, notes)
        self.record, self.verdict = record, None if self.budget is None else judge(record, self.budget)
        if self.verbose:
            write_lines(self.summary())
        if failure is not None:
            raise failure

    def _fails(self) -> bool:
        return self.gate == "fail" and self.verdict is not None and not self.verdict.passed


def _of_type(name: str, given: Any, kind: type[T], example: str) -> T:
    if given is None:
        return kind()
    if not isinstance(given, kind):
        raise TypeError(
            f"{name} must be {'an' if kind.__name__[0] in 'AEIO' else 'a'} {kind.__name__}, got "
            f"{type(given).__name__}: give {name}={kind.__name__}({example}), or leave it out."
        )
    return given
