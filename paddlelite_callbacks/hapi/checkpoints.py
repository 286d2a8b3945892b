"""Write hapi's checkpoints atomically, with callbacks' files beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import paddle

from paddlelite_callbacks.hapi.attribute import instance_attribute
from paddlelite_callbacks.utils.atomic_files import staged_files

__all__ = ["WEIGHTS", "alongside_checkpoints", "whole_checkpoints"]

WEIGHTS = ".pdparams"


@contextmanager
def alongside_checkpoints(model: paddle.Model, write: Callable[[str], None]) -> Iterator[None]:
    """Call ``write(path)`` after every ``model.save(path)`` for training, on rank 0.

    Args:
        model: hapi model.
        write: Receives the path prefix to which hapi appends ``.pdparams`` and ``.pdopt``.
    """
    original = model.save

    def save(path: str, training: bool = True) -> None:
        original(path, training)
        if training and paddle.distributed.get_rank() == 0:
            write(path)

    with instance_attribute(model, "save", save):
        yield


@contextmanager
def whole_checkpoints(model: paddle.Model) -> Iterator[None]:
    """Make every ``model.save(path)`` for training atomic inside the block.

    hapi writes ``.pdparams`` and ``.pdopt`` directly to their paths: a process killed meanwhile leaves a truncated file
    in place of a complete one, or weights without the optimizer's state, which ``model.load`` accepts as a fresh start.
    Here ``.pdparams`` appears last (see `staged_files`). Enter it after `alongside_checkpoints`, whose files then
    belong to the set. On rank 0, the only one that saves.

    Args:
        model: hapi model.
    """
    original = model.save

    def save(path: str, training: bool = True) -> None:
        name = str(path).rpartition("/")[2]
        if not training or not name or paddle.distributed.get_rank() != 0:
            original(path, training)
            return
        with staged_files(Path(path), last=WEIGHTS) as prefix:
            original(str(prefix), training)

    with instance_attribute(model, "save", save):
        yield
