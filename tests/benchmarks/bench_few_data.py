"""Quantisation-aware training on a few pictures: labels against the float network as teacher.

    python tests/benchmarks/bench_few_data.py lite0 --weights lite0.npz --pictures imagenet500 --steps 50
    python tests/benchmarks/bench_few_data.py --table             # writes few_data.md again from the lines

The pictures of ``imagenet500`` are of one class each. Of every five, the first two train (and calibrate `ptq_int8`),
the third decides in ``keep_better``, the last two are held out: on them the int8 ONNX files are measured in ONNX
Runtime. Each row is a line of ``examples/results/imagenet/few_data.jsonl``; rows that are there are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paddlelite_callbacks.utils.cpu import mkl_environment

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(mkl_environment())

import numpy as np
import paddle
from by_hand import (
    EXAMPLES,
    NAMES,
    add_line,
    by_onnxruntime,
    imagenet_parser,
    lines_of,
    parsed,
    quality,
    say,
    write_table,
)
from paddle import nn
from paddle.static import InputSpec

from paddlelite_callbacks import PACTQuantCallback, compiled_depthwise, export_forms, ptq_int8
from paddlelite_callbacks.benchmark.machine import this_machine

PARTS = {"train": (0, 1), "choice": (2,), "test": (3, 4)}  # places in every five pictures
ROWS: dict[str, dict[str, Any] | None] = {
    "`ptq_int8`": None,
    "PACT, labels": {},
    "PACT, `self_distill=True`": {"self_distill": True},
    "PACT, labels, `freeze_bn_after=0`": {"freeze_bn_after": 0},
    "PACT, `self_distill=True, freeze_bn_after=0`": {"self_distill": True, "freeze_bn_after": 0},
}


class Part(paddle.io.Dataset):
    """Some of the pictures, in memory."""

    def __init__(self, pictures: Any, places: Sequence[int]) -> None:
        rows = [pictures[i] for i in range(len(pictures)) if i % 5 in places]
        self.images, self.labels = np.stack([x for x, _ in rows]), np.array([y for _, y in rows])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.int64]:
        return self.images[index], np.int64(self.labels[index])


class Trained(paddle.callbacks.Callback):
    """Keeps the weights of the last step, whatever `keep_better` does afterwards."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._steps, self.state = steps, {}

    def on_train_batch_end(self, step: int, logs: Any = None) -> None:
        """Copy the weights after the last step."""
        self._steps -= 1
        if self._steps == 0:
            self.state = {name: value.numpy() for name, value in self.model.network.state_dict().items()}


def outputs_of(path: Path, images: np.ndarray) -> np.ndarray:
    """Return the logits of a file in ONNX Runtime."""
    predict = by_onnxruntime(path)
    return np.concatenate([predict(images[i : i + 8]) for i in range(0, len(images), 8)])


def file_of(network: nn.Layer, size: int, precision: str, folder: Path) -> Path:
    spec = [InputSpec([None, 3, size, size], name="x")]
    forms = export_forms(network, folder, input_spec=spec)
    return next(a.path for a in forms.artefacts if (a.kind, a.precision) == ("onnx", precision))


def measured(network: nn.Layer, size: int, test: Part, wanted: np.ndarray) -> dict[str, float]:
    """Export a quantised network and measure its int8 file."""
    network.eval()
    with tempfile.TemporaryDirectory() as folder:
        file = file_of(network, size, "int8", Path(folder))
        return quality(outputs_of(file, test.images), wanted, test.labels)


