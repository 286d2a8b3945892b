"""`ExportBenchCallback`: the shell around export, check, benchmark and record."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import Tensor
from paddle.nn import Layer
from paddle.static import InputSpec

from paddlelite_callbacks.callbacks.base import ScopedCallback
from paddlelite_callbacks.callbacks.export_checks import (
    check_choices,
    checked_arguments,
    refuse_other_inputs,
    refuse_unknown_monitor,
)
from paddlelite_callbacks.callbacks.export_record import draw_report, notes_of, record_of, summary_lines
from paddlelite_callbacks.callbacks.fit_facts import batch_specs, file_evaluation, fit_config
from paddlelite_callbacks.callbacks.history import History
from paddlelite_callbacks.callbacks.session import FitSession
from paddlelite_callbacks.deploy.bench import BenchOptions
from paddlelite_callbacks.deploy.export import ExportError, copy_network, staged_folder
from paddlelite_callbacks.deploy.run import HandedOut, hand_out
from paddlelite_callbacks.deploy.sidecar import checked_sidecar_options
from paddlelite_callbacks.files import refuse_unwritable
from paddlelite_callbacks.hapi import metric_names
from paddlelite_callbacks.progress import tqdm
from paddlelite_callbacks.ranks import first_rank_works
from paddlelite_callbacks.report.gate import GATE_FAILED, Budget, GateError, Verdict, judge
from paddlelite_callbacks.report.record import Record, append_record

__all__ = ["ExportBenchCallback"]

_ROWS = 8  # of the first training batch, for the checks
_LOG = "train_log.jsonl"
_NO_BEST = "which='best' found no evaluation in this fit: the last weights were exported."


class ExportBenchCallback(ScopedCallback):
    """Export the trained network when ``fit`` has ended, check what was written, and time it on the CPU.

    Written into ``folder/name``: ``model.json`` + ``model.pdiparams`` (``paddle.jit.save``; int8 weights for a
    network trained with PACT) and, with the extra ``deploy``, ``model.onnx`` (fp32) and for a network trained with
    PACT ``model.int8.onnx``, which computes in int8 (see `export_forms`); ``deploy.json`` (inputs, checksums, what
    ``sidecar`` says) and ``train_log.jsonl`` (the figures of every epoch). All of it is made from a copy, loaded
    again by every engine, and compared with the live network on images of the first training batch; a difference
    beyond the tolerance fails the export. The metrics of ``model.prepare`` are then computed from what each file
    answers on the evaluation data. Only a set that passed takes the place of an older one. The figures are appended
    to ``folder/runs.jsonl``, and ``report.md``, ``report.html`` and their pictures drawn anew from all its lines. It
    all happens behind hapi's last checkpoint; the model is left as found.

    Args:
        folder: of this and further runs; made if missing.
        name: of the run and its subfolder; the network's class name if ``None``.
        input_spec: one `InputSpec` per input; ``None`` takes the sizes of the first batch with a free batch size.
            ``None`` in it leaves a size free; checks and timing then run at the sizes of the first batch.
        engines: some of ``"paddle"`` (Paddle Inference without oneDNN, as the guide measured), ``"paddle-onednn"``
            (Paddle 3's default), ``"onnxruntime"``, ``"openvino"``; ``None`` for all. One that is missing or fails
            gives its reason in the record.
        threads: CPU threads of each engine; of a list, all, and the first is what the gate looks at.
        batch_size: of the timed calls; of a list, all, and the first is what the gate looks at.
        warmup: timed calls that are not counted; up to five times as many while the times still change.
        repeats: timed calls that are.
        budget: a `Budget` to print the verdict of.
        gate: ``"report"`` prints and records the verdict; ``"fail"`` also ends the process with exit code 3 where the
            budget is not met, once everything is written.
        eval_data: a data set or loader to measure the files' accuracy on; ``None`` takes the evaluation data of this
            ``fit`` (of several processes, the share of the first), ``False`` measures none.
        which: ``"last"`` exports the weights that ``fit`` ended with; ``"best"`` those of the epoch whose evaluation
            was the best (``model.network`` keeps the last ones).
        monitor: for ``"best"``, the evaluation's figure that decides; ``None`` for the first metric, else the loss.
        mode: ``"max"``, ``"min"``, or ``"auto"``: by the name (smaller for ``loss``, ``err``, ``rmse``, ``nme``, ...).
        fp16: whether to write ``model.fp16.onnx`` too: half the bytes, computed in fp32.
        dynamic_batch: ``False`` fixes the batch size of the files to ``batch_size``.
        sidecar: for ``deploy.json``, any of ``preprocess`` and ``postprocess`` (dictionaries) and ``labels`` (names).
        peak_memory: whether to measure load time and peak memory, a child process per file and engine (1-2 s each).
        roofline: whether to measure this machine's fastest matrix product (2 s a process).
        report: whether to draw the report.
        verbose: 1 shows progress bars and one line per engine, 0 nothing.

    Attributes:
        record: the `Record` of the last ``fit``; ``None`` before it has ended.
        verdict: its `Verdict`, where a budget was given.

    Raises:
        TypeError: a folder that is no path, a budget that is no `Budget`, an ``input_spec`` without `InputSpec`.
        ValueError: an unknown engine, a number out of range, a name that is no plain folder name, empty data. At train
            begin: an ``input_spec`` of other sizes than the data's, a ``monitor`` that the evaluation does not give.
        ExportError: at the end of ``fit``: the network cannot be exported, or a file computes something else.
        GateError: at the end of ``fit``: see ``gate``.
        OSError: at train begin: ``folder`` cannot be written to.

    Example:
        >>> model.fit(train_data, eval_data, callbacks=[ExportBenchCallback("out")])  # doctest: +SKIP
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        name: str | None = None,
        input_spec: Sequence[InputSpec] | None = None,
        engines: Sequence[str] | None = None,
        threads: int | Sequence[int] = 1,
        batch_size: int | Sequence[int] = 1,
        warmup: int = 10,
        repeats: int = 50,
        budget: Budget | None = None,
        gate: str = "report",
        eval_data: Any = None,
        which: str = "last",
        monitor: str | None = None,
        mode: str = "auto",
        fp16: bool = False,
        dynamic_batch: bool = True,
        sidecar: Mapping[str, Any] | None = None,
        peak_memory: bool = True,
        roofline: bool = True,
        report: bool = True,
        verbose: int = 1,
    ) -> None:
        super().__init__()
        self.folder = checked_arguments(folder, budget, input_spec, eval_data)
        check_choices(folder, name, gate=gate, which=which, mode=mode, budget=budget)
        self.name, self.input_spec = name, input_spec
        self.options = BenchOptions(
            engines=engines,
            threads=threads,
            batch_size=batch_size,
            warmup=warmup,
            repeats=repeats,
            peak_memory=peak_memory,
            roofline=roofline,
        )
        self.sidecar = checked_sidecar_options(sidecar)
        self.budget, self.gate, self.eval_data, self.verbose = budget, gate, eval_data, verbose
        self.which, self.monitor, self.mode = which, monitor, mode
        self.fp16, self.dynamic_batch, self.report = fp16, dynamic_batch, report
        self.record: Record | None = None
        self.verdict: Verdict | None = None
        self._sample: list[np.ndarray] | None = None
        self._history = self._new_history()
        self._training: FitSession | None = None
        self._batch = 1  # images of the first training batch

    def check(self) -> None:
        """Refuse what would fail after hours of training: a folder, sizes of inputs, a figure that there is not."""
        super().check()
        refuse_other_inputs(self.model, self.input_spec, self.session.data)
        if self.which == "best":
            refuse_unknown_monitor(self.model, self.monitor)
        if paddle.distributed.get_rank() == 0:  # others may run on machines where this folder does not exist
            refuse_unwritable(self.folder)

    def attach(self, scope: ExitStack) -> None:
        """Keep a few images of the first batch."""
        self._sample, self.record, self.verdict, self._training = None, None, None, self.session
        self._history = self._new_history()
        hook = self.model.network.register_forward_pre_hook(self._keep_sample)
        scope.callback(hook.remove)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Keep the figures of the training epoch (called by hapi)."""
        self._history.trained(epoch, logs, (self.params or {}).get("metrics", ()))

    def on_eval_end(self, logs: dict[str, Any] | None = None) -> None:
        """Keep the figures of the evaluation, and the weights where they are the best (called by hapi)."""
        self._history.evaluated(self.model.network, logs, metric_names(self.model))

    def finish(self) -> None:
        """Export, check, time, record, report: on the first process alone, for which the others wait.

        Raises:
            ExportError: see the class.
            GateError: see the class; on the other processes a ``SystemExit`` with the same code.
            RuntimeError: on the other processes, where the first one failed.
        """
        notes = notes_of(self._training)  # may evaluate, which all processes do together
        with first_rank_works() as turn:
            if turn.mine:
                self._hand_out(notes)
                turn.answer = GATE_FAILED if self._fails() else 0
        self._history.state = self._training = None
        if self.record is not None and self.verdict is not None and self._fails():
            error = GateError(self.record.name, self.verdict)
            sys.stderr.write(f"{error}\n")  # a process that ends by SystemExit says nothing itself
            raise error
        if turn.answer:
            raise SystemExit(turn.answer)

    def _hand_out(self, notes: Sequence[str]) -> None:
        if self._sample is None:
            raise ExportError(
                "No training batch was seen, so the inputs are unknown: nothing was exported. Train on at least one "
                "batch."
            )
        name = self.name or type(self.model.network).__name__
        with staged_folder(self.folder / name) as stage:
            record = self._made_in(stage, name, notes)
        append_record(self.folder / "runs.jsonl", record)
        self.record, self.verdict = record, None if self.budget is None else judge(record, self.budget)
        if self.report:
            draw_report(self.folder, self.budget)
        if self.verbose:
            tqdm.write(self.summary())

    def _fails(self) -> bool:
        return self.gate == "fail" and self.verdict is not None and not self.verdict.passed

    def summary(self) -> str:
        """Return the figures of the last run, a line per engine.

        Raises:
            RuntimeError: no ``fit`` has ended yet.
        """
        record = self.record
        if record is None:
            raise RuntimeError("There are no figures yet: they are ready when fit() has returned.")
        return "\n".join(summary_lines(record, self.folder, self.verdict, settings=len(self.options.settings)))

    def _keep_sample(self, network: Layer, inputs: tuple[Tensor, ...]) -> None:
        if self._sample is None and network.training:
            self._batch = int(inputs[0].shape[0])
            self._sample = [item[:_ROWS].detach().cpu().numpy() for item in inputs]

    def _new_history(self) -> History:
        return History(keep_best=self.which == "best", monitor=self.monitor, mode=self.mode)

    def _made_in(self, stage: Path, name: str, notes: Sequence[str]) -> Record:
        network = copy_network(self.model.network)
        self._history.load_best_(network)
        made = hand_out(
            network,
            stage,
            sample=self._sample or [],
            input_spec=batch_specs(
                self.input_spec, self._sample or [], rows=None if self.dynamic_batch else self.options.settings[0][1]
            ),
            options=self.options,
            fp16=self.fp16,
            evaluation=file_evaluation(self.model, self._eval_data(), batch_size=self._batch),
            sidecar=self.sidecar,
            progress=bool(self.verbose),
        )
        rows = self._history.rows
        (stage / _LOG).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return self._record(made, name, notes)

    def _record(self, made: HandedOut, name: str, notes: Sequence[str]) -> Record:
        without = self.which == "best" and self._history.epoch is None
        return record_of(
            made,
            self.model.network,
            home=self.folder / name,
            log=_LOG,
            history=self._history,
            last=self.which == "last",
            setting=self.options.settings[0],
            notes=[*notes, *made.notes, *([_NO_BEST] if without else [])],
            config=fit_config(
                self.model, {**(self.params or {}), "batch_size": self._batch}, self._training, self.budget
            ),
        )

    def _eval_data(self) -> Any:
        if self.eval_data is None and self._training is not None:
            return self._training.eval_loader
        return self.eval_data
