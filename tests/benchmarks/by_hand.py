"""Shared by the benchmarks that are started by hand: CPU time, engines, children, lines of results and tables."""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddlelite_callbacks.utils.atomic_files import staged_file
from paddlelite_callbacks.utils.cpu import MKL_VARIABLE

if TYPE_CHECKING:  # the scripts set the number of threads before NumPy is imported
    import numpy as np

EXAMPLES = Path(__file__).parents[2] / "examples"
IMAGENET = EXAMPLES / "results" / "imagenet"
NAMES = {"lite0": "EfficientNet-Lite0", "lite1": "EfficientNet-Lite1"}


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def cpu_seconds() -> float:
    """Return the CPU time of this process and its finished children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def by_onnxruntime(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that runs a file of one input on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def quality(got: np.ndarray, wanted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return top-1 and agreement with the float network in per cent, and the logits' error over their rms."""
    import numpy as np

    return {
        "top1": 100 * float((got.argmax(1) == labels).mean()),
        "agreement": 100 * float((got.argmax(1) == wanted.argmax(1)).mean()),
        "rms": float(np.sqrt(np.square(got - wanted).mean() / np.square(wanted).mean())),
    }


def said_by_child(code: str, *arguments: object, **variables: str) -> str:
    """Run ``code`` in a process with one thread, without MKL's variable unless it is given; return its last line."""
    environment = {name: value for name, value in os.environ.items() if name != MKL_VARIABLE}
    environment.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", **variables)
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout.splitlines()[-1]


def imagenet_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that benchmarks on the ImageNet networks share."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("network", nargs="?", choices=list(NAMES))
    parser.add_argument("--weights", type=Path, help="file of examples/imagenet/convert_weights.py")
    parser.add_argument("--pictures", type=Path, help="folder with list.txt")
    parser.add_argument("--out", type=Path, default=IMAGENET, help="folder of the lines and of the table")
    parser.add_argument("--table", action="store_true", help="only write the table")
    return parser


def parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; a run needs the network, its weights and pictures."""
    options = parser.parse_args(arguments)
    if not options.table and None in (options.network, options.weights, options.pictures):
        parser.error("a run needs a network, --weights and --pictures")
    return options


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the lines of results; none if there is no such file."""
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def add_line(path: Path, line: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def write_table(path: Path, table: str) -> None:
    with staged_file(path) as partial:
        partial.write_text(table, encoding="utf-8")
