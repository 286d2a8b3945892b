"""Post-training quantisation against NNCF and ONNX Runtime's quantiser, on the same calibration pictures.

    python tests/benchmarks/bench_ptq.py lite0 --weights lite0.npz --pictures imagenet500 --nncf /tmp/nncf/bin/python
    python tests/benchmarks/bench_ptq.py resnet9 --weights teacher.pdparams --pictures cifar10/test
    python tests/benchmarks/bench_ptq.py digits            # a small network, half a minute
    python tests/benchmarks/bench_ptq.py --page            # examples/results/imagenet/ptq.md from the ptq_*.json there

Every fifth picture calibrates, the others are evaluated: top-1, agreement with the float network's class, and the
logits' error as a share of their rms. Files are evaluated in the engine of their maker (ours in ONNX Runtime). Times
are minima of interleaved runs at batch 1 on one thread, over the float file in the same engine. ``NNCF_PYTHON``, or
``--nncf``, is a Python with ``nncf`` and ``openvino``; without it that row is left out. Seconds are CPU time, child
processes included: those to quantise, and for ours with the export behind it, which writes four files (Paddle and ONNX,
int8 and float) and checks the folded networks against the network.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnxruntime
import openvino
import paddle
from by_hand import EXAMPLES, IMAGENET, NAMES, by_onnxruntime, cpu_seconds, quality, say, write_table
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from paddle.static import InputSpec

from paddlelite_callbacks import compiled_depthwise, ptq_int8
from paddlelite_callbacks.benchmark.machine import Machine, this_machine
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.export.float_onnx import read_float_onnx
from paddlelite_callbacks.export.model_files import declared_inputs
from paddlelite_callbacks.export.onnx_calibration import observe_model
from paddlelite_callbacks.export.onnx_quantize import GraphScheme
from paddlelite_callbacks.export.variants import export_forms
from paddlelite_callbacks.nn.kinds import depthwise_layers
from paddlelite_callbacks.recipes.graph_files import GraphFiles
from paddlelite_callbacks.recipes.sample_data import read_samples
from paddlelite_callbacks.utils.safe_load import read_saved

HERE = Path(__file__).parent
Predict = Callable[[np.ndarray], np.ndarray]


@dataclass
class Row:
    """One line of the table; times are ratios over the float file in the same engine."""

    name: str
    top1: float
    agreement: float
    rms: float
    mb: float
    onnxruntime: float | None = None
    openvino: float | None = None
    seconds: float | None = None
    seconds_with_export: float | None = None


def by_openvino(path: Path) -> Predict:
    options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(str(path), "CPU", options)
    return lambda x: compiled(x)[0]


ENGINES = {"onnxruntime": by_onnxruntime, "openvino": by_openvino}


def logits(predict: Predict, images: np.ndarray) -> np.ndarray:
    return np.concatenate([predict(image[None]) for image in images])


def megabytes(path: Path) -> float:
    weights = path.with_suffix(".bin")
    return (path.stat().st_size + (weights.stat().st_size if weights.exists() else 0)) / 1e6


class Reader(CalibrationDataReader):
    """Calibration pictures for ONNX Runtime's quantiser, one by one."""

    def __init__(self, name: str, images: np.ndarray) -> None:
        self._items = iter([{name: image[None]} for image in images])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._items, None)


@dataclass
class Data:
    """Network, calibration images and evaluation images with labels."""

    network: paddle.nn.Layer
    calibration: np.ndarray
    images: np.ndarray
    labels: np.ndarray

    def batches(self, size: int = 20) -> Iterator[paddle.Tensor]:
        for begin in range(0, len(self.calibration), size):
            yield paddle.to_tensor(self.calibration[begin : begin + size])


