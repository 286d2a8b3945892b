"""Find the most accurate light network within a budget, in one call."""

from __future__ import annotations

import functools
import json
import logging
import math
import random
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle.nn import Layer
from paddle.static import InputSpec

from paddlelite_callbacks.backbone.classifier import number_of_classes
from paddlelite_callbacks.backbone.swap import BackboneSwap
from paddlelite_callbacks.benchmark.engines import EngineError
from paddlelite_callbacks.benchmark.options import BenchOptions
from paddlelite_callbacks.callbacks.distill.callback import DistillCallback
from paddlelite_callbacks.callbacks.export.callback import ExportBenchCallback
from paddlelite_callbacks.callbacks.export.options import ExportOptions
from paddlelite_callbacks.callbacks.pact.callback import PACTQuantCallback
from paddlelite_callbacks.errors import ExportError
from paddlelite_callbacks.nn.cost import count_macs, count_parameters
from paddlelite_callbacks.nn.surgery import copy_network
from paddlelite_callbacks.quant.config import PACTConfig
from paddlelite_callbacks.quant.prepare import prepare_pact_
from paddlelite_callbacks.recipes.candidates import choose, measure_candidates, shortlist
from paddlelite_callbacks.recipes.plan import Plan, Rung, StepTimes, clock_text, first_batch, measure_steps
from paddlelite_callbacks.recipes.state import STATE, Checkpoints, SaveNewest, State
from paddlelite_callbacks.report.budget import Budget
from paddlelite_callbacks.report.gate import Verdict, judge, most_accurate
from paddlelite_callbacks.report.record import Record, scan_records
from paddlelite_callbacks.report.retime import append_joint_timing, timed_together
from paddlelite_callbacks.report.write import write_report
from paddlelite_callbacks.utils.atomic_files import check_writable, link_or_copy, staged_file, staged_folder
from paddlelite_callbacks.utils.isolation import undisturbed
from paddlelite_callbacks.utils.numbers import check_number, check_whole, is_whole
from paddlelite_callbacks.utils.progress import write_lines
from paddlelite_callbacks.utils.safe_load import read_saved

__all__ = ["BIG", "Lightened", "lighten"]

_log = logging.getLogger(__name__)

BIG = "teacher"  # name of the large network's run
_BEST = "best"
_CHECKPOINTS = ".lighten"
_TIMING = "timing in turn"
_EXPORT_FACTOR = 3.0  # duration of an export with all checks over that of the timed bare export
_EVALUATIONS = 4  # evaluations at the end of a rung: one per engine


@dataclass(frozen=True, kw_only=True)
class Lightened:
    """Result of `lighten`.

    Args:
        plan: Plan of the run.
        folder: Folder of all runs, with ``report.html``.
        records: One record per rung, in order; empty after a dry run.
        best: Record of the most accurate light network that passes; ``None`` if none passes.
        budget: Budget of the verdicts, with the large network's metric as baseline.
        failed: Names of rungs of which nothing could be exported; their weights are kept.
        command: Command line that repeats or resumes this run.
    """

    plan: Plan
    folder: Path
    records: tuple[Record, ...] = ()
    best: Record | None = None
    budget: Budget
    failed: tuple[str, ...] = ()
    command: str

    @property
    def best_folder(self) -> Path | None:
        """Return the folder with all files of ``best``; ``None`` if there is none."""
        return None if self.best is None else self.folder / _BEST

    @property
    def verdict(self) -> Verdict | None:
        """Return the verdict on ``best``; ``None`` if there is none."""
        return None if self.best is None else judge(self.best, self.budget)

    def __str__(self) -> str:
        if not self.records:
            return str(self.plan)
        told = [f"{record.name}: {judge(record, self.budget)}" for record in self.records]
        told.append(
            f"Most accurate of those that pass: {self.best.name}, in {self.best_folder}"
            if self.best
            else "None passes: train longer, raise the budget, or name other candidates."
        )
        return "\n".join([*told, f"Report: {self.folder / 'report.html'}, {self.folder / 'report.md'}"])


