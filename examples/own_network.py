"""Compress your own classifier on your own folder of images.

The folder has one sub-folder per class, with images of any size, also greyscale or with transparency; broken files are
reported and skipped. The teacher (ResNet50) is trained, or its weights are loaded. `lighten` measures candidates,
trains each light network by distillation and then with quantizers; all are exported, validated, timed and compared with
a budget. ``paddlelite-callbacks lighten`` does the same; this script is a starting point for changes.

    python examples/own_network.py --images pictures/ --teacher-weights resnet50.pdparams
    python examples/own_network.py --quick      # smoke test on drawn images, two minutes
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from paddlelite_callbacks.utils.cpu import mkl_environment

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(mkl_environment())
warnings.filterwarnings("ignore", message=".*(ccache|track global mean|To copy construct).*")

print("Loading Paddle ...", flush=True)
import numpy as np  # noqa: E402
from PIL import Image, ImageDraw  # noqa: E402

from paddlelite_callbacks.benchmark.options import BenchOptions  # noqa: E402
from paddlelite_callbacks.cli.lighten import add_training_arguments, lighten_pictures  # noqa: E402


def draw_pictures(folder: Path, count: int, seed: int) -> Path:
    """Draw discs, squares and crosses; return ``folder``.

    As in real folders, sizes and modes differ, one class is rare, and one file is broken.
    """
    stream = np.random.RandomState(seed)
    for name, share in (("cross", 0.5), ("disc", 1.0), ("square", 1.0)):  # crosses are rare
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(int(count * share)):
            side = int(stream.randint(64, 97))
            mode = ("RGB", "RGB", "L", "RGBA")[i % 4]
            picture = Image.fromarray(stream.randint(0, 90, [side, side + i % 9, 3], dtype="uint8"))
            draw_shape(ImageDraw.Draw(picture), name, side, stream)
            picture.convert(mode).save(folder / name / f"{i:03d}.{'png' if mode == 'RGBA' else 'jpg'}")
    (folder / "disc" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    return folder


def draw_shape(pen: ImageDraw.ImageDraw, name: str, side: int, stream: np.random.RandomState) -> None:
    """Draw one bright shape at a random position."""
    radius = int(stream.randint(side // 5, side // 3))
    x, y = (int(value) for value in stream.randint(radius, side - radius, 2))
    colour = tuple(int(value) for value in stream.randint(150, 256, 3))
    box = (x - radius, y - radius, x + radius, y + radius)
    if name == "disc":
        pen.ellipse(box, fill=colour)
    elif name == "square":
        pen.rectangle(box, fill=colour)
    else:
        pen.line((x - radius, y, x + radius, y), fill=colour, width=radius // 2)
        pen.line((x, y - radius, x, y + radius), fill=colour, width=radius // 2)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    add = parser.add_argument
    add("--images", metavar="DIR", help="one sub-folder per class (default: images of three shapes are drawn)")
    add("--quick", action="store_true", help="smoke test: few drawn images, one epoch each")
    add_training_arguments(parser)
    parser.set_defaults(out="runs/own_network", light="PPLCNet_x1_0")
    options = parser.parse_args(arguments)
    if options.quick:
        options.size = min(options.size, 64)
        options.epochs = options.int8_epochs = 1
        options.teacher_epochs = min(options.teacher_epochs, 1)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example; return 1 if a network could not be exported, else 0.

    The verdict of the gate is printed; ``paddlelite-callbacks gate`` returns it as exit code.
    """
    options = parsed(arguments)
    if options.images is None:
        options.images = draw_pictures(Path(options.out) / "pictures", 24 if options.quick else 120, options.seed)
    bench = BenchOptions(warmup=2, repeats=5, peak_memory=False, roofline=False) if options.quick else BenchOptions()
    made = lighten_pictures(options, benchmark=bench)
    for name in made.failed:
        print(f"Nothing was exported of {name}: see the report.", file=sys.stderr)
    return 1 if made.failed else 0


if __name__ == "__main__":
    sys.exit(main())
