"""Copy the files of finished rungs to one folder each, with a model card.

    python examples/cifar10/cards.py --out runs/cifar10 --rungs kl+pact --to examples/results/models

A folder holds the files to ship, their ``deploy.json`` and ``README.md``, the card. ``examples/classify.py`` runs it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rung import RUNGS, TEACHER, label_of

from paddlelite_callbacks.report.intervals import wilson
from paddlelite_callbacks.utils.atomic_files import staged_file

__all__ = ["card", "copy_files", "main"]

INT8, FLOAT = "model.int8.onnx", "model.onnx"  # the second only where there is no first
PAIRS = ("model.int8.pdmodel", "model.int8.pdiparams", "model.pdmodel", "model.pdiparams")


def copy_files(source: Path, target: Path) -> list[str]:
    """Copy a network's files and the part of ``deploy.json`` that tells of them; return their names.

    Of a quantised network the ONNX file in int8 is copied, else that in float; and the files of Paddle 2.

    Args:
        source: Folder of the export.
        target: Folder to write.

    Raises:
        SystemExit: ``source`` holds no exported network.
    """
    told = source / "deploy.json"
    if not told.is_file():
        raise SystemExit(f"{source} holds no exported network: run the rung first.")
    names = [name for name in (INT8, FLOAT) if (source / name).is_file()][:1]
    names += [name for name in PAIRS if (source / name).is_file()]
    content = json.loads(told.read_text(encoding="utf-8"))
    content["files"] = [entry for entry in content["files"] if entry["sha256"].keys() <= set(names)]
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        with staged_file(target / name) as partial:
            shutil.copyfile(source / name, partial)
    with staged_file(target / "deploy.json") as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return names


def card(line: Mapping[str, Any], names: Sequence[str], sizes: Mapping[str, int], command: str) -> str:
    """Return the model card as Markdown.

    Args:
        line: The rung's line of ``ladder.jsonl``.
        names: Names of the files beside the card.
        sizes: Their sizes in bytes.
        command: Command that trained the network.
    """
    rung, light = line["rung"], line["light"] or "ResNet9"
    recipe = line.get("recipe")
    trained = ", ".join(f"{key} {value}" for key, value in (recipe or {}).items()) or "no training: calibrated"
    rows = []
    for key, value in line["files"].items():
        name, engine = key.split(" on ")
        if name in names and isinstance(value, float):
            low, high, _ = wilson(value, line["images"])
            rows.append(f"| `{name}` | {engine} | {100 * value:.2f} | {100 * low:.2f} - {100 * high:.2f} |")
    distilled = line.get("distillation")
    parts = [
        f"# CIFAR-10, {light}, rung {rung}",
        f"Classifies 32x32 RGB images into ten classes. {line['parameters']:,} parameters, {line['macs'] / 1e6:.1f} M "
        "multiply-accumulates an image.",
        "| file | engine | accuracy, % | 95 % interval |\n|---|---|---:|---|\n" + "\n".join(rows),
        f"Accuracy on {line['images']:,} test images, computed from the files; Wilson's interval over images, not over "
        f"seeds. {line['cpu']}.",
        "\n".join(f"- `{name}`: {sizes[name] / 1e6:.2f} MB" for name in names),
        "**Data.** CIFAR-10 (Krizhevsky 2009), its training images. Its makers state no licence; the images were "
        "collected from the web. These weights may be used as the package (Apache-2.0) as far as the data allow.",
        f"**Training.** Seed {line['seed']}; {trained}.",
        *([f"**Distillation.** {json.dumps(distilled)}"] if distilled else []),
        *([f"**Quantisation.** {json.dumps(line['pact'])}"] if line.get("pact") else []),
        f"**Command.** `{command}`",
        f"**Versions.** {', '.join(f'{name} {version}' for name, version in line['versions'].items())}; "
        f"{line['created']}.",
        "**Use.** `python examples/classify.py FOLDER picture.png`, or in Python "
        '`Classifier("FOLDER")("picture.png")`. Input, normalisation and class names are in `deploy.json`.',
        "**Limits.** Trained on small photographs of ten classes: any other picture is given one of these classes too.",
    ]
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a folder per rung."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10"), metavar="DIR", help="folder of the ladder")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder for a folder per network")
    parser.add_argument("--rungs", choices=RUNGS, nargs="+", required=True, help="finished rungs")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the rungs (default: 0)")
    parser.add_argument("--light", default="lcnet", help="the light network (default: lcnet)")
    flags = parser.parse_args(arguments)
    lines = [json.loads(text) for text in (flags.out / "ladder.jsonl").read_text(encoding="utf-8").splitlines()]
    for rung in flags.rungs:
        light = None if rung == TEACHER else flags.light
        found = [line for line in lines if (line["rung"], line["seed"], line["light"]) == (rung, flags.seed, light)]
        if not found:
            raise SystemExit(f"{flags.out}/ladder.jsonl has no line of {rung!r}, seed {flags.seed}: run it first.")
        label = label_of(rung, flags.light, flags.seed)
        target = flags.to / f"cifar10-{label}".replace("+", "-")
        names = copy_files(flags.out / label / "files", target)
        sizes = {name: (target / name).stat().st_size for name in names}
        command = f"python examples/cifar10/rung.py --data cifar-10-python.tar.gz --rung {rung} --seed {flags.seed}"
        with staged_file(target / "README.md") as partial:
            partial.write_text(card(found[-1], names, sizes, command), encoding="utf-8")
        print(f"{target}: {', '.join(names)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