def lighten(
    network: Layer,
    train_data: Any,
    eval_data: Any,
    budget: Budget | None = None,
    *,
    metric_drop: float | None = 0.05,
    folder: str | Path = "lightened",
    candidates: int | Sequence[str] = 2,
    at: str | None = None,
    loss: Callable[..., Any] | None = None,
    metric: paddle.metric.Metric | None = None,
    teacher_epochs: int = 0,
    epochs: int = 12,
    int8_epochs: int | None = None,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    distill: Mapping[str, Any] | None = None,
    pact: PACTConfig | None = None,
    pretrained: bool = False,
    export: ExportOptions | None = None,
    benchmark: BenchOptions | None = None,
    workers: int = 0,
    seed: int = 0,
    dry_run: bool = False,
    verbose: int = 1,
) -> Lightened:
    """Find the most accurate light network within a budget.

    Chooses, trains, distils, quantises, exports and judges candidates.

    Candidates are built and timed on this machine before training. Each chosen one is trained with ``network`` as its
    teacher, then by quantisation-aware training; both are exported, checked on every engine and evaluated on
    ``eval_data``. ``folder`` contains one folder per run, ``runs.jsonl``, ``report.html``, ``report.md``, and ``best``
    with all files of the winner. To resume a killed run after its last complete epoch, call it again with the same
    arguments.

    For classification the first four arguments are enough. For other tasks also give ``loss``, ``metric``, ``at`` (name
    of the backbone) and, in ``distill``, the terms to compare.

    Args:
        network: Large network, the teacher; trained first if ``teacher_epochs`` is positive.
        train_data: ``Dataset`` of ``(input, label)``, which is shuffled, or a ``DataLoader``, which is used unchanged.
        eval_data: Data to evaluate on, likewise; not shuffled.
        budget: Limits on size and latency; missing ``metric`` and ``baseline`` are filled in. ``None`` for the guide's.
        metric_drop: Accepted drop against ``network``, as a share of its metric; ``None`` for no limit.
        folder: Folder of this run; created if missing.
        candidates: Number to choose from the catalogue, or names of `list_backbones`, which are all trained.
        at: Name of the sublayer to swap; ``None`` for a whole classifier, see `BackboneSwap`.
        loss: Loss function, as for ``model.prepare``; ``None`` for cross entropy.
        metric: Metric, as for ``model.prepare``; ``None`` for accuracy.
        teacher_epochs: Epochs of the large network.
        epochs: Epochs of each light network, with distillation.
        int8_epochs: Epochs of quantisation-aware training of each; ``None`` for a third of ``epochs``, 0 for none.
        batch_size: Samples per step.
        learning_rate: Initial learning rate, which falls along a cosine.
        distill: Options of `DistillCallback`; ``None`` for the defaults.
        pact: A `PACTConfig`; ``None`` for the defaults.
        pretrained: Whether candidates start from downloaded ImageNet weights.
        export: An `ExportOptions`; ``None`` for the defaults.
        benchmark: A `BenchOptions`; ``None`` for the defaults.
        workers: Number of processes that read data. With some, augmentation differs after resuming.
        seed: Seed of weights, order and augmentation.
        dry_run: Whether to choose and plan only; nothing is trained or written.
        verbose: 1 shows progress and the remaining time, 0 nothing.

    Raises:
        TypeError: ``network`` is not a ``Layer``.
        ValueError: A number out of range, no candidate that can meet the budget, or a folder with a run of other
            settings.
        OSError: The folder is not writable.

    Example:
        >>> light = lighten(teacher, train, test, Budget(size_mb=5, latency_ms=20))  # doctest: +SKIP
        >>> print(light.best_folder, light.command)  # doctest: +SKIP
    """
    if not isinstance(network, Layer):
        raise TypeError(f"network must be a paddle.nn.Layer, got {type(network).__name__}: give model.network.")
    int8_epochs = max(1, round(epochs / 3)) if int8_epochs is None else int8_epochs
    for name, value, least in (
        ("teacher_epochs", teacher_epochs, 0),
        ("epochs", epochs, 1),
        ("int8_epochs", int8_epochs, 0),
        ("batch_size", batch_size, 1),
        ("workers", workers, 0),
    ):
        check_whole(name, value, least, remedy="leave it out for the default")
    check_number("learning_rate", learning_rate, lambda rate: rate > 0, "a positive number", remedy="1e-3 is usual")
    if not is_whole(candidates, 1) and (isinstance(candidates, str) or not candidates):
        raise ValueError(
            f"candidates must be a number of at least 1 or a list of names, got {candidates!r}: 2, or ['PPLCNet_x1_0']."
        )
    with undisturbed():
        return _Lightening(
            network=network,
            train_data=train_data,
            eval_data=eval_data,
            budget=budget or Budget(),
            metric_drop=metric_drop,
            folder=Path(folder),
            candidates=candidates,
            at=at,
            loss=loss or paddle.nn.CrossEntropyLoss(),
            metric=metric or paddle.metric.Accuracy(),
            epochs={"big": teacher_epochs, "light": epochs, "int8": int8_epochs},
            batch_size=batch_size,
            learning_rate=learning_rate,
            distill={} if distill is None else dict(distill),
            pact=pact or PACTConfig(),
            pretrained=pretrained,
            export=export or ExportOptions(),
            benchmark=benchmark or BenchOptions(),
            workers=workers,
            seed=seed,
            verbose=verbose,
        ).run(dry_run=dry_run)


