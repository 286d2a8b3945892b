"""Collectives and rank-0 execution."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import paddle
from paddle import Tensor

from paddlelite_callbacks.utils.private_names import require_private

__all__ = [
    "Turn",
    "first_rank_works",
    "gathered",
    "mean_figure",
    "mean_over_ranks",
    "of_first_rank",
    "several_ranks",
]

_T = TypeVar("_T")

_SECONDS = 0.1
_turns = itertools.count()


@dataclass
class Turn:
    """State yielded by `first_rank_works`.

    Args:
        mine: Whether this process runs the block.
        answer: Exit code set by rank 0 and read by the others after the block, at least 0.
    """

    mine: bool
    answer: int = 0


def several_ranks() -> bool:
    """Whether several ranks are initialised."""
    return paddle.distributed.get_world_size() > 1 and paddle.distributed.is_initialized()


def mean_over_ranks(grad: Tensor) -> Tensor:
    """Average a gradient over ranks, in place.

    Args:
        grad: Gradient of this rank.
    """
    paddle.distributed.all_reduce(grad)
    return grad / paddle.distributed.get_world_size()


def gathered(values: Tensor) -> Tensor:
    """Concatenate ``values`` of all ranks; sizes may differ."""
    if not several_ranks():
        return values
    counts: list[Tensor] = []
    paddle.distributed.all_gather(counts, paddle.to_tensor([values.shape[0]], dtype="int64"))
    sizes = [int(count) for count in counts]
    padded = paddle.concat([values, paddle.zeros([max(sizes) - values.shape[0]], dtype=values.dtype)])
    parts: list[Tensor] = []
    paddle.distributed.all_gather(parts, padded)
    return paddle.concat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def mean_figure(value: float) -> float:
    """Average ``value`` over ranks."""
    return float(mean_over_ranks(paddle.to_tensor([value], dtype="float64"))) if several_ranks() else value


def of_first_rank(value: _T) -> _T:
    """Broadcast rank 0's ``value``."""
    if not several_ranks():
        return value
    told = [value]
    paddle.distributed.broadcast_object_list(told, src=0)
    return told[0]


@contextmanager
def first_rank_works() -> Iterator[Turn]:
    """Run the block on rank 0 while other ranks wait, without a time limit.

    A barrier does not work: on the CPU (gloo) it times out after 30 seconds. All ranks must call this the same number
    of times. A single process does not wait.

    Yields:
        The state: whether this rank runs the block; its ``answer`` is sent to the others.

    Raises:
        RuntimeError: On the other ranks, if rank 0 failed in the block.
    """
    turn = Turn(mine=paddle.distributed.get_rank() == 0)
    if paddle.distributed.get_world_size() == 1:
        yield turn
        return
    if not paddle.distributed.is_initialized():
        paddle.distributed.init_parallel_env()  # otherwise paddle.Model(...) would do it
    core = require_private(
        "paddle.base.core", "create_or_get_global_tcp_store", needed_for="A training on several processes"
    )
    store, key = core.create_or_get_global_tcp_store(), f"paddlelite_callbacks/{next(_turns)}"
    if not turn.mine:
        yield turn
        turn.answer = _awaited(store, key)
        return
    try:
        yield turn
    except BaseException:
        store.add(key, -1)
        raise
    store.add(key, 1 + turn.answer)


def _awaited(store: Any, key: str) -> int:
    while (told := store.add(key, 0)) == 0:
        time.sleep(_SECONDS)
    if told < 0:
        raise RuntimeError("Rank 0 failed in its work for all ranks: read its log for the reason.")
    return int(told) - 1
