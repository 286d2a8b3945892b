"""Ranges of activations by every method, at several bits, on trained networks: the error of the logits.

    python tests/benchmarks/bench_ranges.py lite1 --weights lite1.npz --pictures imagenet500 --calibrate 40 --most 40
    python tests/benchmarks/bench_ranges.py resnet9 --weights teacher.pdparams --pictures cifar10/test
    python tests/benchmarks/bench_ranges.py lcnet --weights weights.pdparams --pictures cifar10/test

Weights have 8 bits (half range). rms: error of the fake-quantised network's logits over their rms; agreement with the
float network's class in percent; both also with corrected biases and, with ``--more``, with equalised layers.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import paddle
from by_hand import EXAMPLES, say
from paddle import nn
from PIL import Image

from paddlelite_callbacks import compiled_depthwise, ptq_int8
from paddlelite_callbacks.utils.safe_load import read_saved

METHODS = ("min_max", "percentile", "mse", "kl")


def imagenet(name: str, weights: Path, pictures: Path, calibrate: int, most: int) -> tuple[nn.Layer, Any, Any]:
    sys.path.insert(0, str(EXAMPLES / "imagenet"))
    from efficientnet_lite import IMAGE_SIZE, Pictures, efficientnet_lite

    def images(calibration: bool, count: int) -> np.ndarray:
        rows = Pictures(pictures, IMAGE_SIZE[name], calibration=calibration)
        return np.stack([rows[index * len(rows) // count][0] for index in range(min(count, len(rows)))])

    return efficientnet_lite(name, weights), images(True, calibrate), images(False, most)


def cifar(name: str, weights: Path, pictures: Path, calibrate: int, most: int) -> tuple[nn.Layer, Any, Any]:
    sys.path.insert(0, str(EXAMPLES / "cifar10"))
    from data import normalized
    from networks import ResNet9, light_network

    network = ResNet9() if name == "resnet9" else light_network(name, ResNet9())
    network.set_state_dict(read_saved(weights))
    network.eval()
    files = sorted(pictures.glob("*/*"))
    chosen = np.random.RandomState(0).permutation(len(files))[: calibrate + most]
    images = normalized(np.stack([np.asarray(Image.open(files[i]).convert("RGB")).transpose(2, 0, 1) for i in chosen]))
    return network, images[:calibrate], images[calibrate:]


def logits(network: nn.Layer, images: np.ndarray, size: int = 20) -> np.ndarray:
    with paddle.no_grad(), compiled_depthwise():
        parts = [network(paddle.to_tensor(images[i : i + size])).numpy() for i in range(0, len(images), size)]
    return np.concatenate(parts)


def quality(network: nn.Layer, images: np.ndarray, wanted: np.ndarray) -> tuple[float, float]:
    got = logits(network, images)
    rms = np.sqrt(np.square(got - wanted).mean() / np.square(wanted).mean())
    return float(rms), 100 * float((got.argmax(1) == wanted.argmax(1)).mean())


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=["lite0", "lite1", "resnet9", "lcnet", "lcnet_x0_5", "mobilenet"])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--pictures", type=Path, required=True, help="folder with list.txt, or CLASS/*.jpg")
    parser.add_argument("--calibrate", type=int, default=100, help="number of calibration images")
    parser.add_argument("--most", type=int, default=400, help="number of images to evaluate")
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 7, 4], help="of the activations")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--corrected", choices=["no", "yes", "both"], default="both", help="biases")
    parser.add_argument("--more", action="store_true", help="equalisation and GPTQ, at 8 bits and the default ranges")
    parser.add_argument("--out", type=Path, help="JSON file to extend")
    options = parser.parse_args(arguments)
    make = imagenet if options.network.startswith("lite") else cifar
    network, calibration, images = make(
        options.network, options.weights, options.pictures, options.calibrate, options.most
    )
    batches = [paddle.to_tensor(calibration[i : i + 20]) for i in range(0, len(calibration), 20)]
    wanted, rows = logits(network, images), []

    def add(**settings: Any) -> None:
        rms, agreement = quality(ptq_int8(network, batches, **settings), images, wanted)
        rows.append({**settings, "rms": rms, "agreement": agreement})
        say(f"{options.network}: {settings}: rms {rms:.3f}, agrees {agreement:.1f} %")

    for bits in options.bits:
        for method in options.methods:
            for corrected in {"no": [False], "yes": [True], "both": [False, True]}[options.corrected]:
                add(activation_bits=bits, calibration=method, bias_correction=corrected)
    if options.more:
        for corrected in (False, True):
            add(equalization=True, bias_correction=corrected)
            add(equalization=True, bias_correction=corrected, weight_bits=4)
            add(bias_correction=corrected, weight_bits=4)
            add(bias_correction=corrected, rounding="gptq")
    if options.out:
        found = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
        found[options.network] = {"calibration": len(calibration), "evaluated": len(images), "rows": rows}
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
