"""Run the guide's ladder on generated figures or on real people, over several seeds.

Rows: teacher, light, distilled, PACT, distilled + PACT. For each seed a light network is trained alone and one with the
teacher. From the weights of each, a second, shorter training at half the rate follows, once with PACT (the guide's
recipe) and once in fp32 as the baseline of equal length. Each row is exported and validated, and its files are
evaluated and timed on every engine. Writes ``table.md`` and ``ladder.jsonl`` after each row. After an interruption the
same command skips finished rows and resumes the unfinished one from its last checkpoint.

    python examples/keypoints/ladder.py --quick     # minutes, one seed: smoke test, low accuracy
    python examples/keypoints/ladder.py --jobs 2    # seeds in two processes
    python examples/keypoints/ladder.py --lsp /data/lspet   # real people; hours
    python examples/keypoints/ladder.py --export-again   # export and evaluate the finished rows again
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from paddlelite_callbacks.utils.cpu import mkl_environment

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several single-threaded processes do more than one with many threads
os.environ.update(mkl_environment())

import numpy as np
import paddle
from dataset import KeypointDataset
from distilling import add_distill_flags, distillation
from ladder_files import (
    TEACHER,
    bench_of,
    draw_rows,
    export_again,
    figures_of,
    files_of,
    images_of,
    label_of,
    rows_of,
    time_rows,
    weights_of,
)
from ladder_table import markdown
from resuming import Progress
from settings import SETTINGS, Settings, add_data_flags, datasets, load_weights, network, shortened, steps_per_epoch
from train import fit

from paddlelite_callbacks import PACTQuantCallback
from paddlelite_callbacks.benchmark.engines import ENGINES
from paddlelite_callbacks.errors import ExportError
from paddlelite_callbacks.recipes.state import Checkpoints
from paddlelite_callbacks.utils.atomic_files import staged_file

# row -> row whose weights it starts from
ROWS = {
    "light": None,
    "distilled": None,
    "light, longer": "light",
    "distilled, longer": "distilled",
    "PACT": "light",
    "distilled + PACT": "distilled",
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_flags(parser)
    add_distill_flags(parser)
    parser.add_argument("--quick", action="store_true", help="a few minutes: few pictures, few epochs, one seed")
    parser.add_argument("--teacher", default="hrnet_w18")
    parser.add_argument("--light", default="lite_hrnet_18")
    parser.add_argument(
        "--light-images", type=int, default=96, help="labelled images of the light networks (default: 96; of --lsp all)"
    )
    parser.add_argument("--same-images", action="store_true", help="distil only on these images, not on all")
    parser.add_argument("--steps", type=int, default=300, help="batches of light and distilled")
    parser.add_argument("--short-steps", type=int, default=100, help="batches of the second training")
    parser.add_argument("--teacher-steps", type=int, default=500, help="batches of the teacher")
    parser.add_argument(
        "--pact-skip", nargs="*", default=["*depthwise*"], help="layers that stay in fp32 (default: *depthwise*)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="0, 1, ...")
    parser.add_argument("--seed-list", type=int, nargs="*", help="seeds instead of --seeds; empty: only the teacher")
    parser.add_argument("--rows", choices=ROWS, nargs="+", default=list(ROWS), help="rows to run besides the teacher")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the seeds")
    parser.add_argument("--engines", choices=ENGINES, nargs="+", default=list(ENGINES), help="to evaluate and time on")
    parser.add_argument("--repeats", type=int, default=50, help="timed calls at the end")
    parser.add_argument("--export-again", action="store_true", help="only export the finished rows again")
    parser.add_argument("--no-timing", action="store_true", help="do not time the rows against each other at the end")
    parser.add_argument("--out", type=Path, default=Path("keypoints-ladder"))
    parser.set_defaults(dark=True)
    given, _ = parser.parse_known_args(arguments)
    if given.quick:
        parser.set_defaults(settings="toy-quick", toy_images=(64, 16), light_images=32, seeds=1)
        parser.set_defaults(steps=4, short_steps=2, teacher_steps=4, repeats=5)
    elif given.lsp is not None:
        parser.set_defaults(settings="people", teacher="hrnet_w18_small_v2")
        parser.set_defaults(steps=2256, short_steps=564, teacher_steps=2256)
    if given.lsp is not None:
        parser.set_defaults(light_images=None)
    flags = parser.parse_args(arguments)
    if flags.seed_list is None:
        flags.seed_list = list(range(flags.seeds))
    flags.failed = []
    return flags


def main(flags: argparse.Namespace) -> list[dict[str, Any]]:
    """Train missing rows and write the table; collect failures in ``flags.failed``."""
    data = datasets(flags)
    flags.out.mkdir(parents=True, exist_ok=True)
    seeds = flags.seed_list
    if flags.export_again:
        export_again(data[1], flags)
    else:
        train_missing(TEACHER, 0, data, flags)
        if flags.jobs > 1:
            flags.failed += share_out(seeds, flags.jobs)
        for seed in seeds:
            for row in flags.rows:
                train_missing(row, seed, data, flags)
    if seeds and not flags.no_timing:
        time_rows(min(seeds), data[1], flags)
        draw_rows(min(seeds), data[1], flags)
    return write_table(flags)


def share_out(seeds: list[int], jobs: int) -> list[str]:
    """Run the seeds in ``jobs`` child processes; return the shares that failed."""
    command = [sys.executable, *sys.argv, "--jobs", "1", "--no-timing", "--seed-list"]
    shares = [seeds[k::jobs] for k in range(min(jobs, len(seeds)))]
    running = [subprocess.Popen([*command, *map(str, share)]) for share in shares]
    codes = [process.wait() for process in running]
    return [f"a row of the seeds {share}" for share, code in zip(shares, codes, strict=False) if code]


def train_missing(name: str, seed: int, data: Any, flags: argparse.Namespace) -> None:
    """Run a row unless it is finished."""
    if (name, seed) in {(row["name"], row["seed"]) for row in rows_of(flags)}:
        return
    print(f"--- {name}, seed {seed}", flush=True)
    try:
        row = run(name, seed, *data, flags)
    except ExportError as error:  # the training is kept: later rows start from it
        print(f"{name}, seed {seed}: {error}", file=sys.stderr)
        flags.failed.append(f"{name}, seed {seed}")
        return
    with (flags.out / "ladder.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    Checkpoints(weights_of(name, seed, flags).parent / "checkpoints").delete()
    write_table(flags)


def write_table(flags: argparse.Namespace) -> list[dict[str, Any]]:
    """Write ``table.md`` of all finished rows, and return the rows."""
    rows = rows_of(flags)
    times = flags.out / "times.json"
    with staged_file(flags.out / "table.md") as partial:
        partial.write_text(markdown(rows, json.loads(times.read_text()) if times.is_file() else None), encoding="utf-8")
    return rows


def training_of(name: str, data: KeypointDataset, flags: argparse.Namespace) -> Settings:
    """Return the training settings of a row, scaled to its number of steps."""
    settings = SETTINGS[flags.settings]
    first = flags.teacher_steps if name == TEACHER else flags.steps
    steps = flags.short_steps if ROWS.get(name) else first
    settings = shortened(settings, max(1, round(steps / steps_per_epoch(data, settings))))
    factor = 0.25 if name == TEACHER else 1.0  # the guide trains HRNet with a quarter of Lite-HRNet's rate
    if ROWS.get(name) and "PACT" not in name:
        factor = 0.5  # PACTQuantCallback does this itself
    return replace(settings, learning_rate=factor * settings.learning_rate)


def training_data(name: str, train: KeypointDataset, flags: argparse.Namespace) -> KeypointDataset:
    """Return the training data of a row.

    The teacher is trained with all labels, light networks with those of the first images. With distillation, light
    networks also use the other images without labels.
    """
    if name == TEACHER or flags.light_images is None:
        return train
    return train.first(flags.light_images, others_unlabelled=name.startswith("distilled") and not flags.same_images)


def run(
    name: str, seed: int, train: KeypointDataset, held_out: KeypointDataset, flags: argparse.Namespace
) -> dict[str, Any]:
    """Train, export and evaluate one row."""
    data, layout, begin = training_data(name, train, flags), train.source.layout, time.perf_counter()
    settings, weights = training_of(name, data, flags), weights_of(name, seed, flags)
    progress = Progress.of(weights.parent, config_of(name, seed, settings, data, flags), resume=True)
    own = argparse.Namespace(**{**vars(flags), "out": weights.parent, "seed": seed})
    paddle.seed(seed)
    np.random.seed(seed)
    with paddle.utils.unique_name.guard():  # the optimizer's state goes by names, which must not depend on other rows
        layer = network(flags.teacher if name == TEACHER else flags.light, layout)
        if first := progress.weights or start_of(name, seed, flags):
            load_weights(layer, first)
        callbacks: list[Any] = []
        if "distilled" in name:
            teacher, resume = weights_of(TEACHER, 0, flags), progress.of_distillation
            callbacks.append(distillation(flags, flags.teacher, teacher, layout, resume=resume))
        if "PACT" in name:
            callbacks.append(PACTQuantCallback(skip=flags.pact_skip))
        figures = fit(layer, data, held_out, settings, own, callbacks, progress)
    record = bench_of(label_of(name, seed), flags).export(layer, images_of(held_out))
    if record is None:
        raise RuntimeError(f"{name}: nothing was exported.")
    row = {"name": name, "seed": seed, "epochs": settings.epochs, **figures_of(record), **figures}
    row["files"] = files_of(label_of(name, seed), held_out, flags)
    return {**row, "seconds": round(time.perf_counter() - begin)}


def start_of(name: str, seed: int, flags: argparse.Namespace) -> Path | None:
    """Return the weights that a row starts from; ``None`` for random ones."""
    start = ROWS.get(name)
    return weights_of(start, seed, flags) if start else None


def config_of(
    name: str, seed: int, settings: Settings, data: KeypointDataset, flags: argparse.Namespace
) -> dict[str, Any]:
    """Return what the training of a row depends on, for `Progress`."""
    network_name = flags.teacher if name == TEACHER else flags.light
    config: dict[str, Any] = {"row": name, "seed": seed, "network": network_name, **asdict(settings)}
    config |= {"layout": data.source.layout.name, "persons": len(data), "dark": flags.dark, "udp": flags.udp}
    if start := start_of(name, seed, flags):
        config["start"] = _checksum(start)
    if "distilled" in name:
        options = ("distill_weight", "distill_features", "feature_loss", "feature_weight")
        config |= {option: getattr(flags, option) for option in options}
        config["teacher"] = _checksum(weights_of(TEACHER, 0, flags))
    return config | ({"pact_skip": flags.pact_skip} if "PACT" in name else {})


def _checksum(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


if __name__ == "__main__":
    asked = parse()
    main(asked)
    for row_and_seed in asked.failed:
        print(f"Nothing was exported of {row_and_seed}.", file=sys.stderr)
    sys.exit(1 if asked.failed else 0)
