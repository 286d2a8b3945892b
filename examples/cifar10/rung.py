"""Train, export and evaluate one rung of the CIFAR-10 ladder.

The accuracy of its files is measured on every engine. An interrupted rung resumes after its last complete epoch; a
finished one adds a line to ``ladder.jsonl`` and is skipped. ``ladder.py`` runs all rungs.

    python examples/cifar10/rung.py --data cifar-10-python.tar.gz --rung teacher
    python examples/cifar10/rung.py --data cifar-10-python.tar.gz --rung kl --light lcnet --seed 1
    python examples/cifar10/rung.py --quick --rung teacher      # smoke test on drawn images
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import before_paddle  # noqa: F401
import numpy as np
import paddle
from data import CLASSES, MEAN, STD, Pictures, default_cache, drawn, held_out, load, normalized
from networks import LIGHT, ResNet9, light_network, whiten_
from paddle import nn
from remembered import RememberedTeacher
from training import Recipe, accuracy, fit, save_weights

from paddlelite_callbacks import (
    BenchOptions,
    DistillCallback,
    ExportBenchCallback,
    ExportOptions,
    PACTConfig,
    PACTQuantCallback,
    __version__,
    prepare_pact_,
    ptq_int8,
)
from paddlelite_callbacks.benchmark.engines import DEFAULT_ENGINES, ENGINES, EngineError, missing_reason
from paddlelite_callbacks.report.record import Record
from paddlelite_callbacks.utils.safe_load import read_saved

__all__ = ["LOSSES", "RUNGS", "TEACHER", "Rung", "add_flags", "label_of", "line_of", "lines_of", "main", "parse"]

TEACHER = "teacher"
LOSSES = {  # options of DistillCallback
    "kl": {"loss": "kl", "temperature": 4.0, "weight": 0.9, "task_weight": 0.1},
    "dkd": {"loss": "dkd", "temperature": 4.0, "weight": 0.25, "task_weight": 1.0},
    "dist": {"loss": "dist", "temperature": 4.0, "weight": 0.125, "task_weight": 1.0},
}
SIDECAR = {"labels": list(CLASSES), "preprocess": {"size": 32, "mean": MEAN, "std": STD}}  # for deploy.json


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One row of the ladder.

    Args:
        start: Rung whose weights it starts from, for a second training with a quarter of the epochs and of the rate;
            ``None`` for a full training.
        loss: Distillation loss, a key of `LOSSES`; ``None`` for none.
        weight_bits: Bits of the weights in quantisation-aware training with PACT (activations have 8); ``None`` for
            fp32.
        ptq: Whether to quantise after training, without further training.
    """

    start: str | None = None
    loss: str | None = None
    weight_bits: int | None = None
    ptq: bool = False


def _rungs() -> dict[str, Rung]:
    rungs = {TEACHER: Rung(), "light": Rung(), **{loss: Rung(loss=loss) for loss in LOSSES}}
    for start in ("light", *LOSSES):
        loss, prefix = (None, "") if start == "light" else (start, f"{start}+")
        rungs[f"{start}-longer"] = Rung(start=start, loss=loss)
        rungs[f"{prefix}ptq"] = Rung(start=start, ptq=True)
        rungs[f"{prefix}pact"] = Rung(start=start, loss=loss, weight_bits=8)
        rungs[f"{prefix}pact4"] = Rung(start=start, loss=loss, weight_bits=4)
    return rungs


RUNGS = _rungs()


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the options that rungs and the ladder share."""
    add = parser.add_argument
    add("--data", type=Path, metavar="FILE", help="cifar-10-python.tar.gz, of paddle.vision.datasets.Cifar10")
    add("--images", type=Path, metavar="DIR", help="instead of --data: train|test/CLASS/*.jpg")
    add("--cache", type=Path, default=default_cache(), metavar="DIR", help="folder for the decoded images")
    add("--out", type=Path, default=Path("runs/cifar10"), metavar="DIR", help="for ladder.jsonl and a folder per rung")
    add("--light", choices=LIGHT, default="lcnet", help="the light network")
    add("--holdout", action="store_true", help="evaluate on 5,000 training images, to choose settings")
    add("--epochs", type=int, metavar="E", help="of a full training; second trainings take a quarter")
    add("--engines", nargs="+", choices=ENGINES, default=list(DEFAULT_ENGINES), help="engines to evaluate the files on")
    add("--quick", action="store_true", help="smoke test: few drawn images, one epoch")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    add = parser.add_argument
    add("--rung", choices=RUNGS, required=True, help="rung to run; NAME+pact etc. start from NAME's weights")
    add("--seed", type=int, default=0, metavar="N", help="seed of weights, order, augmentation and dropout")
    add("--rate", type=float, metavar="R", help="largest learning rate of a full training")
    add("--decay", type=float, metavar="D", help="weight decay")
    add("--smoothing", type=float, metavar="S", help="label smoothing")
    add("--cutout", type=int, metavar="PX", help="side of the cutout square; helps in long trainings")
    add("--teacher-weights", type=Path, metavar="FILE", help="weights of the teacher (default: rung 'teacher')")
    add("--temperature", type=float, metavar="T", help="temperature of the distillation loss")
    add("--weight", type=float, metavar="W", help="weight of the distillation loss")
    add("--task-weight", type=float, metavar="W", help="weight of the task loss")
    return parser.parse_args(arguments)


def label_of(rung: str, light: str, seed: int) -> str:
    """Return the name of a rung's folder."""
    return f"{rung}-{seed}" if rung == TEACHER else f"{light}-{rung}-{seed}"


