"""Resume a training after its last checkpoint, as if it had not been interrupted.

An epoch can last an hour on a busy machine, so that checkpoints are written more often: what hapi calls an epoch is
here a part of an epoch, of about a hundred batches.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from paddlelite_callbacks.recipes.state import Checkpoints
from paddlelite_callbacks.utils.atomic_files import staged_file

__all__ = ["PartLog", "PartSampler", "Progress", "SeedParts"]

_BATCHES = 100  # of a part, about


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Finished parts of a training, and where their checkpoint is.

    Args:
        checkpoints: Checkpoints of the training.
        done: Number of finished parts.
        prefix: Prefix of the newest checkpoint; ``None`` if there is none.
    """

    checkpoints: Checkpoints
    done: int = 0
    prefix: str | None = None

    @classmethod
    def of(cls, folder: Path, config: Mapping[str, Any], *, resume: bool) -> Progress:
        """Return the progress of the training in ``folder``; without ``resume``, begin again.

        Args:
            folder: Folder of the training, whose state is in ``checkpoints/``.
            config: What the result depends on, as JSON: a resumed training must have the same.
            resume: Whether to resume.

        Raises:
            ValueError: ``folder`` holds a training with another ``config``.
        """
        checkpoints, wanted = Checkpoints(folder / "checkpoints"), json.loads(json.dumps(config))
        kept, writes = checkpoints.folder / "training.json", paddle.distributed.get_rank() == 0
        if not resume and writes:
            checkpoints.delete()
        done, prefix = checkpoints.newest() if resume else (0, None)
        before = json.loads(kept.read_text(encoding="utf-8")) if prefix is not None and kept.is_file() else wanted
        if before != wanted:
            names = [name for name in {**before, **wanted} if before.get(name) != wanted.get(name)]
            told = ", ".join(f"{name}: {before.get(name)} then, {wanted.get(name)} now" for name in names)
            raise ValueError(f"{folder} holds a training with other options ({told}): give the same, or remove it.")
        if writes:
            checkpoints.folder.mkdir(parents=True, exist_ok=True)
            with staged_file(kept) as partial:
                partial.write_text(json.dumps(wanted), encoding="utf-8")
        return cls(checkpoints=checkpoints, done=done, prefix=prefix)

    @property
    def weights(self) -> Path | None:
        """Path of the weights of the newest checkpoint."""
        return None if self.prefix is None else Path(f"{self.prefix}.pdparams")

    @property
    def of_distillation(self) -> str | None:
        """``resume`` of `DistillCallback`; ``None`` if it has no state."""
        return self.prefix if self.prefix is not None and Path(f"{self.prefix}.pddistill").is_file() else None


class PartSampler(paddle.io.DistributedBatchSampler):
    """Sampler of a part of a shuffled epoch; all parts together take each sample once.

    Args:
        data: Training data.
        batch_size: Samples per batch and process.
        seed: Seed of the order.

    Attributes:
        parts: Number of parts of an epoch.
        part: The part that the next iteration takes, counted from the first epoch on.
    """

    def __init__(self, data: paddle.io.Dataset, batch_size: int, seed: int) -> None:
        super().__init__(data, batch_size, shuffle=True)
        self.batches = super().__len__()
        self.parts = max(1, round(self.batches / _BATCHES))
        self.seed, self.part = seed, 0

    def __iter__(self) -> Iterator[list[int]]:
        epoch, part = divmod(self.part, self.parts)
        self.set_epoch(10_007 * self.seed + epoch)
        batches = list(super().__iter__())
        yield from batches[self._bound(part) : self._bound(part + 1)]

    def __len__(self) -> int:
        """Return the number of batches of the next part."""
        part = self.part % self.parts
        return self._bound(part + 1) - self._bound(part)

    def _bound(self, part: int) -> int:
        return part * self.batches // self.parts


class SeedParts(paddle.callbacks.Callback):
    """Seed the random generators by seed and part, and tell the sampler the part.

    Args:
        done: Number of parts finished before this ``fit``.
        sampler: Sampler of the training data.
    """

    def __init__(self, done: int, sampler: PartSampler) -> None:
        super().__init__()
        self.done, self.sampler = done, sampler

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Seed (called by hapi)."""
        self.sampler.part = self.done + epoch
        number = 100_003 * self.sampler.seed + self.sampler.part
        mixed = number * paddle.distributed.get_world_size() + paddle.distributed.get_rank()
        paddle.seed(mixed)
        random.seed(mixed)
        np.random.seed(mixed)


class PartLog(paddle.callbacks.Callback):
    """Append a line of JSON with loss and times to a file after each part.

    Args:
        path: Path of the file.
        sampler: Sampler of the training data.
    """

    def __init__(self, path: Path, sampler: PartSampler) -> None:
        super().__init__()
        self.path, self.sampler = path, sampler
        self.losses: list[float] = []
        self.began = (0.0, 0.0)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the time, and begin a new file with the first part (called by hapi)."""
        self.losses, self.began = [], (time.perf_counter(), time.process_time())
        if self.sampler.part == 0:
            self.path.unlink(missing_ok=True)

    def on_train_batch_end(self, step: int, logs: dict[str, Any] | None = None) -> None:
        """Record the loss (called by hapi)."""
        self.losses.append(float(np.sum((logs or {})["loss"])))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write the line (called by hapi)."""
        line = {
            "epoch": round((self.sampler.part + 1) / self.sampler.parts, 3),
            "batches": len(self.losses),
            "loss": round(float(np.mean(self.losses)), 7),
            "seconds": round(time.perf_counter() - self.began[0], 1),
            "cpu_seconds": round(time.process_time() - self.began[1], 1),
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