def one(options: argparse.Namespace, row: str, parts: dict[str, Part], wanted: np.ndarray) -> dict[str, Any]:
    """Quantise the network in one way; return its line."""
    from efficientnet_lite import IMAGE_SIZE, efficientnet_lite

    began, given, size, trained = time.process_time(), ROWS[row], IMAGE_SIZE[options.network], None
    paddle.seed(options.seed)
    np.random.seed(options.seed)
    network = efficientnet_lite(options.network, options.weights)
    with compiled_depthwise():
        if given is None:
            images, choice = parts["train"].images, None
            network = ptq_int8(network, [paddle.to_tensor(images[i : i + 20]) for i in range(0, 100, 20)])
        else:
            model = paddle.Model(network)
            optimizer = paddle.optimizer.Adam(options.rate, parameters=network.parameters())
            model.prepare(optimizer, nn.CrossEntropyLoss(), paddle.metric.Accuracy())
            callback = PACTQuantCallback(eval_data=parts["choice"], metric_drop=0.5, **given)
            last = Trained(options.steps)
            model.fit(
                parts["train"],
                batch_size=options.batch,
                epochs=-(-options.steps * options.batch // len(parts["train"])),
                num_iters=options.steps,
                verbose=0,
                callbacks=[callback, last],
            )
            choice = callback.choice
        kept = measured(network, size, parts["test"], wanted)
        if choice is not None:
            network.set_state_dict(last.state)
            trained = kept if choice.kept == "end" else measured(network, size, parts["test"], wanted)
    return {
        "network": options.network,
        "row": row,
        "steps": 0 if given is None else options.steps,
        "batch": options.batch,
        "rate": options.rate,
        "seed": options.seed,
        "choice": None if choice is None else asdict(choice),
        "trained": trained,
        "kept": kept,
        "pictures": {name: len(part) for name, part in parts.items()},
        "cpu_seconds": time.process_time() - began,
        "machine": this_machine().processor,
    }


def key(line: dict[str, Any]) -> tuple[Any, ...]:
    settings = () if line["steps"] == 0 else (line["steps"], line["batch"], line["rate"], line["seed"])
    return (line["network"], line["row"], *settings)


def run(options: argparse.Namespace, lines: Path) -> None:
    """Measure the rows that are not there yet."""
    sys.path.insert(0, str(EXAMPLES / "imagenet"))
    from efficientnet_lite import IMAGE_SIZE, Pictures, efficientnet_lite

    pictures = Pictures(options.pictures, IMAGE_SIZE[options.network])
    parts = {name: Part(pictures, places) for name, places in PARTS.items()}
    test = parts["test"]
    with tempfile.TemporaryDirectory() as folder:
        plain = efficientnet_lite(options.network, options.weights)
        wanted = outputs_of(file_of(plain, IMAGE_SIZE[options.network], "fp32", Path(folder)), test.images)
    say(f"float: top-1 {100 * float((wanted.argmax(1) == test.labels).mean()):.1f} %")
    had = lines_of(lines)
    for row in options.rows or ROWS:
        steps = 0 if ROWS[row] is None else options.steps
        if key({**vars(options), "row": row, "steps": steps}) in [key(line) for line in had]:
            continue
        line = one(options, row, parts, wanted) | {"float_top1": 100 * float((wanted.argmax(1) == test.labels).mean())}
        say(json.dumps({name: value for name, value in line.items() if name != "machine"}))
        add_line(lines, line)


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    parts = []
    for network in dict.fromkeys(line["network"] for line in lines):
        rows = [line for line in lines if line["network"] == network]
        first = rows[0]
        parts += [
            f"{NAMES[network]}: {first['pictures']['train']} pictures train, {first['pictures']['choice']} decide in "
            f"`keep_better`, {first['pictures']['test']} others are held out; float: top-1 "
            f"{first['float_top1']:.1f} %. int8 files in ONNX Runtime, {first['machine']}. Three figures: top-1 %, "
            "agreement with float %, rms.",
            "",
            "| way | steps x batch, rate | after training | `keep_better`: start -> end, % | what was kept | CPU s |",
            "|---|---|---|---|---|---|",
        ]
        for line in rows:
            shown = [
                "-" if one is None else f"{one['top1']:.1f}, {one['agreement']:.1f}, {one['rms']:.3f}"
                for one in (line["trained"], line["kept"])
            ]
            choice = line["choice"]
            cells = [
                line["row"],
                f"{line['steps']} x {line['batch']}, {line['rate']:g}" if line["steps"] else "-",
                shown[0],
                "-" if not choice else f"{100 * choice['start']:.0f} -> {100 * choice['end']:.0f}: {choice['kept']}",
                shown[1],
                f"{line['cpu_seconds']:.0f}",
            ]
            parts.append("| " + " | ".join(cells) + " |")
        parts.append("")
    return "\n".join(parts).strip() + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one network and write the table."""
    parser = imagenet_parser(__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=2e-5, help="of Adam; the callback halves it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", nargs="*", choices=list(ROWS), help="ways to run; all by default")
    options = parsed(parser, arguments)
    lines = options.out / "few_data.jsonl"
    if not options.table:
        run(options, lines)
    made = table(lines_of(lines))
    write_table(options.out / "few_data.md", made)
    say(made)


if __name__ == "__main__":
    main()