@dataclass(frozen=True, kw_only=True)
class _Lightening:
    """One run, with the arguments of `lighten`."""

    network: Layer
    train_data: Any
    eval_data: Any
    budget: Budget
    metric_drop: float | None
    folder: Path
    candidates: int | Sequence[str]
    at: str | None
    loss: Callable[..., Any]
    metric: paddle.metric.Metric
    epochs: Mapping[str, int]
    batch_size: int
    learning_rate: float
    distill: Mapping[str, Any]
    pact: PACTConfig
    pretrained: bool
    export: ExportOptions
    benchmark: BenchOptions
    workers: int
    seed: int
    verbose: int

    def run(self, *, dry_run: bool) -> Lightened:
        if not dry_run:
            check_writable(self.folder)
        self._check()
        path = self.folder / STATE
        settings = self._settings()
        state = State.read(path, settings)
        if state is None:
            state = State(path=path, settings=settings, plan=self._plan())
        self._say(str(state.plan))
        if dry_run:
            return Lightened(plan=state.plan, folder=self.folder, budget=self.budget, command=_command())
        state.write()
        records, failed = self._climb(state)
        return self._hand_over(state, self._timed(state, records), failed)

    def _check(self) -> None:
        """Check options that would otherwise fail after the first training."""
        DistillCallback(self.network, **self.distill)
        self._judged_by(1.0)
        self._sample  # noqa: B018 (raises where the data are empty)
        if self.budget.metric is not None and self.budget.metric not in (names := self._metric_names):
            raise ValueError(
                f"Unknown metric {self.budget.metric!r} in the budget; available: {', '.join(names)}: name one, or "
                "leave it out."
            )

    def _settings(self) -> dict[str, Any]:
        """Return the comparable settings that the results depend on."""
        return {
            "network": type(self.network).__name__,
            "parameters": count_parameters(self.network),
            "samples": [_length(self.train_data), _length(self.eval_data)],
            "sample": [list(item.shape[1:]) for item in self._sample],
            "candidates": self.candidates if isinstance(self.candidates, int) else list(self.candidates),
            "at": self.at,
            "epochs": dict(self.epochs),
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "distill": {name: _plain(value) for name, value in sorted(self.distill.items())},
            "pact": repr(self.pact),
            "pretrained": self.pretrained,
            "seed": self.seed,
            "size_mb": self.budget.size_mb,
            "latency_ms": self.budget.latency_ms,
        }

    @functools.cached_property
    def _sample(self) -> list[np.ndarray]:
        """Return the first batch, or sample, of the evaluation data, read once."""
        return first_batch(self.eval_data, 1)[0]

    # ---- the plan

    def _plan(self) -> Plan:
        batch, reading = first_batch(self.train_data, self.batch_size)
        inputs, labels = batch[:1], batch[1:]
        image = [inputs[0][:1]]
        if isinstance(self.candidates, int):
            macs = count_macs(self.network, [paddle.to_tensor(item) for item in image])
            pixels = int(np.prod(image[0].shape[2:])) or 1
            count = max(6, 2 * self.candidates)
            names = shortlist(self.budget, most_macs=macs, pixels=pixels, count=count, classes=self._classes())
        else:
            names = [BackboneSwap(name).name for name in self.candidates]
        self._say(f"Building and timing {len(names)} candidates: {', '.join(names)}")
        measured = measure_candidates(names, self._swapped, image, self.budget, engines=self.benchmark.engines)
        if isinstance(self.candidates, int):
            chosen = choose(measured, self.candidates)
        elif broken := [one for one in measured if one.error]:
            raise ValueError(f"{broken[0].name} cannot be used: {broken[0].error}")
        else:
            chosen = measured
        return Plan(measured=tuple(measured), rungs=tuple(self._rungs(chosen, inputs, labels, reading)))

    def _classes(self) -> int:
        """Return the number of classes of a whole classifier; 0 for a backbone."""
        return number_of_classes(self.network, None) if self.at is None else 0

    def _rungs(self, chosen: Sequence[Any], inputs: list[Any], labels: list[Any], reading: float) -> Iterator[Rung]:
        big = measure_steps(_copied(self.network), inputs, labels, self.loss)
        slowest = max(one.export_seconds for one in chosen)
        yield Rung(
            name=BIG,
            kind="big",
            backbone=None,
            epochs=self.epochs["big"],
            seconds=self._seconds(self.epochs["big"], big.train, big.forward, reading) + _EXPORT_FACTOR * slowest,
        )
        for one in chosen:
            quantised = self.pact if self.epochs["int8"] else None
            steps: StepTimes = measure_steps(self._swapped(one.name), inputs, labels, self.loss, quantised=quantised)
            export = _EXPORT_FACTOR * one.export_seconds
            for kind, name, train in (
                ("light", one.name, steps.train),
                ("int8", f"{one.name}-int8", steps.quantised),
            ):
                if epochs := self.epochs[kind]:
                    seconds = self._seconds(epochs, train + big.forward, steps.forward, reading) + export
                    yield Rung(name=name, kind=kind, backbone=one.name, epochs=epochs, seconds=seconds)

    def _seconds(self, epochs: int, train: float, forward: float, reading: float) -> float:
        """Return the expected seconds of ``epochs``, each with an evaluation."""
        steps, tests = (math.ceil(_length(data) / self.batch_size) for data in (self.train_data, self.eval_data))
        return epochs * steps * (train + reading) + (epochs + _EVALUATIONS) * tests * (forward + reading)

    # ---- the rungs

    def _climb(self, state: State) -> tuple[list[Record], list[str]]:
        records, failed, spent, expected = [], [], 0.0, 0.0
        for number, rung in enumerate(state.plan.rungs, start=1):
            left = sum(other.seconds for other in state.plan.rungs[number - 1 :]) * (
                spent / expected if expected else 1
            )
            record = self._recorded(state, rung)
            if record is None:
                self._say(
                    f"\n=== {number} of {len(state.plan.rungs)}, {rung.name}: {rung.epochs} "
                    f"epoch{'s' * (rung.epochs != 1)}; about {clock_text(left)} left ==="
                )
                begin = time.perf_counter()
                record = self._climbed(rung, state)
                spent, expected = spent + time.perf_counter() - begin, expected + rung.seconds
            elif rung.kind == "big":
                self.network.set_state_dict(read_saved(self._weights_of(rung.name)))
            if rung.kind == "big" and state.baseline is None:
                state.baseline = record.metric(self._metric_name)
            if rung.name not in state.finished:
                state.finished.append(rung.name)
            state.write()
            self._checkpoints(rung).delete()
            records.append(record)
            if record.failure is not None:
                failed.append(rung.name)
        return records, failed

    def _recorded(self, state: State, rung: Rung) -> Record | None:
        """Return the record of a rung that this run has already finished."""
        path = self.folder / "runs.jsonl"
        if not path.is_file() or not self._weights_of(rung.name).is_file():
            return None
        records = [one for one in scan_records(path.read_bytes()) if isinstance(one, Record)]
        found = [one for one in records if one.name == rung.name and one.created >= state.started]
        return found[-1] if found else None

    def _climbed(self, rung: Rung, state: State) -> Record:
        checkpoints = self._checkpoints(rung)
        done, prefix = checkpoints.newest()
        network = self._network_of(rung, resumed=prefix is not None)
        model = paddle.Model(network)
        loaders = self._train_loader(done), self._eval_loader()
        rate = paddle.optimizer.lr.CosineAnnealingDecay(self.learning_rate, max(1, rung.epochs * len(loaders[0])))
        optimizer = paddle.optimizer.AdamW(rate, parameters=network.parameters(), weight_decay=1e-4)
        model.prepare(optimizer, self.loss, self.metric)
        if prefix is not None:
            model.load(prefix)
        exported = ExportBenchCallback(
            self.folder,
            name=rung.name,
            eval_data=loaders[1],
            budget=self.budget if rung.kind == "big" else self._judged_by(state.baseline),
            export=self.export,
            benchmark=self.benchmark,
            verbose=self.verbose,
        )
        callbacks: list[Any] = [_Seeds(self.seed, done, loaders[0])]
        if rung.kind != "big":
            resume = prefix if prefix is not None and Path(f"{prefix}.pddistill").is_file() else None
            callbacks.append(DistillCallback(self.network, **self.distill, resume=resume))
        if rung.kind == "int8":
            callbacks.append(PACTQuantCallback(self.pact))
        try:
            if done < rung.epochs:
                model.fit(
                    *loaders,
                    epochs=rung.epochs - done,
                    verbose=self.verbose,
                    log_freq=50,
                    callbacks=[*callbacks, exported, SaveNewest(checkpoints, done)],
                )
            else:
                exported.export(model, loaders[1])
        except ExportError as error:  # the trained weights are written: continue with the next rung
            sys.stderr.write(f"{rung.name}: {error}\n")
        if exported.record is None:
            raise RuntimeError(f"{rung.name} was not recorded: see the error above.")
        return exported.record

    def _network_of(self, rung: Rung, *, resumed: bool) -> Layer:
        """Return the initial network of a rung, with reproducible parameter names."""
        if rung.kind == "big":
            return self.network
        paddle.seed(self.seed)
        with paddle.utils.unique_name.guard(f"{rung.name}_"):
            fresh = rung.kind == "light" and not resumed
            network = self._swapped(str(rung.backbone), pretrained=self.pretrained and fresh)
            if rung.kind == "int8":
                if not resumed:
                    network.set_state_dict(read_saved(self._weights_of(str(rung.backbone))))
                batch, _ = first_batch(self.eval_data, 2)
                prepare_pact_(network, self.pact, inputs=paddle.to_tensor(batch[0]))
        return network

    def _swapped(self, name: str, *, pretrained: bool = False) -> Layer:
        swap = BackboneSwap(name, at=self.at, pretrained=pretrained)
        if self.at is None:
            return swap(self.network)
        shape = self._sample[0].shape
        return swap(_copied(self.network), input_spec=[InputSpec([None, *shape[1:]])])

    def _weights_of(self, name: str) -> Path:
        return self.folder / name / "model.pdparams"

    def _checkpoints(self, rung: Rung) -> Checkpoints:
        return Checkpoints(self.folder / _CHECKPOINTS / rung.name)

    def _train_loader(self, done: int) -> paddle.io.DataLoader:
        if isinstance(self.train_data, paddle.io.DataLoader):
            return self.train_data
        sampler = _Shuffled(self.train_data, self.batch_size, self.seed)
        return paddle.io.DataLoader(self.train_data, batch_sampler=sampler, num_workers=self.workers)

    def _eval_loader(self) -> paddle.io.DataLoader:
        if isinstance(self.eval_data, paddle.io.DataLoader):
            return self.eval_data
        return paddle.io.DataLoader(self.eval_data, batch_size=self.batch_size, num_workers=self.workers)

    # ---- the end

    @property
    def _metric_names(self) -> list[str]:
        names = self.metric.name()
        return [names] if isinstance(names, str) else list(names)

    @property
    def _metric_name(self) -> str:
        return self.budget.metric or self._metric_names[0]

    def _judged_by(self, baseline: float | None) -> Budget:
        """Return the budget with the large network's metric as baseline, unless it is 0."""
        if self.budget.baseline is not None or self.budget.metric_limit is not None:
            return self.budget
        if not baseline or self.metric_drop is None:
            return replace(self.budget, metric=self._metric_name, metric_drop=None)
        return replace(self.budget, metric=self._metric_name, baseline=baseline, metric_drop=self.metric_drop)

    def _timed(self, state: State, records: list[Record]) -> list[Record]:
        """Time all files interleaved, once, so that latencies are comparable."""
        exported = [record for record in records if record.failure is None]
        if _TIMING in state.finished or len(exported) < 2:
            return records
        self._say("\n=== Timing all files in turn ===")
        try:
            timed = {
                one.name: one
                for one in timed_together(exported, self._sample[:1], self.benchmark, verbose=self.verbose)
            }
        except (ValueError, EngineError) as error:
            _log.warning("The files were not timed in turn: %s", error)
            return records
        append_joint_timing(self.folder / "runs.jsonl", list(timed.values()))
        state.finished.append(_TIMING)
        state.write()
        if self.export.report:
            write_report(self.folder, budget=self._judged_by(state.baseline))
        return [timed.get(record.name, record) for record in records]

    def _hand_over(self, state: State, records: list[Record], failed: list[str]) -> Lightened:
        budget = self._judged_by(state.baseline)
        light = [record for record in records if record.name != BIG]
        best = most_accurate(light, budget)
        told = Lightened(
            plan=state.plan,
            folder=self.folder,
            records=tuple(records),
            best=best,
            budget=budget,
            failed=tuple(failed),
            command=_command(),
        )
        if best is not None:
            with staged_folder(self.folder / _BEST, dropped=["*"]) as stage:
                for file in sorted((self.folder / best.name).iterdir()):
                    if file.is_file() and not file.name.endswith(".lock"):
                        link_or_copy(file, stage / file.name)
                held = {
                    "name": best.name,
                    "verdict": str(judge(best, budget)),
                    "metrics": best.metrics,
                    "baseline": state.baseline,
                    "size_mb": best.size_mb,
                    "report": str(self.folder / "report.html"),
                    "command": told.command,
                }
                with staged_file(stage / STATE) as partial:
                    partial.write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")
        self._say(f"\n{told}")
        return told

    def _say(self, text: str) -> None:
        if self.verbose:
            write_lines(text)


