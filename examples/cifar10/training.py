"""Train with a resumable state, written atomically after each epoch."""

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
from paddlelite_callbacks.workarounds.depthwise_training import compiled_depthwise

__all__ = ["Recipe", "accuracy", "fit", "save_weights"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Training recipe: SGD with Nesterov momentum and a one-cycle learning rate.

    Args:
        epochs: Number of epochs.
        rate: Largest learning rate for batches of 128; scaled with ``batch``.
        warmup: Share of the steps in which the rate rises linearly; then it falls linearly to zero.
        decay: Weight decay.
        smoothing: Label smoothing.
        batch: Images per batch.
        crop: Largest shift in pixels, see `Batches`.
        step: Multiple of pixels of the shifts, see `Batches`.
        cutout: Side of the cutout square in pixels, see `Batches`.
    """

    epochs: int
    rate: float = 0.13
    warmup: float = 0.2
    decay: float = 5e-4
    smoothing: float = 0.1
    batch: int = 128
    crop: int = 2
    step: int = 1
    cutout: int = 0

    def rate_at(self, steps: int) -> Callable[[int], float]:
        """Return the schedule: step -> share of the largest rate."""
        peak = max(1, round(self.warmup * steps))
        return lambda step: min((step + 1) / peak, max(0.0, (steps - step) / max(1, steps - peak)))


class _Journal(paddle.callbacks.Callback):
    """Save the state and log one line of JSON after each epoch; print progress."""

    def __init__(self, folder: Path, batches: Batches, first: int, epochs: int, seed: int, config: dict) -> None:
        super().__init__()
        self.folder, self.batches, self.first, self.epochs, self.seed = folder, batches, first, epochs, seed
        self.config = config
        self.losses: list[float] = []
        self.began = (0.0, 0.0)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Seed the random generators for the epoch."""
        self.batches.epoch = self.first + epoch
        paddle.seed(1000 * self.seed + self.first + epoch)
        self.losses, self.began = [], (time.perf_counter(), time.process_time())

    def on_train_batch_end(self, step: int, logs: dict[str, Any] | None = None) -> None:
        """Record the loss."""
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
        """Save the state to resume from."""
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
    """Train ``network`` in place, or resume from ``folder``; return its options.

    Args:
        network: Network, built in the same way each time.
        train: Training images.
        recipe: Training recipe. Its number of epochs may change on resuming.
        folder: Folder for ``state.pdparams`` and ``log.jsonl``.
        seed: Seed of order, augmentation and dropout.
        callbacks: Callbacks of ``paddle.Model.fit``.

    Raises:
        SystemExit: ``folder`` holds a training with another recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    batches = Batches(train, recipe.batch, seed, crop=recipe.crop, step=recipe.step, cutout=recipe.cutout)
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
        if {**json.loads(state["recipe"]), "epochs": 0} != {**config, "epochs": 0}:  # the number of epochs may change
            raise SystemExit(
                f"{kept} is of a training with {state['recipe']}, now asked for is {json.dumps(config)}: give the same "
                "options, or remove the folder to begin again."
            )
        done = int(state["done"])
        network.set_state_dict(state["network"])
        optimizer.set_state_dict(state["optimizer"])
        print(f"Resuming after epoch {done} of {recipe.epochs}, from {kept}", flush=True)
    if done < recipe.epochs:
        journal = _Journal(folder, batches, done, recipe.epochs, seed, config)
        with compiled_depthwise():
            model.fit(batches, epochs=recipe.epochs - done, verbose=0, callbacks=[*callbacks, journal])
    return config


def save_weights(network: nn.Layer, path: Path) -> None:
    """Write the weights atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with staged_file(path) as partial:
        paddle.save(network.state_dict(), str(partial))


def accuracy(network: nn.Layer, pictures: Pictures, *, batch: int = 250) -> float:
    """Return the share of correctly classified images."""
    network.eval()
    right = 0
    with paddle.no_grad():
        for begin in range(0, len(pictures), batch):
            part = pictures.part(slice(begin, begin + batch))
            scores = network(paddle.to_tensor(normalized(part.images))).numpy()
            right += int((scores.argmax(axis=1) == part.labels).sum())
    network.train()
    return right / len(pictures)
