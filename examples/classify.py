"""Classify images with an exported network.

Size, normalisation and class names are read from the ``deploy.json`` beside the files.

    python examples/classify.py out/network cat.jpg dog.png
    python examples/classify.py out/network/model.onnx cat.jpg --top 3
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

from paddlelite_callbacks.recipes.pictures import load_picture
from paddlelite_callbacks.recipes.sample_data import Preprocess

__all__ = ["Classifier", "main"]

FILES = ("model.int8.onnx", "model.onnx")  # the first that is there


class Classifier:
    """Exported network with its preprocessing, run by ONNX Runtime on one thread.

    Args:
        path: Folder of the exported files, or one of its ONNX files.

    Attributes:
        labels: Class names.
        file: Path of the file that runs.

    Raises:
        SystemExit: No ONNX file, or no ``deploy.json`` with ``size``, ``mean``, ``std`` and ``labels``.

    Example:
        >>> Classifier("out/network")("cat.jpg")  # doctest: +SKIP
        [('cat', 0.97), ('dog', 0.02), ...]
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        found = [path] if path.is_file() else [path / name for name in FILES if (path / name).is_file()]
        if not found:
            raise SystemExit(f"{path} must be an ONNX file, or a folder with {' or '.join(FILES)}.")
        self.file = found[0]
        told = _deploy(self.file.with_name("deploy.json"))
        self.labels: list[str] = told["labels"]
        self._preprocess = Preprocess.of(None, told["preprocess"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(self.file), options, providers=["CPUExecutionProvider"])

    def prepare(self, picture: Image.Image) -> np.ndarray:
        """Return the network's input ``[1, 3, size, size]``, float32.

        Args:
            picture: RGB image of any size.
        """
        size = int(self._preprocess.size or 0)  # told, see `_deploy`
        return self._preprocess.array(picture, (size, size), 3)[None]

    def __call__(self, picture: str | Path | Image.Image) -> list[tuple[str, float]]:
        """Return the classes and their probabilities, the most probable first.

        Args:
            picture: Path of an image, or an image.
        """
        image = picture.convert("RGB") if isinstance(picture, Image.Image) else load_picture(picture)
        scores = self._session.run(None, {self._session.get_inputs()[0].name: self.prepare(image)})[0][0]
        shares = np.exp(scores - scores.max())
        shares /= shares.sum()
        return [(self.labels[k], float(shares[k])) for k in np.argsort(-shares)]


def _deploy(path: Path) -> dict[str, Any]:
    """Return the content of ``deploy.json``."""
    if not path.is_file():
        raise SystemExit(f"There is no {path}: give the folder that the export wrote.")
    told = json.loads(path.read_text(encoding="utf-8"))
    missing = [key for key in ("size", "mean", "std") if key not in (told.get("preprocess") or {})]
    missing += [] if told.get("labels") else ["labels"]
    if missing:
        raise SystemExit(
            f"{path} does not tell {', '.join(missing)}: export with ExportOptions(sidecar={{'labels': [...], "
            "'preprocess': {'size': 224, 'mean': [...], 'std': [...]}}), for pixels in 0-255."
        )
    return told


def main(arguments: Sequence[str] | None = None) -> int:
    """Classify the images of the command line; return 1 if one cannot be read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of the exported files, or one of its ONNX files")
    parser.add_argument("pictures", type=Path, nargs="+", help="images")
    parser.add_argument("--top", type=int, default=1, metavar="N", help="classes to print (default: 1)")
    flags = parser.parse_args(arguments)
    classify, unread = Classifier(flags.model), 0
    for path in flags.pictures:
        try:
            found = classify(path)[: flags.top]
        except OSError as error:
            print(f"{path}: {error}", file=sys.stderr)
            unread += 1
            continue
        print(f"{path}: {', '.join(f'{label} {100 * share:.1f} %' for label, share in found)}")
    return 1 if unread else 0


if __name__ == "__main__":
    sys.exit(main())