def imagenet(name: str, weights: Path, pictures: Path, most: int) -> Data:
    sys.path.insert(0, str(EXAMPLES / "imagenet"))
    from efficientnet_lite import IMAGE_SIZE, Pictures, efficientnet_lite

    def stacked(calibration: bool) -> tuple[np.ndarray, np.ndarray]:
        rows = Pictures(pictures, IMAGE_SIZE[name], calibration=calibration)
        items = [rows[index] for index in range(min(len(rows), most))]
        return np.stack([image for image, _ in items]), np.array([label for _, label in items])

    images, labels = stacked(False)
    return Data(efficientnet_lite(name, weights), stacked(True)[0], images, labels)


def cifar(name: str, weights: Path, pictures: Path, most: int) -> Data:
    sys.path.insert(0, str(EXAMPLES / "cifar10"))
    from data import CLASSES, normalized
    from networks import ResNet9, light_network
    from PIL import Image

    network = ResNet9() if name == "resnet9" else light_network(name, ResNet9())
    network.set_state_dict(read_saved(weights))
    network.eval()
    files = sorted(pictures.glob("*/*"))
    chosen = np.random.RandomState(0).permutation(len(files))[: 100 + most]
    read = [np.asarray(Image.open(files[index]).convert("RGB")).transpose(2, 0, 1) for index in chosen]
    images = normalized(np.stack(read))
    labels = np.array([CLASSES.index(files[index].parent.name) for index in chosen])
    return Data(network, images[:100], images[100:], labels[100:])


def digits(most: int) -> Data:
    sys.path.insert(0, str(EXAMPLES))
    from digits import Digits

    paddle.seed(0)
    layers: list[Any] = []
    for before, width in ((3, 16), (16, 32), (32, 64)):
        layers += [paddle.nn.Conv2D(before, width, 3, stride=2, padding=1), paddle.nn.BatchNorm2D(width)]
        layers += [paddle.nn.ReLU()]
    layers += [paddle.nn.AdaptiveAvgPool2D(1), paddle.nn.Flatten(), paddle.nn.Linear(64, 10)]
    model = paddle.Model(paddle.nn.Sequential(*layers))
    model.prepare(paddle.optimizer.Adam(3e-3, parameters=model.parameters()), paddle.nn.CrossEntropyLoss())
    train, test = Digits(train=True, size=16), Digits(train=False, size=16)
    model.fit(train, epochs=3, batch_size=32, verbose=0)
    model.network.eval()
    return Data(model.network, train.images[: min(100, most)], test.images[:most], test.labels[:most])


def ours(data: Data, folder: Path, options: dict[str, Any]) -> tuple[Path, float, float]:
    """Quantise and export; return the int8 ONNX file and the seconds without and with the export."""
    began = cpu_seconds()
    options = {name: value(data.network) if callable(value) else value for name, value in options.items()}
    with compiled_depthwise():
        quantized = ptq_int8(data.network, data.batches(), **options)
    seconds = cpu_seconds() - began
    forms = export_forms(quantized, folder, input_spec=[InputSpec([None, *data.images.shape[1:]], name="x")])
    if forms.errors:
        raise SystemExit(f"Not exported: {forms.errors}")
    return folder / "model.int8.onnx", seconds, cpu_seconds() - began


def ours_from_onnx(model: Path, data: Data, folder: Path) -> tuple[Path, float, None]:
    """Quantise the float ONNX file as `quantize` does, without its checks, timing and record."""
    began = cpu_seconds()
    artefact = Artefact(kind="onnx", path=model, files=(model,), precision="fp32")
    source, rows = read_float_onnx(model), np.arange(len(data.calibration))
    samples = read_samples(data.calibration, declared_inputs(artefact), work=folder, verbose=0)
    seen = observe_model(source, samples.batches(rows, 8))
    files = GraphFiles(source, seen, samples, rows, method="mse", verbose=0)
    out = folder / "quantize.onnx"
    out.write_bytes(files.model(GraphScheme()).SerializeToString())
    return out, cpu_seconds() - began, None


