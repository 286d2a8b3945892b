"""Build the teacher and light networks for 32x32 images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import paddle
import paddle.nn.functional as F
from data import CLASSES, normalized
from paddle import Tensor, nn

from paddlelite_callbacks import BackboneSwap

__all__ = ["LIGHT", "ResNet9", "light_network", "whiten_"]


BIAS_RATE, BIAS_DECAY = 64.0, 1e-5  # factor on the learning rate of the batch norms' biases, and their weight decay


def _convolution(before: int, width: int) -> nn.Conv2D:
    """Build a 3x3 convolution whose first output channels copy its input; the others are small."""
    bound = (before * 9) ** -0.5
    convolution = nn.Conv2D(
        before, width, 3, padding=1, bias_attr=False, weight_attr=nn.initializer.Uniform(-bound, bound)
    )
    weight, same = convolution.weight.numpy(), np.arange(min(before, width))
    weight[same] = 0.0
    weight[same, same, 1, 1] = 1.0
    convolution.weight.set_value(weight)
    return convolution


def _norm(width: int) -> nn.BatchNorm2D:
    """Build a batch norm whose scale is not trained and whose biases learn fast.

    The scale's learning rate is 0: with ``stop_gradient`` Paddle 3.3 computes no gradient of the biases either.
    """
    decay = paddle.regularizer.L2Decay(BIAS_DECAY)
    bias = paddle.ParamAttr(learning_rate=BIAS_RATE, regularizer=decay)
    return nn.BatchNorm2D(width, weight_attr=paddle.ParamAttr(learning_rate=0.0), bias_attr=bias)


class Block(nn.Layer):
    """Convolution, 2x2 max pooling, and a residual convolution."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.conv1 = _convolution(before, width)
        self.norm1 = _norm(width)
        self.conv2 = _convolution(width, width)
        self.norm2 = _norm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of half the size."""
        x = F.relu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return x + F.relu(self.norm2(self.conv2(x)))


class ResNet9(nn.Layer):
    """ResNet9 for CIFAR-10, after Page 2019 and Jordan 2024 (arXiv:2404.00498).

    It trains in few epochs: convolutions begin as the identity, the batch norms' scales are not trained and their
    biases learn fast. The weight of the first convolution is not trained either: `whiten_` sets it from images.

    Args:
        widths: Numbers of channels of the blocks.
        classes: Number of classes.
    """

    def __init__(self, widths: Sequence[int] = (48, 192, 256), classes: int = len(CLASSES)) -> None:
        super().__init__()
        self.stem = nn.Conv2D(3, 24, 2)
        self.stem.weight.stop_gradient = True
        pairs = zip([24, *widths], widths, strict=False)
        self.blocks = nn.Sequential(*(Block(before, width) for before, width in pairs))
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the class scores ``[N, classes]``."""
        x = self.blocks(F.relu(self.stem(x)))
        return self.fc(x.max(axis=[2, 3])) * 0.125


def whiten_(network: ResNet9, images: np.ndarray, *, least: float = 5e-4) -> ResNet9:
    """Set the first convolution to whiten 2x2 patches, in place.

    Its weights are the scaled eigenvectors of the patches' covariance and their negatives.

    Args:
        network: Network to change.
        images: Images ``[N, 3, H, W]`` uint8, some thousand.
        least: Constant added to the variances.
    """
    x = normalized(images).astype("float64")
    patches = np.stack(
        [x[:, :, i : i + x.shape[2] - 1, j : j + x.shape[3] - 1] for i in (0, 1) for j in (0, 1)], axis=2
    )
    rows = patches.transpose(0, 3, 4, 1, 2).reshape(-1, 12)
    variances, vectors = np.linalg.eigh(np.cov(rows.T))
    filters = (vectors / np.sqrt(variances + least)).T.reshape(12, 3, 2, 2)
    network.stem.weight.set_value(paddle.to_tensor(np.concatenate([filters, -filters]).astype("float32")))
    return network


LIGHT = ("lcnet", "lcnet_x0_5", "mobilenet")
_LCNET = {"lcnet": "PPLCNet_x0_25", "lcnet_x0_5": "PPLCNet_x0_5"}


def light_network(name: str, teacher: nn.Layer) -> nn.Layer:
    """Build a light network with the classes of ``teacher``.

    Its strides reduce 32x32 pixels to 4x4.

    Args:
        name: One of `LIGHT`: PP-LCNet of width 0.25 or 0.5, or MobileNetV3_small of width 0.5.
        teacher: Network with the same number of classes; not changed.
    """
    if name in _LCNET:
        strides = [1, 2, 2, 2, 1] if name == "lcnet" else [2, 1, 2, 2, 1]
        return BackboneSwap(_LCNET[name], options={"stride_list": strides})(teacher)
    return BackboneSwap(_mobilenet())(teacher)


def _mobilenet() -> nn.Layer:
    """Build MobileNetV3_small of width 0.5 with smaller strides.

    Its factory has no option for strides; the class takes them in its table.
    """
    from paddleclas.ppcls.arch.backbone.legendary_models import mobilenet_v3

    strides = [1, 2, 1, 2, 1, 1, 1, 1, 1, 1, 1]  # after the stride 2 of the first convolution
    table = zip(mobilenet_v3.NET_CONFIG["small"], strides, strict=True)
    return mobilenet_v3.MobileNetV3(
        config=[[*row[:-1], stride] for row, stride in table],
        stages_pattern=mobilenet_v3.MODEL_STAGES_PATTERN["MobileNetV3_small"],
        scale=0.5,
        class_num=len(CLASSES),
    )
