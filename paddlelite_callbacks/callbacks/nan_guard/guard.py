"""Stop at, or skip, a batch with a non-finite loss before it changes a weight."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.callbacks.batch_state import BatchState
from paddlelite_callbacks.callbacks.nan_guard.diagnosis import (
    Finding,
    bad_terms,
    broken_state,
    cure_for,
    explained,
    is_finite,
    not_finite,
)
from paddlelite_callbacks.errors import NonFiniteLossError
from paddlelite_callbacks.hapi import SkipBatch, prepared_optimizer, skippable_batches
from paddlelite_callbacks.nn.kinds import running_statistics
from paddlelite_callbacks.nn.nested import tensors_and_arrays
from paddlelite_callbacks.quant.quantizers import Switched
from paddlelite_callbacks.utils.distributed import several_ranks

__all__ = ["FIGURE", "ON_NAN", "NaNGuard", "agreed_policy", "checked_policy"]

_log = logging.getLogger(__name__)
FIGURE = "skipped_batches"
_SPOKEN = 3  # number of skipped batches that are logged


class NaNGuard:
    """Check each batch's loss before the backward pass, reading one number.

    A ReLU turns NaN into 0, so the loss may be finite although gradients are not. The number that is read therefore
    also includes zero times the inputs, the batch-norm statistics and the alphas. The tensors in the `BatchState` are
    searched only if that number is not finite. Batch-norm statistics, which the forward pass updates, are restored for
    such a batch.

    Args:
        model: Model that is trained.
        policy: ``"raise"``, ``"skip"`` or ``"ignore"``.

    Attributes:
        skipped: Positions ``(epoch, batch)`` of the skipped batches.
        epoch: Current epoch, counted from 0.
        batch: Current batch of the epoch, counted from 0.
    """

    def __init__(self, model: paddle.Model, policy: str) -> None:
        self.model, self.policy = model, policy
        self.epoch, self.batch = 0, 0
        self.skipped: list[tuple[int, int]] = []
        self._checked: int | None = None
        self._networks: dict[str, Layer] = {"the network": model.network}
        self._others: dict[str, Layer] = {}
        self._probes: list[Tensor] = []
        self._buffers = StillBuffers()
        self._several_ranks = False

    def watch(self, name: str, network: Layer, *, trained: bool = True) -> None:
        """Include ``network`` in diagnoses; restore the statistics of a trained one."""
        (self._networks if trained else self._others)[name] = network
        if trained:
            self._buffers.follow(network)

    def probe(self, values: Sequence[Tensor]) -> None:
        """Check these parameters in each batch too: a ReLU may hide a NaN in them."""
        self._probes = list(values)

    @paddle.no_grad()
    def check_weights(self) -> None:
        """Check the weights at the end of an epoch, before hapi saves them.

        Raises:
            NonFiniteLossError: Some are not finite; the message names them.
        """
        if self.policy == "ignore" or self._checked == self.epoch:
            return
        self._checked = self.epoch
        tensors = [tensor for network in self._networks.values() for tensor in network.state_dict().values()]
        suspect = not math.isfinite(float(paddle.add_n([paddle.zeros([], dtype="float32"), *zero_times(tensors)])))
        networks = self._networks if suspect else {}
        if not (broken := [found for name in networks for found in broken_state(name, networks[name])]):
            return
        raise NonFiniteLossError(
            f"Weights are not finite at the end of epoch {self.epoch} (counted from 0): "
            f"{'; '.join(found.text for found in broken[:6])} ({len(broken)} in all). {cure_for(broken, broken)}",
            epoch=self.epoch,
            batch=max(self.batch - 1, 0),
            terms=[],
        )

    def notes(self) -> list[str]:
        """Return the report's notes on skipped batches."""
        if not self.skipped:
            return []
        (epoch, batch), count = self.skipped[0], len(self.skipped)
        were = "batch was" if count == 1 else "batches were"
        return [f"{count} {were} left out for a loss that was not finite, the first at epoch {epoch}, batch {batch}."]

    @contextmanager
    def watching(self, skipped: Any) -> Iterator[None]:
        """Guard the batches inside the block.

        Args:
            skipped: Called after a skipped batch, with whether the optimizer took a step.
        """
        if self.policy == "ignore":
            yield
            return
        self.begin()
        with skippable_batches(self.model, before=lambda *_: self.keep(), skipped=skipped):
            yield

    def begin(self) -> None:
        """Check that all weights are finite, and register the buffers.

        Raises:
            ValueError: Some weights are not finite.
        """
        if self.policy != "ignore":
            self._several_ranks = several_ranks()
            self._buffers.follow(self.model.network)
            self._check_weights_finite()

    def keep(self) -> None:
        """Copy the buffers before a batch."""
        if self.policy != "ignore":
            self._buffers.keep()

    def _check_weights_finite(self) -> None:
        """Check that all weights are finite before training."""
        networks = {**self._networks, **self._others}
        broken = [found.text for name, network in networks.items() for found in broken_state(name, network)]
        if broken:
            raise ValueError(
                f"These weights are not finite before the training has begun: {'; '.join(broken[:6])} ({len(broken)} "
                "in all). A network must have finite weights to be trained or to teach: load another checkpoint."
            )

    def examine(self, parts: list[Tensor], batch: BatchState, outputs: Sequence[Any]) -> None:
        """Raise if the loss of a training batch is not finite, after undoing the batch.

        Args:
            parts: Parts of the loss.
            batch: State of the batch; cleared before an exception.
            outputs: Outputs of the network, as passed to the loss.

        Raises:
            NonFiniteLossError: The loss is not finite; the message has the terms and their cause.
            SkipBatch: The batch is to be skipped.
        """
        if self.policy != "ignore" and not self._finite(parts, batch):
            self._leave(parts, batch, outputs)

    def _finite(self, parts: list[Tensor], batch: BatchState) -> bool:
        """Return whether the batch is finite, with the same result on all ranks."""
        good = math.isfinite(float(self._sum(parts, batch))) or self._each_finite(parts, batch)
        if self._several_ranks:
            flag = paddle.to_tensor([float(good)], dtype="float32")
            paddle.distributed.all_reduce(flag, op=paddle.distributed.ReduceOp.MIN)
            return bool(float(flag) > 0)
        return good

    @paddle.no_grad()
    def _each_finite(self, parts: list[Tensor], batch: BatchState) -> bool:
        """Return whether each part is finite, in case only their sum overflowed."""
        inputs = tensors_and_arrays(batch.inputs)
        values = [*parts, *batch.other_losses, *self._probes, *(x for x in inputs if isinstance(x, Tensor))]
        arrays = [x for x in inputs if isinstance(x, np.ndarray) and x.dtype.kind == "f"]
        return (
            all(is_finite(x) for x in values)
            and all(bool(np.isfinite(x).all()) for x in arrays)
            and not self._buffers.broken()
        )

    def _sum(self, parts: list[Tensor], batch: BatchState) -> Tensor:
        """Return a scalar that is non-finite if anything in the batch is."""
        values = [part.detach().astype("float32").sum() for part in (*parts, *batch.other_losses)]
        if self._probes:
            values.append(paddle.concat([probe.detach().reshape([-1]) for probe in self._probes]).sum() * 0)
        inputs = tensors_and_arrays(batch.inputs)
        values += [*self._buffers.probes(), *zero_times([x for x in inputs if isinstance(x, Tensor)])]
        if not host_is_finite(inputs):
            values.append(paddle.full([], math.nan, dtype="float32"))
        return values[0] if len(values) == 1 else paddle.add_n(values)

    @paddle.no_grad()
    def _leave(self, parts: list[Tensor], batch: BatchState, outputs: Sequence[Any]) -> None:
        """Undo the batch, then raise or skip it."""
        moved = self._moved()
        self._buffers.put_back()
        broken = [found for name, network in self._networks.items() for found in broken_state(name, network)]
        terms = bad_terms(parts, batch)
        still = [found for name, network in self._others.items() for found in broken_state(name, network)]
        seen = [found for name, values in batch.sources().items() for found in not_finite(name, values)]
        causes = [*broken, *still, *seen]
        if batch.student is None:
            causes += not_finite("the network's output", list(outputs))
        causes = causes or moved
        batch.clear()
        where = f"epoch {self.epoch}, batch {self.batch} (both counted from 0)"
        message = explained(where, terms, causes, broken)
        if self.policy == "raise" or broken:
            prepared_optimizer(self.model).clear_grad()
            raise NonFiniteLossError(message, epoch=self.epoch, batch=self.batch, terms=[term.name for term in terms])
        self.skipped.append((self.epoch, self.batch))
        if len(self.skipped) <= _SPOKEN:
            last = " Further ones are counted only." if len(self.skipped) == _SPOKEN else ""
            _log.warning("Left out: %s%s", message, last)
        raise SkipBatch(parts)

    def _moved(self) -> list[Finding]:
        """Return the statistics that this batch's forward pass made non-finite."""
        wrong = {id(tensor) for tensor in self._buffers.broken()}
        named = [
            (f"{key} of {name} after this batch", tensor)
            for name, network in self._networks.items()
            for key, tensor in (*network.named_parameters(), *network.named_buffers())
            if id(tensor) in wrong
        ]
        return [found for name, tensor in named for found in not_finite(name, tensor)]