def by_ort_quantizer(model: Path, data: Data, folder: Path) -> tuple[Path, float, None]:
    began = cpu_seconds()
    prepared, out = folder / "prepared.onnx", folder / "ort.onnx"
    quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    name = onnxruntime.InferenceSession(str(prepared), providers=["CPUExecutionProvider"]).get_inputs()[0].name
    quantize_static(
        str(prepared),
        str(out),
        Reader(name, data.calibration),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
    )
    return out, cpu_seconds() - began, None


def by_nncf(python: str, model: Path, data: Data, folder: Path) -> tuple[Path, float, None]:
    np.save(folder / "calibration.npy", data.calibration)
    out = folder / "nncf.xml"
    command = [python, str(HERE / "nncf_worker.py"), str(model), str(folder / "calibration.npy"), str(out)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"NNCF failed: {done.stderr[-2000:]}")
    return out, float(done.stdout.split()[-1]), None


def ratios(files: dict[str, tuple[str, Path]], image: np.ndarray, repeats: int) -> dict[str, float]:
    """Return the fastest run of each file, all in turns, in milliseconds."""
    runs = {name: ENGINES[engine](path) for name, (engine, path) in files.items()}
    best = dict.fromkeys(runs, float("inf"))
    for turn in range(repeats + 3):
        for name, run in runs.items():
            began = time.perf_counter()
            run(image)
            if turn >= 3:
                best[name] = min(best[name], 1000 * (time.perf_counter() - began))
    return best


OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, depthwise in float": {"skip": depthwise_layers},
    "ours, outputs quantised": {"quantize_outputs": True},
    "ours, GPTQ rounding": {"rounding": "gptq"},
    "ours without bias correction": {"bias_correction": False},
    "ours, percentile 99.9, without bias correction": {"calibration": "percentile", "bias_correction": False},
}

TITLES = {
    **NAMES,
    "resnet9": "ResNet9, CIFAR-10",
    "lcnet": "PP-LCNet_x0_25, CIFAR-10",
    "digits": "A small network, digits",
}
GRAPH = "ours, `quantize` on the ONNX file"
NNCF, ORT = "NNCF, mixed, overflow fix", "ONNX Runtime QDQ, reduce_range"


def table(data: Data, folder: Path, *, nncf: str | None, repeats: int, rows: list[str] | None) -> list[Row]:
    """Make all files, evaluate and time them."""
    (folder / "float").mkdir()
    spec = [InputSpec([None, *data.images.shape[1:]], name="x")]
    export_forms(data.network, folder / "float", input_spec=spec)
    plain = folder / "float" / "model.onnx"
    made: dict[str, tuple[Path, float | None, float | None, str]] = {"float": (plain, None, None, "onnxruntime")}
    for name, options in OURS.items():
        if rows is None or name in rows:
            home = folder / str(len(made))
            home.mkdir()
            made[name] = (*ours(data, home, options), "onnxruntime")
            say(f"{name}: {made[name][1]:.1f} s")
    if rows is None or GRAPH in rows:
        made[GRAPH] = (*ours_from_onnx(plain, data, folder), "onnxruntime")
        say(f"{GRAPH}: {made[GRAPH][1]:.1f} s")
    if nncf and (rows is None or NNCF in rows):
        made[NNCF] = (*by_nncf(nncf, plain, data, folder), "openvino")
        say(f"{NNCF}: {made[NNCF][1]:.1f} s")
    if rows is None or ORT in rows:
        made[ORT] = (*by_ort_quantizer(plain, data, folder), "onnxruntime")
        say(f"{ORT}: {made[ORT][1]:.1f} s")
    reference = logits(by_onnxruntime(plain), data.images)
    found = []
    for name, (path, seconds, with_export, engine) in made.items():
        got = reference if name == "float" else logits(ENGINES[engine](path), data.images)
        row = Row(
            name=name,
            **quality(got, reference, data.labels),
            mb=megabytes(path),
            seconds=seconds,
            seconds_with_export=with_export,
        )
        found.append(row)
        say(str(row))
    files = {
        f"{n}|{e}": (e, p)
        for n, (p, _, _, _) in made.items()
        for e in ENGINES
        if e != "onnxruntime" or p.suffix == ".onnx"
    }
    best = ratios(files, data.images[:1], repeats)
    for row in found:
        for engine in ENGINES:
            if f"{row.name}|{engine}" in best:
                setattr(row, engine, best[f"{row.name}|{engine}"] / best[f"float|{engine}"])
    return found


