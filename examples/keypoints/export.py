"""Export a keypoint network to Paddle Inference and ONNX, check it, and print size and latency."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import paddle
from layouts import LAYOUTS
from settings import NETWORKS, SETTINGS, load_weights, network

from paddlelite_callbacks.deploy.bench import BenchOptions, bench
from paddlelite_callbacks.deploy.export import ExportError, export_onnx, export_paddle, staged_folder


def main() -> None:
    """Read the command line, export, check, time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, default="lite_hrnet_30")
    parser.add_argument("--weights", type=Path, help=".pdparams, ours or the guide's (default: random weights)")
    parser.add_argument("--layout", choices=LAYOUTS, default="coco", help="joints of the network (default: coco)")
    parser.add_argument("--settings", choices=SETTINGS, default="coco-lite", help="for the size of the input")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("keypoints-out/exported"))
    flags = parser.parse_args()
    layer = network(flags.network, LAYOUTS[flags.layout])
    if flags.weights:
        load_weights(layer, flags.weights)
    layer.eval()
    size = SETTINGS[flags.settings].size
    spec = [paddle.static.InputSpec([None, 3, *size], "float32", "x")]
    sample = np.random.RandomState(0).randn(1, 3, *size).astype("float32")
    with paddle.no_grad():
        expected = layer(paddle.to_tensor(sample)).numpy()
    errors = {}
    with staged_folder(flags.out, dropped=["model.onnx"]) as stage:
        artefacts = [export_paddle(layer, stage, input_spec=spec)]
        try:
            artefacts.append(export_onnx(artefacts[0], stage / "model.onnx"))
        except ExportError as error:
            errors["onnx"] = str(error)
        checks, latencies = bench(artefacts, [sample], [expected], BenchOptions(threads=flags.threads), errors=errors)
        for artefact in artefacts:
            print(f"{artefact.path.name}: {artefact.size_mb:.2f} MB")
        for check in checks:
            print(f"{check.engine}: {'equal' if check.passed else 'DIFFERS'}, at most {check.max_abs_diff:.2g}")
        if not all(check.passed for check in checks):
            raise SystemExit("An exported file computes something else than the network: nothing kept.")
    for item in latencies:
        print(f"{item.engine}: {item.error or f'{item.p50_ms:.2f} ms'}")


if __name__ == "__main__":
    main()
