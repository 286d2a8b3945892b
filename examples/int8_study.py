"""Measure the accuracy loss of quantisation on handwritten digits.

For each seed a small network is trained in fp32 on scikit-learn's digits. From the same weights follow post-training
quantisation, PACT and LSQ at 8 and at 4 bits, and a network that is distilled before and during PACT. Accuracies of the
quantised networks are those of the exported ``model.int8.onnx`` in OpenVINO (ONNX Runtime if it is not installed). A
second table compares pairs of rows seed by seed. Intervals are Student's t over the seeds.

    python examples/int8_study.py --seeds 5 --epochs 12 --out out/int8_study
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from paddlelite_callbacks.utils.cpu import mkl_environment

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(mkl_environment())

import numpy as np
import paddle
from few_labels import gain
from paddle import nn
from paddle.static import InputSpec
from tqdm import tqdm

from paddlelite_callbacks import DistillCallback, PACTQuantCallback, ptq_int8
from paddlelite_callbacks.benchmark.engines import ENGINES, missing_reason
from paddlelite_callbacks.errors import ExportError, require
from paddlelite_callbacks.export.variants import export_forms

TRAIN = 600
Runs = list[dict[str, float]]  # accuracies in per cent by row, one dictionary a seed


class Digits(paddle.io.Dataset):
    """Part of scikit-learn's 1,797 digits as ``[1, 8, 8]`` in [-1, 1]."""

    def __init__(self, part: slice, seed: int) -> None:
        data = require("sklearn.datasets", needed_for="the digits").load_digits()
        order = np.random.RandomState(seed).permutation(len(data.target))[part]
        self.images = (data.images[order, None] / 8 - 1).astype("float32")
        self.labels = data.target[order].astype("int64")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.int64]:
        return self.images[index], self.labels[index]


class Net(nn.Sequential):
    """Classifier of separable convolutions with hard-swish, as in light backbones."""

    def __init__(self, width: int) -> None:
        def separable(ins: int, outs: int, stride: int) -> list[nn.Layer]:
            return [
                nn.Conv2D(ins, ins, 3, stride, 1, groups=ins, bias_attr=False),
                nn.BatchNorm2D(ins),
                nn.Hardswish(),
                nn.Conv2D(ins, outs, 1, bias_attr=False),
                nn.BatchNorm2D(outs),
                nn.Hardswish(),
            ]

        super().__init__(
            nn.Conv2D(1, width, 3, 1, 1, bias_attr=False),
            nn.BatchNorm2D(width),
            nn.Hardswish(),
            *separable(width, 2 * width, 2),
            *separable(2 * width, 4 * width, 2),
            nn.AdaptiveAvgPool2D(1),
            nn.Flatten(),
            nn.Linear(4 * width, 10),
        )


