"""Plan a `lighten`: trainings, and their duration from measured steps."""

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
        name: of the run, in ``runs.jsonl`` and as a folder.
        kind: ``"big"``, ``"light"`` (from the start) or ``"int8"`` (with quantizers, from the trained light one).
        backbone: name of the candidate; ``None`` for the big network.
        epochs: of training; 0 only measures and exports.
        seconds: expected, export and check included.
    """

    name: str
    kind: str
    backbone: str | None
    epochs: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `lighten` does, in order.

    Args:
        measured: candidates with what they cost here.
        rungs: trainings.
    """

    measured: tuple[Candidate, ...]
    rungs: tuple[Rung, ...]

    @property
    def chosen(self) -> tuple[str, ...]:
        """Names of the candidates that are trained."""
        return tuple(dict.fromkeys(rung.backbone for rung in self.rungs if rung.backbone is not None))

    @property
    def seconds(self) -> float:
        """Return the expected duration of all rungs."""
        return sum(rung.seconds for rung in self.rungs)

    def __str__(self) -> str:
        rows = ["", "| step | epochs | about |", "|---|---:|---:|"]
        rows += [f"| {rung.name} | {rung.epochs} | {clock_text(rung.seconds)} |" for rung in self.rungs]
        rows.append(f"| all | | {clock_text(self.seconds)} |")
        return "\n".join([*table_lines(self.measured, self.chosen), *rows])

    def to_json(self) -> dict[str, Any]:
        """Return the plan in what JSON knows."""
        return {
            "measured": [asdict(one) for one in self.measured],
            "rungs": [asdict(rung) for rung in self.rungs],
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, held: Mapping[str, Any]) -> Plan:
        """Return the plan that `to_json` gave."""
        return cls(
            measured=tuple(Candidate(**one) for one in held["measured"]),
            rungs=tuple(Rung(**one) for one in held["rungs"]),
        )


def clock_text(seconds: float) -> str:
    """Return ``seconds`` as people say a duration."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """Seconds of a batch, each the faster of two.

    Args:
        train: forward pass, loss, backward pass and update.
        forward: forward pass alone, as evaluation and teachers do.
        quantised: as ``train`` with quantizers.
        reading: the batch from the data set.
    """

    train: float = 0.0
    forward: float = 0.0
    quantised: float = 0.0
    reading: float = 0.0


def first_batch(data: Any, batch_size: int) -> tuple[list[Any], float]:
    """Return the first batch, one array per item, and the seconds to read it.

    Args:
        data: a data set with an order, or a loader.
        batch_size: samples.

    Raises:
        ValueError: there is no sample.
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
        raise ValueError("The data hold no sample: give a data set with some.")
    return batch, time.perf_counter() - begin


def measure_steps(
    network: Layer,
    inputs: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    loss: Callable[..., Any],
    *,
    quantised: PACTConfig | None = None,
) -> StepTimes:
    """Time training steps of a network that nobody needs afterwards.

    Args:
        network: is trained, and converted where ``quantised`` is given.
        inputs: a batch, an array an input.
        labels: of the batch.
        loss: as ``model.prepare`` takes it.
        quantised: options of the quantizers.
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
