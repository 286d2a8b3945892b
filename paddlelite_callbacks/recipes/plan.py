"""Plan a `lighten` run: trainings, with durations estimated from timed steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.nn.nested import listed, summed
from paddlelite_callbacks.quant.config import PACTConfig
from paddlelite_callbacks.quant.prepare import prepare_pact_
from paddlelite_callbacks.recipes.candidates import Candidate, table_lines

__all__ = ["Plan", "Rung", "StepTimes", "clock_text", "first_batch", "measure_steps"]


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One training of the plan.

    Args:
        name: Name of the run, in ``runs.jsonl`` and as a folder.
        kind: ``"big"``, ``"light"`` (trained from initial weights) or ``"int8"`` (quantisation-aware training of the
            trained light network).
        backbone: Name of the candidate; ``None`` for the large network.
        epochs: Number of training epochs; 0 only evaluates and exports.
        seconds: Expected duration with export and checks, seconds.
    """

    name: str
    kind: str
    backbone: str | None
    epochs: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Measured candidates and trainings of a `lighten` run.

    Args:
        measured: Candidates with their measured costs.
        rungs: Trainings, in order.
    """

    measured: tuple[Candidate, ...]
    rungs: tuple[Rung, ...]

    @property
    def chosen(self) -> tuple[str, ...]:
        """Return the names of the candidates to train."""
        return tuple(dict.fromkeys(rung.backbone for rung in self.rungs if rung.backbone is not None))

    @property
    def seconds(self) -> float:
        """Return the expected duration of all rungs, in seconds."""
        return sum(rung.seconds for rung in self.rungs)

    def __str__(self) -> str:
        rows = ["", "| step | epochs | about |", "|---|---:|---:|"]
        rows += [f"| {rung.name} | {rung.epochs} | {clock_text(rung.seconds)} |" for rung in self.rungs]
        rows.append(f"| all | | {clock_text(self.seconds)} |")
        return "\n".join([*table_lines(self.measured, self.chosen), *rows])

    def to_json(self) -> dict[str, Any]:
        """Return the plan as a dictionary for JSON."""
        return {
            "measured": [asdict(one) for one in self.measured],
            "rungs": [asdict(rung) for rung in self.rungs],
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, held: Mapping[str, Any]) -> Plan:
        """Return the plan from the result of `to_json`."""
        return cls(
            measured=tuple(Candidate(**one) for one in held["measured"]),
            rungs=tuple(Rung(**one) for one in held["rungs"]),
        )


def clock_text(seconds: float) -> str:
    """Return ``seconds`` as text in s, min or h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """Seconds per batch, each the faster of two runs.

    Args:
        train: Forward pass, loss, backward pass and update, seconds.
        forward: Forward pass only, as in evaluation and teachers, seconds.
        quantised: Like ``train``, with quantizers, seconds.
        reading: Reading the batch from the data set, seconds.
    """

    train: float = 0.0
    forward: float = 0.0
    quantised: float = 0.0
    reading: float = 0.0


def first_batch(data: Any, batch_size: int) -> tuple[list[Any], float]:
    """Return the first batch, one array per item, and the seconds to read it.

    Args:
        data: Map-style data set, or a loader.
        batch_size: Number of samples to read from a data set.

    Raises:
        ValueError: The data are empty.
    """
    begin = time.perf_counter()
    batch: list[Any] | None = None
    if isinstance(data, paddle.io.DataLoader):
        for read in data:
            batch = [np.asarray(item) for item in listed(read)]
            break
    elif samples := [listed(tuple(data[i])) for i in range(min(batch_size, len(data)))]:
        batch = [np.stack([np.asarray(item) for item in items]) for items in zip(*samples, strict=True)]
    if batch is None:
        raise ValueError("The data are empty: give a data set with at least one sample.")
    return batch, time.perf_counter() - begin


def measure_steps(
    network: Layer,
    inputs: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    loss: Callable[..., Any],
    *,
    quantised: PACTConfig | None = None,
) -> StepTimes:
    """Time training steps of a network, which is changed by them; pass a copy.

    Args:
        network: Network to train, and to convert if ``quantised`` is given.
        inputs: Batch, one array per input.
        labels: Labels of the batch.
        loss: Loss function, as for ``model.prepare``.
        quantised: Options of the quantizers; ``None`` times no quantised steps.
    """
    given, wanted = ([paddle.to_tensor(item) for item in items] for items in (inputs, labels))

    def train_once() -> None:
        optimizer = train_once.optimizer  # type: ignore[attr-defined]
        value: Tensor = summed(loss(*listed(network(*given)), *wanted))
        value.backward()
        optimizer.step()
        optimizer.clear_grad()

    def forward_once() -> None:
        with paddle.no_grad():
            network(*given)

    def rate() -> paddle.optimizer.Optimizer:
        return paddle.optimizer.AdamW(1e-6, parameters=network.parameters())

    network.train()
    train_once.optimizer = rate()  # type: ignore[attr-defined]
    train, slow = _fastest(train_once), 0.0
    network.eval()
    forward = _fastest(forward_once)
    network.train()
    if quantised is not None:
        prepare_pact_(network, quantised, inputs=given)
        train_once.optimizer = rate()  # type: ignore[attr-defined]
        slow = _fastest(train_once)
    return StepTimes(train=train, forward=forward, quantised=slow)


def _fastest(call: Callable[[], None]) -> float:
    best = math.inf
    for turn in range(3):
        begin = time.perf_counter()
        call()
        best = best if turn == 0 else min(best, time.perf_counter() - begin)
    return best