def fit(network: nn.Layer, data: Digits, epochs: int, rate: float, *callbacks: paddle.callbacks.Callback) -> nn.Layer:
    """Train with Adam on a cosine schedule."""
    steps = epochs * -(-len(data) // 32)
    schedule = paddle.optimizer.lr.CosineAnnealingDecay(rate, steps)
    model = paddle.Model(network)
    model.prepare(paddle.optimizer.Adam(schedule, parameters=network.parameters()), nn.CrossEntropyLoss())
    model.fit(data, batch_size=32, epochs=epochs, verbose=0, callbacks=list(callbacks))
    network.eval()
    return network


def accuracy(predict: Callable[[np.ndarray], np.ndarray], data: Digits) -> float:
    """Return the accuracy in per cent."""
    return 100 * float((predict(data.images).argmax(1) == data.labels).mean())


def of_network(network: nn.Layer) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that predicts with the network."""
    network.eval()
    return lambda images: network(paddle.to_tensor(images)).numpy()


def of_file(network: nn.Layer) -> Callable[[np.ndarray], np.ndarray]:
    """Export ``network``; return a function that predicts with its int8 file."""
    engine = next(e for name in ("openvino", "onnxruntime") if not missing_reason(e := ENGINES[name]))
    with tempfile.TemporaryDirectory() as folder:
        forms = export_forms(network, Path(folder), input_spec=[InputSpec([None, 1, 8, 8], name="x")])
        artefact = next(item for item in forms.artefacts if (item.kind, item.precision) == ("onnx", "int8"))
        predict = engine.load(artefact, threads=1)
        predict([np.zeros([1, 1, 8, 8], "float32")])
    return lambda images: predict([images])[0]


def accuracy_of_file(row: str, network: nn.Layer, data: Digits, failed: list[str]) -> float:
    """Return the accuracy of the int8 file; on failure NaN, noted in ``failed``."""
    try:
        return accuracy(of_file(network), data)
    except (ExportError, StopIteration) as error:
        print(f"{row}: {error}", file=sys.stderr)
        failed.append(row)
        return float("nan")


def one_seed(seed: int, epochs: int, failed: list[str]) -> dict[str, float]:
    """Return the accuracies of one seed by row; add rows without file to ``failed``."""
    paddle.seed(seed)
    np.random.seed(seed)
    train, test = Digits(slice(0, TRAIN), seed), Digits(slice(TRAIN, None), seed)
    short = max(1, epochs // 2)
    base = fit(Net(8), train, epochs, 5e-3)
    teacher = fit(Net(32), train, epochs, 5e-3)
    longer = fit(copy.deepcopy(base), train, short, 2.5e-3)  # fp32 with the steps and the rate of PACT
    found = {"fp32": accuracy(of_network(base), test), "fp32, longer": accuracy(of_network(longer), test)}
    calibration = [paddle.to_tensor(train.images[i : i + 32]) for i in range(0, 256, 32)]
    for bits in (8, 4):
        options = {"weight_bits": bits, "activation_bits": bits}
        plain = ptq_int8(base, calibration, **options)
        networks = {"PTQ": plain}
        for method in ("pact", "lsq"):
            quantise = PACTQuantCallback(method=method, **options)
            networks[method.upper()] = fit(copy.deepcopy(base), train, short, 5e-3, quantise)
        for method, network in networks.items():
            row = f"{method} {bits} bits"
            found[row] = accuracy_of_file(row, network, test, failed)
    distilled = fit(Net(8), train, epochs, 5e-3, DistillCallback(teacher))
    found["distilled fp32"] = accuracy(of_network(distilled), test)
    both = fit(distilled, train, short, 5e-3, DistillCallback(teacher), PACTQuantCallback())
    row = "distilled + PACT 8 bits"
    found[row] = accuracy_of_file(row, both, test, failed)
    return found


def ranges(seed: int, epochs: int) -> dict[str, float]:
    """Return accuracies of one seed with 8-bit weights on half and on full range.

    They are computed by the network itself, exactly on any CPU.
    """
    paddle.seed(seed)
    np.random.seed(seed)
    train, test = Digits(slice(0, TRAIN), seed), Digits(slice(TRAIN, None), seed)
    base = fit(Net(8), train, epochs, 5e-3)
    found = {"fp32": accuracy(of_network(base), test)}
    calibration = [paddle.to_tensor(train.images[i : i + 32]) for i in range(0, 256, 32)]
    for half in (False, True):
        words = "half" if half else "full"
        plain = ptq_int8(base, calibration, reduce_range=half)
        found[f"PTQ 8 bits, {words} range"] = accuracy(of_network(plain), test)
        for method in ("pact", "lsq"):
            quantise = PACTQuantCallback(reduce_range=half, method=method)
            trained = fit(copy.deepcopy(base), train, max(1, epochs // 2), 5e-3, quantise)
            found[f"{method.upper()} 8 bits, {words} range"] = accuracy(of_network(trained), test)
    return found


# Each row and the one it is compared with.
PAIRS = [
    *((f"{method} 8 bits", "fp32, longer") for method in ("PACT", "LSQ")),
    *((f"{method} {bits} bits", f"PTQ {bits} bits") for bits in (8, 4) for method in ("PACT", "LSQ")),
    *((f"LSQ {bits} bits", f"PACT {bits} bits") for bits in (8, 4)),
    *((f"{method} 8 bits, half range", f"{method} 8 bits, full range") for method in ("PTQ", "PACT", "LSQ")),
]


def table(runs: Runs) -> str:
    """Return mean accuracies and paired differences to fp32 as Markdown."""
    lines = ["| network | accuracy % | against fp32, points (95 % interval) |", "|---|---|---|"]
    for row in runs[0]:
        mean = np.mean([run[row] for run in runs])
        lines.append(f"| {row} | {mean:.2f} | {difference(runs, row, 'fp32')} |")
    return "\n".join(lines)


def pairs_table(runs: Runs) -> str:
    """Return the paired differences of `PAIRS` as Markdown.

    Pairs with a row that is not in ``runs`` are left out.
    """
    lines = ["| pair | difference, points (95 % interval) |", "|---|---|"]
    for row, other in PAIRS:
        if {row, other} <= runs[0].keys():
            lines.append(f"| {row} against {other} | {difference(runs, row, other)} |")
    return "\n".join(lines)


def difference(runs: Runs, row: str, other: str) -> str:
    """Return the mean paired difference of two rows ± half its 95 % interval.

    Of one seed only the difference.
    """
    if len(runs) < 2:
        return f"{runs[0][row] - runs[0][other]:+.2f}"
    mean, low, high = gain([run[row] for run in runs], [run[other] for run in runs])
    return f"{mean:+.2f} ± {(high - low) / 2:.2f}"


def main() -> int:
    """Run the study; return 1 if a row has no file, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="repetitions, each with its own split and weights")
    parser.add_argument("--epochs", type=int, default=16, help="epochs of the fp32 training; PACT takes half of them")
    parser.add_argument("--quick", action="store_true", help="smoke test: one seed and few epochs, below a minute")
    parser.add_argument("--ranges", action="store_true", help="compare 8-bit weights on half and on the full range")
    parser.add_argument("--out", type=Path, default=Path("out/int8_study"), help="folder of table.md and runs.json")
    options = parser.parse_args()
    seeds, epochs = (1, 6) if options.quick else (options.seeds, options.epochs)
    failed: list[str] = []
    seed_of = ranges if options.ranges else (lambda seed, epochs: one_seed(seed, epochs, failed))
    runs = [seed_of(seed, epochs) for seed in tqdm(range(seeds), desc="Seeds")]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "runs.json").write_text(json.dumps({"epochs": epochs, "runs": runs}, indent=1))
    tables = {"table.md": table(runs), "pairs.md": pairs_table(runs)}
    for name, text in tables.items():
        (options.out / name).write_text(text + "\n")
    print("\n\n".join(tables.values()))
    for row in dict.fromkeys(failed):
        print(f"No int8 file of {row}.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
