"""Command ``lighten --images DIR``: find a light network within a budget."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddlelite_callbacks.cli.output import write_json, write_text
from paddlelite_callbacks.utils.cpu import mkl_environment

if TYPE_CHECKING:
    from paddlelite_callbacks.recipes.lighten import Lightened

__all__ = ["add_arguments", "add_training_arguments", "lighten_pictures", "run", "share"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Args:
        parser: Parser of the command.
    """
    parser.description = (
        "Train a large classifier on a folder of images (or load its weights), choose light networks by their measured "
        "latency and size, train each with the large one as teacher, quantise, export, judge, and return the most "
        "accurate that passes. Called again after an interruption, it resumes. Exit code 0; 1 if something failed or "
        "could not be exported; 3 if none passes."
    )
    parser.add_argument(
        "--images", required=True, metavar="DIR", help="one sub-folder per class; broken images are skipped"
    )
    parser.add_argument("--json", action="store_true", help="print only one JSON object at the end")
    add_training_arguments(parser)


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `lighten_pictures` except the images.

    Args:
        parser: Parser of a command or an example.
    """
    add = parser.add_argument
    add("--out", default="lightened", metavar="DIR", help="folder for exports, weights, runs.jsonl, report and best/")
    add("--network", default="resnet50", metavar="NAME", help="large classifier, from paddle.vision.models")
    add("--teacher-weights", metavar="FILE", help=".pdparams of that network; weights of equal shape are loaded")
    add("--light", metavar="NAMES", help="candidates, comma-separated, in any case; all are trained (default: chosen)")
    add("--candidates", type=int, default=2, metavar="N", help="how many to choose from the catalogue (default: 2)")
    add("--pretrained", action="store_true", help="start from published ImageNet weights, which are downloaded")
    add("--size", type=int, default=96, metavar="PX", help="side of the input, 224 for photographs (default: 96)")
    add("--batch-size", type=int, default=16, metavar="N", help="images per training step (default: 16)")
    add("--workers", type=int, default=0, metavar="N", help="processes that read images (default: 0)")
    add("--teacher-epochs", type=int, default=8, metavar="N", help="epochs of the teacher; 0 if trained (default: 8)")
    add("--epochs", type=int, default=12, metavar="N", help="epochs of each light network (default: 12)")
    add("--int8-epochs", type=int, default=4, metavar="N", help="epochs with quantizers; 0 for none (default: 4)")
    add("--rate", type=float, default=1e-3, metavar="R", help="largest learning rate (default: 0.001)")
    add("--loss", type=str.lower, default="kl", metavar="NAME", help="distillation loss, in any case (default: kl)")
    add("--size-mb", type=float, default=20.0, metavar="MB", help="gate: parameters and program (default: 20)")
    add("--latency-ms", type=float, default=100.0, metavar="MS", help="gate: median, fastest engine (default: 100)")
    add("--metric-drop", type=share, default=0.05, metavar="5%", help="gate: relative loss of accuracy (default: 5%%)")
    add("--seed", type=int, default=0, metavar="N", help="seed of weights, split, order and augmentation (default: 0)")
    add("--dry-run", action="store_true", help="measure candidates and steps, show the plan and its time, then end")


def share(text: str) -> float:
    """Return the share that ``5%`` or ``0.05`` means.

    Args:
        text: Argument of a command.

    Raises:
        argparse.ArgumentTypeError: It is no share in [0, 1).
    """
    try:
        value = float(text.rstrip("% ")) / (100 if text.rstrip().endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share: write 5% or 0.05")
    return value


def run(options: argparse.Namespace) -> int:
    """Train, export and judge light networks.

    Args:
        options: Parsed arguments.

    Returns:
        0; 3 if none passes; 1 if something could not be exported.
    """
    from paddlelite_callbacks.report.gate import GATE_FAILED

    made = lighten_pictures(options, verbose=0 if options.json else 1)
    if options.json:
        write_json(_told(made))
    elif made.records:
        write_text(f"Again, or on: {made.command}\n")
    for name in made.failed:
        sys.stderr.write(f"Nothing was exported of {name}: see the report.\n")
    if not made.records:
        return 0
    if made.best is None:
        return GATE_FAILED
    return 1 if made.failed else 0


def lighten_pictures(options: argparse.Namespace, *, verbose: int = 1, **changes: Any) -> Lightened:
    """Read the images, build the large network, and call `lighten`.

    Args:
        options: Arguments of `add_arguments`, parsed.
        verbose: 1 shows progress, 0 nothing.
        changes: Arguments of `lighten` that override these.

    Raises:
        ValueError: The network is unknown, there are no images, weights do not fit, or `lighten` refuses an argument.
    """
    if "paddle" not in sys.modules:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # small images and batches train faster on one thread
        os.environ.update(mkl_environment())
    import paddle

    from paddlelite_callbacks.callbacks.export.options import ExportOptions
    from paddlelite_callbacks.errors import near_names
    from paddlelite_callbacks.recipes.lighten import lighten
    from paddlelite_callbacks.recipes.pictures import PictureFolder, load_fitting_weights_
    from paddlelite_callbacks.report.budget import Budget
    from paddlelite_callbacks.utils.progress import write_lines

    budget = Budget(size_mb=options.size_mb, latency_ms=options.latency_ms)
    makers = {name.casefold(): name for name in dir(paddle.vision.models) if not name.startswith("_")}
    maker = getattr(paddle.vision.models, makers.get(options.network.casefold(), ""), None)
    if maker is None or isinstance(maker, type):
        raise ValueError(
            f"There is no network {options.network!r} in paddle.vision.models; near ones are "
            f"{near_names(options.network, [name for name in makers if name[0].islower()])}."
        )
    pictures = PictureFolder.read(options.images, size=options.size, seed=options.seed)
    if verbose:
        write_lines("\n".join(pictures.lines()))
    paddle.seed(options.seed)
    network = maker(num_classes=len(pictures.classes))
    if options.teacher_weights:
        taken = load_fitting_weights_(network, options.teacher_weights)
        if verbose:
            left = f"; others or other shapes: {list(taken.left)}" if taken.left else ""
            count = len(taken.loaded) + len(taken.left)
            write_lines(f"{options.teacher_weights}: {len(taken.loaded)} of {count} weights loaded{left}")
    given: dict[str, Any] = {
        "metric_drop": options.metric_drop,
        "folder": Path(options.out),
        "candidates": options.light.replace(" ", "").split(",") if options.light else options.candidates,
        "loss": paddle.nn.CrossEntropyLoss(weight=paddle.to_tensor(pictures.weights)),
        "teacher_epochs": options.teacher_epochs,
        "epochs": options.epochs,
        "int8_epochs": options.int8_epochs,
        "batch_size": options.batch_size,
        "learning_rate": options.rate,
        "distill": {"loss": options.loss},
        "pretrained": options.pretrained,
        "export": ExportOptions(sidecar=pictures.sidecar),
        "workers": options.workers,
        "seed": options.seed,
        "dry_run": options.dry_run,
    }
    return lighten(network, pictures.train, pictures.test, budget, verbose=verbose, **{**given, **changes})


def _told(made: Lightened) -> dict[str, Any]:
    from paddlelite_callbacks.report.gate import judge

    return {
        "plan": made.plan.to_json(),
        "runs": [
            {
                "name": record.name,
                "passed": judge(record, made.budget).passed,
                "metrics": record.metrics,
                "size_mb": record.size_mb,
                "failure": record.failure,
            }
            for record in made.records
        ],
        "best": None if made.best is None else made.best.name,
        "best_folder": None if made.best_folder is None else str(made.best_folder),
        "report": str(made.folder / "report.html") if made.records else None,
        "command": made.command,
    }