def folder_of(rung: str, seed: int, flags: argparse.Namespace) -> Path:
    """Return the folder of a rung; those of ``--holdout`` are in a sub-folder."""
    return flags.out / ("holdout" if flags.holdout else "") / label_of(rung, flags.light, seed)


def pictures(flags: argparse.Namespace) -> tuple[Pictures, Pictures]:
    """Return training and evaluation images."""
    if flags.quick:
        return drawn(256, seed=1), drawn(100, seed=2)
    train, test = load(archive=flags.data, folder=flags.images, cache=flags.cache)
    return held_out(train) if flags.holdout else (train, test)


def recipe_of(name: str, flags: argparse.Namespace) -> Recipe:
    """Return how a rung is trained: its own defaults, or what the command line says."""
    recipe = Recipe(epochs=14, decay=1e-3) if name == TEACHER else Recipe(epochs=12, smoothing=0.0, decay=2e-4, step=2)
    options = {key: getattr(flags, key) for key in ("epochs", "rate", "decay", "smoothing", "cutout")}
    if flags.quick:
        options = {"epochs": 1, "batch": 64, **{key: value for key, value in options.items() if value is not None}}
    recipe = replace(recipe, **{key: value for key, value in options.items() if value is not None})
    if RUNGS[name].start is None:
        return recipe
    return replace(recipe, epochs=max(1, recipe.epochs // 4), rate=recipe.rate / 4)


def trained_teacher(flags: argparse.Namespace) -> tuple[nn.Layer, str]:
    """Return the trained teacher and the checksum of its file."""
    path = flags.teacher_weights or folder_of(TEACHER, 0, flags) / "weights.pdparams"
    if not path.is_file() and flags.holdout:
        path = flags.out / label_of(TEACHER, "", 0) / "weights.pdparams"
    if not path.is_file():
        raise SystemExit(f"There is no {path}: train the teacher first (--rung teacher), or give --teacher-weights.")
    teacher = empty_teacher(flags)
    teacher.set_state_dict(read_saved(path))
    return teacher, hashlib.sha256(path.read_bytes()).hexdigest()


def empty_teacher(flags: argparse.Namespace) -> ResNet9:
    """Build the teacher."""
    return ResNet9((8, 16, 16)) if flags.quick else ResNet9()


def network_of(name: str, train: Pictures, flags: argparse.Namespace) -> nn.Layer:
    """Build the network of a rung with its initial weights."""
    paddle.seed(flags.seed)
    np.random.seed(flags.seed)
    if name == TEACHER:
        return whiten_(empty_teacher(flags), train.images[::10])
    network = light_network(flags.light, empty_teacher(flags))
    if start := RUNGS[name].start:
        path = folder_of(start, flags.seed, flags) / "weights.pdparams"
        if not path.is_file():
            raise SystemExit(f"There is no {path}: {name!r} starts from {start!r}; run --rung {start} first.")
        network.set_state_dict(read_saved(path))
    return network


def distillation(loss: str, flags: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `DistillCallback`."""
    changed = {key: getattr(flags, key) for key in ("temperature", "weight", "task_weight")}
    return LOSSES[loss] | {key: value for key, value in changed.items() if value is not None}


def run(flags: argparse.Namespace) -> dict[str, Any]:
    """Train, export and evaluate one rung; return its line of ``ladder.jsonl``."""
    rung, folder, begin = RUNGS[flags.rung], folder_of(flags.rung, flags.seed, flags), time.perf_counter()
    train, test = pictures(flags)
    network, recipe = network_of(flags.rung, train, flags), recipe_of(flags.rung, flags)
    callbacks: list[Any] = []
    told: dict[str, Any] = {}
    if rung.weight_bits:
        config = PACTConfig(weight_bits=rung.weight_bits, lr_scale=1.0)  # the recipe already has the smaller rate
        prepare_pact_(network, config)  # before the optimizer is created, as when the training is resumed
        callbacks.append(PACTQuantCallback(config))
        told["pact"] = asdict(config)
    if rung.loss:
        teacher, checksum = trained_teacher(flags)
        told["distillation"] = {**distillation(rung.loss, flags), "teacher_sha256": checksum}
        remembered = RememberedTeacher(teacher, flags.out / "teacher_outputs" / checksum[:16])
        callbacks += [DistillCallback(remembered, **distillation(rung.loss, flags)), _Remember(remembered)]
    if rung.ptq:
        batches = [paddle.to_tensor(normalized(train.images[k : k + 64])) for k in range(0, min(512, len(train)), 64)]
        network = ptq_int8(network, batches)
    else:
        told["recipe"] = fit(network, train, recipe, folder, seed=flags.seed, callbacks=callbacks)
    save_weights(network, folder / "weights.pdparams")
    told |= {"accuracy": accuracy(network, test), "images": len(test)}
    print(f"{flags.rung}: {100 * told['accuracy']:.2f} %; exporting ...", flush=True)
    record, files = exported(network, folder, test, flags)
    return line_of(flags, record, files, told | {"seconds": round(time.perf_counter() - begin)})


class _Remember(paddle.callbacks.Callback):
    """Save the teacher's new outputs after each epoch."""

    def __init__(self, teacher: RememberedTeacher) -> None:
        super().__init__()
        self.teacher = teacher

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Save them."""
        self.teacher.save()


def exported(
    network: nn.Layer, folder: Path, test: Pictures, flags: argparse.Namespace
) -> tuple[Record, dict[str, float | str]]:
    """Export a network, and evaluate each file on each engine that reads it."""
    export = ExportBenchCallback(
        folder, name="files", engines=flags.engines,
        export=ExportOptions(report=False, forms=["pdmodel"], sidecar=SIDECAR),
        benchmark=BenchOptions(warmup=1, repeats=3, peak_memory=False, roofline=False),
    )  # fmt: skip
    record = export.export(network, normalized(test.images[:32]))
    if record is None:
        raise RuntimeError(f"{folder}: nothing was exported.")
    found: dict[str, float | str] = {}
    for item in record.artefacts:
        for engine in (ENGINES[name] for name in flags.engines if item.path and ENGINES[name].kind == item.kind):
            key = f"{Path(str(item.path)).name} on {engine.name}"
            try:
                if reason := missing_reason(engine):
                    raise EngineError(reason)
                found[key] = _accuracy_of(engine.load(item.artefact(), threads=1), test)
            except (EngineError, RuntimeError, ValueError) as error:
                found[key] = str(error).strip().splitlines()[-1]
            print(f"  {key}: {found[key]}", flush=True)
    return record, found


def _accuracy_of(predict: Any, test: Pictures, batch: int = 100) -> float:
    right = 0
    for begin in range(0, len(test), batch):
        part = test.part(slice(begin, begin + batch))
        right += int((predict([normalized(part.images)])[0].argmax(axis=1) == part.labels).sum())
    return right / len(test)


def line_of(
    flags: argparse.Namespace, record: Record, files: dict[str, float | str], told: dict[str, Any]
) -> dict[str, Any]:
    """Return the rung's line of ``ladder.jsonl``."""
    return {
        "rung": flags.rung,
        "seed": flags.seed,
        "light": None if flags.rung == TEACHER else flags.light,
        "holdout": flags.holdout,
        **told,
        "files": files,
        "failed": {f"{check.precision} {check.engine}": check.error for check in record.checks if not check.passed},
        "parameters": record.parameters,
        "macs": record.macs,
        "size_mb": {f"{item.precision} {item.kind}": item.size_mb for item in record.artefacts if item.size_mb},
        "created": record.created,
        "cpu": record.machine.processor,
        "versions": {"paddlelite_callbacks": __version__, "paddle": paddle.__version__},
    }


def lines_of(flags: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the lines of the finished rungs."""
    path = flags.out / ("holdout" if flags.holdout else "") / "ladder.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the rung unless it is finished, and write its line and its log."""
    flags = parse(arguments)
    mine = (flags.rung, flags.seed, None if flags.rung == TEACHER else flags.light)
    if any((line["rung"], line["seed"], line["light"]) == mine for line in lines_of(flags)):
        print(f"{' '.join(map(str, mine))}: finished before, see ladder.jsonl")
        return
    line = run(flags)
    base, label = flags.out / ("holdout" if flags.holdout else ""), label_of(flags.rung, flags.light, flags.seed)
    log = base / label / "log.jsonl"
    if log.is_file():
        (base / "logs").mkdir(exist_ok=True)
        shutil.copyfile(log, base / "logs" / f"{label}.jsonl")
    with (base / "ladder.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line, indent=1))


if __name__ == "__main__":
    main()