def _copied(network: Layer) -> Layer:
    """Return a copy with hooks and modes, as a trained network needs them."""
    return copy_network(network, keep_hook=lambda hook: True, keep_modes=True)


def _plain(value: Any) -> Any:
    """Return the comparable part of an option: plain values, or the type."""
    return value if value is None or isinstance(value, (str, int, float)) else type(value).__name__


def _length(data: Any) -> int:
    if isinstance(data, paddle.io.DataLoader):
        return len(data) * int(getattr(data, "batch_size", None) or 1)
    return len(data)


def _command() -> str:
    return shlex.join(sys.orig_argv)


class _Shuffled(paddle.io.BatchSampler):
    """Sampler whose order depends on seed and epoch only, for resumed epochs."""

    def __init__(self, data: Any, batch_size: int, seed: int) -> None:
        super().__init__(dataset=data, batch_size=batch_size)
        self._count, self._seed, self.epoch = len(data), seed, 0

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.RandomState([self._seed, self.epoch]).permutation(self._count)
        for start in range(0, self._count, self.batch_size):
            yield [int(i) for i in order[start : start + self.batch_size]]


class _Seeds(paddle.callbacks.Callback):
    """Seed the random generators by seed and epoch, for resumed epochs."""

    def __init__(self, seed: int, done: int, loader: paddle.io.DataLoader) -> None:
        super().__init__()
        self._seed, self._done, self._sampler = seed, done, loader.batch_sampler

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Seed the random generators (called by hapi)."""
        number = self._done + epoch
        mixed = 1_000_003 * (self._seed + 1) + number
        paddle.seed(mixed)
        random.seed(mixed)
        np.random.seed(mixed % 2**32)
        if isinstance(self._sampler, _Shuffled):
            self._sampler.epoch = number