def lines(rows: list[Row]) -> list[str]:
    """Return the table in Markdown."""

    def shown(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    head = [
        "| file | top-1 % | agrees % | rms | MB | ONNX Runtime | OpenVINO | s | s, with export |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    return head + [
        f"| {row.name} | {row.top1:.1f} | {row.agreement:.1f} | {row.rms:.3f} | {row.mb:.2f} | "
        f"{shown(row.onnxruntime, '.2f')} | {shown(row.openvino, '.2f')} | {shown(row.seconds, '.0f')} | "
        f"{shown(row.seconds_with_export, '.0f')} |"
        for row in rows
    ]


def page(records: list[dict[str, Any]]) -> str:
    """Return the tables of several runs, without the times, which need a quiet machine."""
    parts = []
    for record in records:
        machine = Machine(**{**record["machine"], "flags": tuple(record["machine"]["flags"])})
        parts += [
            f"{TITLES[record['network']]}: {record['calibration']} images calibrate, {record['evaluated']} others are "
            f"evaluated; {machine.processor}, one thread:",
            "",
            "| file | top-1 % | agrees with float % | rms | MB | CPU s |",
            "|---|---|---|---|---|---|",
        ]
        for row in record["rows"]:
            seconds = "-" if row["seconds"] is None else f"{row['seconds']:.0f}"
            if row["seconds_with_export"] is not None:
                seconds += f" ({row['seconds_with_export']:.0f} with export)"
            parts.append(
                f"| {row['name']} | {row['top1']:.1f} | {row['agreement']:.1f} | {row['rms']:.3f} | {row['mb']:.2f} | "
                f"{seconds} |"
            )
        parts.append("")
    return "\n".join(parts).strip() + "\n"


def main() -> None:
    """Measure one network and write its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="?", choices=["lite0", "lite1", "resnet9", "lcnet", "digits"])
    parser.add_argument("--page", action="store_true", help="only write examples/results/imagenet/ptq.md")
    parser.add_argument(
        "--weights", type=Path, help="file of examples/imagenet/convert_weights.py, or of examples/cifar10"
    )
    parser.add_argument("--pictures", type=Path, help="folder with list.txt, or CLASS/*.jpg")
    parser.add_argument("--nncf", default=os.environ.get("NNCF_PYTHON"), help="Python of an environment with NNCF")
    parser.add_argument("--most", type=int, default=2000, help="largest number of images of each kind")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--rows", nargs="*", choices=[*OURS, GRAPH, NNCF, ORT], help="rows to measure; all by default")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    if options.page:
        found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(IMAGENET.glob("ptq_*.json"))]
        write_table(IMAGENET / "ptq.md", page(found))
        return
    if options.network is None:
        parser.error("name a network, or --page")
    if options.network == "digits":
        data = digits(options.most)
    elif options.weights is None or options.pictures is None:
        parser.error(f"{options.network} needs --weights and --pictures")
    elif options.network in ("resnet9", "lcnet"):
        data = cifar(options.network, options.weights, options.pictures, options.most)
    else:
        data = imagenet(options.network, options.weights, options.pictures, options.most)
    with tempfile.TemporaryDirectory() as folder:
        rows = table(data, Path(folder), nncf=options.nncf, repeats=options.repeats, rows=options.rows)
    say(f"{options.network}: {len(data.calibration)} images calibrate, {len(data.images)} are evaluated\n")
    say("\n".join(lines(rows)))
    if options.out:
        record = {"network": options.network, "machine": asdict(this_machine()), "rows": [asdict(row) for row in rows]}
        record |= {"calibration": len(data.calibration), "evaluated": len(data.images)}
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
