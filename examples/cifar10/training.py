"""One training that goes on after a kill: its state is written after every epoch, whole or not at all."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from data import Batches, Pictures, normalized
from paddle import nn

from paddlelite_callbacks.utils.atomic_files import staged_file
from paddlelite_callbacks.utils.safe_load import read_saved

__all__ = ["Recipe", "accuracy", "fit", "save_weights"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained: SGD with Nesterov momentum, one cycle of the learning rate.

    Args:
        epochs: how many.
        rate: the largest learning rate, for batches of 128; scaled with ``batch``.
        warmup: share of the steps in which the rate rises to it; then it falls to zero, linearly.
        decay: weight decay.
        smoothing: of the labels.
        batch: pictures a step.
        crop: pixels, see `Batches`.
        cutout: pixels, see `Batches`.
    """

    epochs: int
    rate: float = 0.13
    warmup: float = 0.2
    decay: float = 5e-4
    smoothing: float = 0.1
    batch: int = 128
    crop: int = 2
    cutout: int = 0

    def rate_at(self, steps: int) -> Callable[[int], float]:
        """Return the share of the largest rate at a step of ``steps``."""
        peak = max(1, round(self.warmup * steps))
        return lambda step: min((step + 1) / peak, max(0.0, (steps - step) / max(1, steps - peak)))


class _Journal(paddle.callbacks.Callback):
    """Writes the state and a line of JSON after each epoch, and says now and then how far the training is."""

    def __init__(self, folder: Path, batches: Batches, first: int, epochs: int, seed: int, config: dict) -> None:
        super().__init__()
        self.folder, self.batches, self.first, self.epochs, self.seed = folder, batches, first, epochs, seed
        self.config = config
        self.losses: list[float] = []
        self.began = (0.0, 0.0)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Give the epoch its own random streams."""
        self.batches.epoch = self.first + epoch
        paddle.seed(1000 * self.seed + self.first + epoch)
        self.losses, self.began = [], (time.perf_counter(), time.process_time())

    def on_train_batch_end(self, step: int, logs: dict[str, Any] | None = None) -> None:
        """Keep the loss."""
        value = (logs or {})["loss"]
        self.losses.append(float(np.sum(value)))
        if step % 50 == 49:
            seconds = (time.perf_counter() - self.began[0]) / (step + 1)
            print(
                f"{self.folder.name}: epoch {self.batches.epoch + 1}/{self.epochs} step {step + 1}/{len(self.batches)} "
                f"loss {np.mean(self.losses[-50:]):.4f} {seconds:.2f} s a step",
                flush=True,
            )

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write what goes on after a kill."""
        done = self.first + epoch + 1
        line = {
            "epoch": done,
            "loss": round(float(np.mean(self.losses)), 5),
            "seconds": round(time.perf_counter() - self.began[0], 1),
            "cpu_seconds": round(time.process_time() - self.began[1], 1),
        }
        state = {
            "done": done,
            "recipe": json.dumps(self.config),
            "network": self.model.network.state_dict(),
            "optimizer": self.model._optimizer.state_dict(),
        }
        with staged_file(self.folder / "state.pdparams") as partial:
            paddle.save(state, str(partial))
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


def fit(
    network: nn.Layer, train: Pictures, recipe: Recipe, folder: Path, *, seed: int, callbacks: Sequence[Any] = ()
) -> dict[str, Any]:
    """Train ``network`` in place, from the beginning or from where ``folder`` stands; returns what was done.

    Args:
        network: built in the same way each time.
        train: pictures to learn.
        recipe: how.
        folder: gets ``state.pdparams`` and ``log.jsonl``.
        seed: of order, augmentation and dropout.
        callbacks: of ``paddle.Model.fit``.

    Raises:
        SystemExit: ``folder`` holds a training with another recipe; another number of epochs is taken, and the
            learning rate then falls towards that end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    batches = Batches(train, recipe.batch, seed, crop=recipe.crop, cutout=recipe.cutout)
    steps = recipe.epochs * len(batches)
    rate = paddle.optimizer.lr.LambdaDecay(recipe.rate * recipe.batch / 128, recipe.rate_at(steps))
    trained = [parameter for parameter in network.parameters() if not parameter.stop_gradient]
    optimizer = paddle.optimizer.Momentum(
        rate, momentum=0.9, parameters=trained, use_nesterov=True, weight_decay=recipe.decay
    )
    model = paddle.Model(network)
    model.prepare(optimizer, nn.CrossEntropyLoss(label_smoothing=recipe.smoothing))
    config, done, kept = asdict(recipe) | {"seed": seed, "pictures": len(train)}, 0, folder / "state.pdparams"
    if kept.is_file():
        state = read_saved(kept)
        if {**json.loads(state["recipe"]), "epochs": 0} != {**config, "epochs": 0}:  # fewer or more may be wanted now
            raise SystemExit(
                f"{kept} is of a training with {state['recipe']}, now asked for is {json.dumps(config)}: give the same "
                "options, or remove the folder to begin again."
            )
        done = int(state["done"])
        network.set_state_dict(state["network"])
        optimizer.set_state_dict(state["optimizer"])
        print(f"Goes on after epoch {done} of {recipe.epochs}, from {kept}", flush=True)
    if done < recipe.epochs:
        journal = _Journal(folder, batches, done, recipe.epochs, seed, config)
        model.fit(batches, epochs=recipe.epochs - done, verbose=0, callbacks=[*callbacks, journal])
    return config


def save_weights(network: nn.Layer, path: Path) -> None:
    """Write the weights, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with staged_file(path) as partial:
        paddle.save(network.state_dict(), str(partial))


def accuracy(network: nn.Layer, pictures: Pictures, *, batch: int = 250) -> float:
    """Return the share of pictures whose class is found."""
    network.eval()
    right = 0
    with paddle.no_grad():
        for begin in range(0, len(pictures), batch):
            part = pictures.part(slice(begin, begin + batch))
            scores = network(paddle.to_tensor(normalized(part.images))).numpy()
            right += int((scores.argmax(axis=1) == part.labels).sum())
    network.train()
    return right / len(pictures)