class StillBuffers:
    """Snapshot of buffers and batch-norm statistics, concatenated once per batch.

    The buffers of a quantizer follow from its ``alpha`` and are not copied. A mask that is infinite from the start is
    copied, but not checked. A buffer without memory (the dropout state of ``LSTM`` and ``GRU``, which only a GPU
    allocates) is ignored until it has some.
    """

    def __init__(self) -> None:
        self._vectors: dict[str, dict[int, Tensor]] = {}
        self._others: dict[int, Tensor] = {}
        self._infinite: dict[int, Tensor] = {}
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._joined: list[tuple[list[Tensor], Tensor]] = []

    def follow(self, network: Layer) -> None:
        """Add the buffers of ``network``."""
        for layer in network.sublayers(include_self=True):
            if isinstance(layer, Switched):
                continue
            for buffer in [*layer.buffers(include_sublayers=False), *running_statistics(layer)]:
                if _is_infinite(buffer):
                    self._infinite[id(buffer)] = buffer
                elif len(buffer.shape) == 1:
                    self._vectors.setdefault(str(buffer.dtype), {})[id(buffer)] = buffer
                else:
                    self._others[id(buffer)] = buffer

    @paddle.no_grad()
    def keep(self) -> None:
        """Copy the buffers."""
        groups = self._filled_vectors()
        self._joined = [(group, paddle.concat(group)) for group in groups]
        others = _filled([*self._others.values(), *self._infinite.values()])
        self._kept = [(buffer, buffer.detach().clone()) for buffer in others]

    @paddle.no_grad()
    def probes(self) -> list[Tensor]:
        """Return scalars that are NaN where a finite buffer became non-finite, else 0."""
        held = [paddle.concat(group) for group in self._filled_vectors()]
        others = _filled(self._others.values())
        return [x.astype("float32").sum() * 0 for x in [*held, *others] if x.is_floating_point()]

    @paddle.no_grad()
    def broken(self) -> list[Tensor]:
        """Return the buffers that became non-finite."""
        held = [*(x for group in self._vectors.values() for x in group.values()), *self._others.values()]
        return [x for x in held if x.is_floating_point() and x.size and not bool(paddle.isfinite(x).all())]

    @paddle.no_grad()
    def put_back(self) -> None:
        """Restore the buffers of the last `keep`."""
        for group, joined in self._joined:
            for buffer, value in zip(group, paddle.split(joined, [b.shape[0] for b in group]), strict=True):
                buffer.set_value(value)
        for buffer, value in self._kept:
            buffer.set_value(value)

    def _filled_vectors(self) -> list[list[Tensor]]:
        groups = [_filled(group.values()) for group in self._vectors.values()]
        return [group for group in groups if group]


