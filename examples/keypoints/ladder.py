"""The guide's ladder on generated figures: teacher, light, distilled, PACT, distilled + PACT, several seeds.

Every row is trained, exported, checked, timed on every engine, and its exported files are evaluated. Writes
``ladder.md`` and ``ladder.jsonl`` after every finished row; a row that is there already is not trained again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from evaluate import ap_of_files
from settings import SETTINGS, add_data_flags, datasets, load_weights, network, shortened
from train import fit

from paddlelite_callbacks import DistillCallback, ExportBenchCallback, PACTQuantCallback

ROWS = ("light", "distilled", "pact", "distilled + pact")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_data_flags(parser)
    parser.add_argument("--quick", action="store_true", help="a few minutes: small input, few epochs, one seed")
    parser.add_argument("--teacher", default="hrnet_w32")
    parser.add_argument("--light", default="lite_hrnet_30")
    parser.add_argument("--epochs", type=int, help="of every row")
    parser.add_argument("--teacher-epochs", type=int, help="of the teacher")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--distill-weight", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=Path("keypoints-ladder"))
    flags = parser.parse_args()
    if flags.quick:
        flags.settings, flags.seeds, flags.toy_images = "toy-quick", 1, (150, 40)
        flags.teacher, flags.light = "hrnet_w18", "lite_hrnet_18"
    return flags


def main(flags: argparse.Namespace) -> list[dict[str, Any]]:
    """Train what is missing and write the table."""
    train, held_out = datasets(flags)
    flags.out.mkdir(parents=True, exist_ok=True)
    path = flags.out / "ladder.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    done = {(row["name"], row["seed"]) for row in rows}
    wanted = [("teacher", 0), *((name, seed) for seed in range(flags.seeds) for name in ROWS)]
    for name, seed in wanted:
        if (name, seed) in done:
            continue
        row = run(name, seed, train, held_out, flags)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        rows.append(row)
        table = markdown(rows)
        (flags.out / "ladder.md").write_text(table, encoding="utf-8")
        print(table, flush=True)
    return rows


def run(name: str, seed: int, train: Any, held_out: Any, flags: argparse.Namespace) -> dict[str, Any]:
    """Train, export, time and evaluate one row."""
    print(f"--- {name}, seed {seed}", flush=True)
    paddle.seed(seed)
    np.random.seed(seed)
    is_teacher = name == "teacher"
    layer = network(flags.teacher if is_teacher else flags.light)
    epochs = flags.teacher_epochs if is_teacher and flags.teacher_epochs else flags.epochs
    settings = shortened(SETTINGS[flags.settings], epochs)
    label = f"{name}-{seed}".replace(" + ", "-")
    bench = ExportBenchCallback(flags.out, name=label)
    callbacks: list[Any] = [bench]
    if "distilled" in name:
        teacher = network(flags.teacher)
        load_weights(teacher, flags.out / "weights-teacher-0" / "last.pdparams")
        callbacks.append(DistillCallback(teacher, loss="mse", weight=flags.distill_weight))
    if "pact" in name:
        callbacks.append(PACTQuantCallback())
    own = argparse.Namespace(**{**vars(flags), "out": flags.out / f"weights-{label}", "verbose": 2})
    figures = fit(layer, train, held_out, settings, own, callbacks)
    record = bench.record
    if record is None:
        raise RuntimeError(f"{name}: nothing was exported.")
    return {
        "name": name,
        "seed": seed,
        "AP": figures["AP"],
        "AR": figures["AR"],
        "files": ap_of_files(flags.out / label, held_out, dark=flags.dark),
        "parameters": record.parameters,
        "size_mb": {f"{a.kind} {a.precision}": a.size_mb for a in record.artefacts if a.size_mb},
        "ms": {item.engine: item.p50_ms for item in record.latencies if item.p50_ms},
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the guide's table; AP as mean and 95 % interval over the seeds (Student's t)."""
    engines = list(dict.fromkeys(engine for row in rows for engine in row["ms"]))
    lines = [
        "| model | AP, flip test | AP of the files, worst | parameters | MB | "
        + " | ".join(f"{engine} ms" for engine in engines)
        + " |",
        "|---" + "|---:" * (4 + len(engines)) + "|",
    ]
    for name in dict.fromkeys(row["name"] for row in rows):
        same = [row for row in rows if row["name"] == name]
        worst = [min((f["AP"] for f in row["files"].values() if "AP" in f), default=float("nan")) for row in same]
        sizes = ", ".join(f"{np.mean([r['size_mb'].get(k, np.nan) for r in same]):.2f}" for k in same[0]["size_mb"])
        times = [f"{np.median([r['ms'].get(e, np.nan) for r in same]):.2f}" for e in engines]
        cells = [name, interval([row["AP"] for row in same]), interval(worst)]
        cells += [f"{same[0]['parameters'] / 1e6:.2f} M", sizes, *times]
        lines.append("| " + " | ".join(cells) + " |")
    kinds = list(rows[0]["size_mb"]) if rows else []
    return "\n".join([*lines, "", f"MB of {' and of '.join(k.split()[0] for k in kinds)}; 1 thread, batch 1.", ""])


def interval(values: list[float]) -> str:
    """``mean ± half width`` of the 95 % interval of a mean, in per cent."""
    quantile = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}.get(len(values), 1.96)
    mean = f"{100 * np.mean(values):.1f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {100 * quantile * np.std(values, ddof=1) / np.sqrt(len(values)):.1f}"


if __name__ == "__main__":
    main(parse())
