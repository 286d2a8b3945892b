"""Export a trained keypoint network to Paddle Inference and ONNX.

Networks trained with PACT are exported as int8. Every file is validated and timed, and judged by the gate. Files and
records go to ``OUT/exported``, the report of all exports to ``OUT/report.html``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from layouts import LAYOUTS
from settings import NETWORKS, SETTINGS, add_data_flags, datasets, hapi_model, load_weights, metric_of, network

from paddlelite_callbacks import BenchOptions, Budget, ExportBenchCallback, ExportOptions
from paddlelite_callbacks.errors import ExportError

QUICK: dict[str, Any] = {"warmup": 2, "repeats": 5, "peak_memory": False, "roofline": False}  # of --settings toy-quick


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_flags(parser)
    parser.add_argument("--network", choices=NETWORKS, default="lite_hrnet_30")
    parser.add_argument("--weights", type=Path, help=".pdparams, ours (PACT too) or the guide's (default: random)")
    parser.add_argument("--weight-bits", type=int, help="bits of weights trained with PACT (default: as in the file)")
    parser.add_argument("--layout", choices=LAYOUTS, default="coco", help="joint layout of the network (default: coco)")
    parser.add_argument("--evaluate", action="store_true", help="evaluate the files, on --coco, --mpii, --lsp or --toy")
    parser.add_argument("--size-mb", type=float, help="gate: size of Paddle's program and parameters")
    parser.add_argument("--latency-ms", type=float, help="gate: median latency of the fastest engine")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("keypoints-out"))
    parser.set_defaults(settings="coco-lite")
    return parser.parse_args()


def main(flags: argparse.Namespace) -> None:
    """Load, export, validate and benchmark the network."""
    layer, settings, data = network(flags.network, LAYOUTS[flags.layout]), SETTINGS[flags.settings], None
    if flags.weights:
        load_weights(layer, flags.weights, weight_bits=flags.weight_bits)
    if flags.evaluate:
        data = datasets(flags)[1]
        images: Any = np.stack([data[k][0] for k in range(min(4, len(data)))])
    else:
        images = np.random.RandomState(0).randn(1, 3, *settings.size).astype("float32")
    limits = {"size_mb": flags.size_mb, "latency_ms": flags.latency_ms}
    limits = {name: value for name, value in limits.items() if value is not None}
    joints = len(LAYOUTS[flags.layout].joints)
    model = hapi_model(layer, settings, metric_of(data, dark=flags.dark) if data else None, joints=joints)
    export = ExportBenchCallback(
        flags.out,
        name="exported",
        eval_data=data,
        budget=Budget(**limits) if limits else None,
        export=ExportOptions(input_spec=[paddle.static.InputSpec([None, 3, *settings.size], "float32", "x")]),
        benchmark=BenchOptions(threads=flags.threads, **(QUICK if flags.settings == "toy-quick" else {})),
    )
    try:
        export.export(model, images)
    except ExportError as error:
        raise SystemExit(f"Nothing was exported: {error}") from error


if __name__ == "__main__":
    main(parse())
