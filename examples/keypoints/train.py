"""Train a keypoint network, optionally with a teacher and PACT.

Data: COCO as in the guide, MPII, LSP, or generated figures. ``--resume`` continues an interrupted training from its
last checkpoint.

On several processes: ``python -m paddle.distributed.launch --nproc_per_node 2 examples/keypoints/train.py ...``.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from paddlelite_callbacks.utils.cpu import mkl_environment

os.environ.update(mkl_environment())  # doubles the speed on AMD

import numpy as np
import paddle
from dataset import KeypointDataset
from distilling import add_distill_flags, distillation
from evaluation import write_results
from resuming import PartLog, PartSampler, Progress, SeedParts
from settings import (
    NETWORKS,
    SETTINGS,
    Settings,
    add_data_flags,
    datasets,
    flip_tested,
    hapi_model,
    load_weights,
    metric_of,
    network,
    optimizer,
    shortened,
    steps_per_epoch,
)

from paddlelite_callbacks import PACTQuantCallback, compiled_depthwise
from paddlelite_callbacks.hapi.checkpoints import whole_checkpoints
from paddlelite_callbacks.recipes.state import SaveNewest
from paddlelite_callbacks.utils.atomic_files import staged_file


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_data_flags(parser)
    parser.add_argument("--network", choices=NETWORKS, default="lite_hrnet_30")
    parser.add_argument("--weights", type=Path, help="start from this .pdparams (ours or the guide's)")
    parser.add_argument("--teacher", choices=NETWORKS, help="distil from this network")
    parser.add_argument("--teacher-weights", type=Path, help="its .pdparams (ours or the guide's)")
    add_distill_flags(parser)
    parser.add_argument("--pact", action="store_true", help="quantisation-aware training")
    parser.add_argument("--pact-skip", nargs="*", default=[], help="layers that stay in fp32, e.g. '*depthwise*'")
    parser.add_argument("--epochs", type=int, help="number of epochs (default: as in --settings)")
    parser.add_argument("--learning-rate", type=float, help="learning rate (default: as in --settings)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="continue the interrupted training in --out")
    parser.add_argument("--out", type=Path, default=Path("keypoints-out"))
    return parser.parse_args()


def main(flags: argparse.Namespace) -> dict[str, float]:
    """Train, save and evaluate; return the metrics."""
    if (flags.teacher is None) != (flags.teacher_weights is None):
        raise SystemExit("--teacher and --teacher-weights go together.")
    if paddle.distributed.get_world_size() > 1:
        paddle.distributed.init_parallel_env()
    paddle.seed(flags.seed)
    np.random.seed(flags.seed + paddle.distributed.get_rank())
    train, held_out = datasets(flags)
    settings = shortened(SETTINGS[flags.settings], flags.epochs)
    if flags.learning_rate:
        settings = replace(settings, learning_rate=flags.learning_rate)
    student = network(flags.network, train.source.layout)
    progress = Progress.of(flags.out, config_of(flags, settings, train), resume=flags.resume)
    if weights := progress.weights or flags.weights:
        load_weights(student, weights)
    callbacks: list[Any] = []
    if flags.teacher:
        layout, resume = train.source.layout, progress.of_distillation
        callbacks.append(distillation(flags, flags.teacher, flags.teacher_weights, layout, resume=resume))
    if flags.pact:
        callbacks.append(PACTQuantCallback(skip=flags.pact_skip))
    figures = fit(student, train, held_out, settings, flags, callbacks, progress)
    if paddle.distributed.get_rank() == 0:
        progress.checkpoints.delete()
        print("  ".join(f"{name} {value:.3f}" for name, value in figures.items()))
    return figures


def config_of(flags: argparse.Namespace, settings: Settings, train: KeypointDataset) -> dict[str, Any]:
    """Return what the result of a training depends on, for `Progress`."""
    data = ("coco", "mpii", "lsp", "toy")
    free = {"workers", "resume", "out", "boxes", "settings", "epochs", *data}
    told = {name: value for name, value in vars(flags).items() if name not in free}
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in told.items()}
    return {**plain, **asdict(settings), "layout": train.source.layout.name, "persons": len(train)}


class SaveWeights(paddle.callbacks.Callback):
    """Save the weights after training, before the export.

    Args:
        path: Path of the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Write the file (called by hapi)."""
        with staged_file(self.path) as partial:
            paddle.save(self.model.network.state_dict(), str(partial))


def fit(
    student: paddle.nn.Layer,
    train: KeypointDataset,
    held_out: KeypointDataset,
    settings: Settings,
    flags: argparse.Namespace,
    callbacks: list[Any],
    progress: Progress,
) -> dict[str, float]:
    """Train with `paddle.Model.fit`, or what is left of a training, and evaluate with the flip test.

    Writes a checkpoint and a line of ``log.jsonl`` about every hundred batches, ``last.pdparams`` and ``results.json``.

    Args:
        student: Network to train, with the weights of ``progress``.
        train: Training data with augmentation.
        held_out: Evaluation data.
        settings: Training settings.
        flags: Command-line flags ``out``, ``seed``, ``workers``, ``dark``, ``udp``.
        callbacks: Callbacks of ``fit``.
        progress: Finished parts.
    """
    steps, done = steps_per_epoch(train, settings), progress.done
    joints = len(train.source.layout.joints)
    model = hapi_model(student, settings, optim=optimizer(settings, student, steps), joints=joints)
    if progress.prefix is not None:
        print(f"Resuming from {progress.prefix}", flush=True)
        model.load(progress.prefix)
    sampler = PartSampler(train, settings.batch_size, flags.seed)
    parts = settings.epochs * sampler.parts
    own: list[Any] = [SeedParts(done, sampler)]
    if paddle.distributed.get_rank() == 0:
        own += [PartLog(flags.out / "log.jsonl", sampler), SaveWeights(flags.out / "last.pdparams")]
        own.append(SaveNewest(progress.checkpoints, done))
    if done < parts:
        with whole_checkpoints(model), compiled_depthwise():
            model.fit(
                paddle.io.DataLoader(train, batch_sampler=sampler, num_workers=flags.workers, return_list=True),
                epochs=parts - done,
                verbose=getattr(flags, "verbose", 2),
                log_freq=20,
                callbacks=[*callbacks, *own],
            )
    return evaluate(student, held_out, settings, flags)


def evaluate(
    student: paddle.nn.Layer, held_out: KeypointDataset, settings: Settings, flags: argparse.Namespace
) -> dict[str, float]:
    """Evaluate with the flip test and write ``results.json`` to ``flags.out``."""
    layout = held_out.source.layout
    metric = metric_of(held_out, dark=flags.dark)
    layer = flip_tested(student, udp=flags.udp, layout=layout)
    tested = hapi_model(layer, settings, metric, joints=len(layout.joints))
    figures = tested.evaluate(held_out, batch_size=settings.batch_size, num_workers=flags.workers, verbose=0)
    if paddle.distributed.get_rank() == 0:
        write_results(metric.results, flags.out / "results.json")
    return {name: float(figures[name]) for name in metric.name()}


__all__ = ["config_of", "evaluate", "fit", "main"]

if __name__ == "__main__":
    main(parse())