def _filled(buffers: Iterable[Tensor]) -> list[Tensor]:
    return [buffer for buffer in buffers if buffer._is_initialized()]


def _is_infinite(buffer: Tensor) -> bool:
    return buffer.is_floating_point() and bool(paddle.isinf(buffer.detach().astype("float32")).any())


def zero_times(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return a scalar per floating tensor: 0 if all of it is finite, else NaN.

    Args:
        tensors: Tensors of any type; integer tensors are ignored.
    """
    return [x.detach().astype("float32").sum() * 0 for x in tensors if x.is_floating_point()]


def host_is_finite(values: Sequence[Any]) -> bool:
    """Return whether the NumPy arrays among ``values`` are finite.

    Args:
        values: Items of a batch; tensors among them are ignored.
    """
    arrays = [x for x in values if isinstance(x, np.ndarray) and x.dtype.kind == "f"]
    return all(math.isfinite(float(x.sum(dtype="float64"))) for x in arrays)


ON_NAN = ("raise", "skip", "ignore")


def checked_policy(on_nan: str | None) -> str | None:
    """Validate ``on_nan`` and return it.

    Raises:
        ValueError: An unknown policy.
    """
    if on_nan is not None and on_nan not in ON_NAN:
        raise ValueError(
            f"on_nan must be one of {list(ON_NAN)}, or None for 'raise' unless another callback differs, got "
            f"{on_nan!r}: leave it out to stop at the first loss that is not finite."
        )
    return on_nan


def agreed_policy(wishes: Mapping[str, str | None]) -> str:
    """Return the one ``on_nan`` policy of all callbacks of a ``fit``.

    Args:
        wishes: ``on_nan`` by class name of the callback; empty if none guards the loss.

    Raises:
        ValueError: The callbacks have different policies.
    """
    said = {name: wish for name, wish in wishes.items() if wish is not None}
    if len(set(said.values())) > 1:
        raise ValueError(f"The callbacks of one fit need the same on_nan=, got {said}: give it to one of them.")
    return next(iter(said.values()), "raise") if wishes else "ignore"
