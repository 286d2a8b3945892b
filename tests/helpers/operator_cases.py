"""Small networks that use one operator (or few) each: what is said of a program's operators is tried on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.static import InputSpec
from paddle.vision.ops import DeformConv2D


@dataclass(frozen=True)
class Case:
    """A function of tensors, with what it is fed.

    Args:
        make: returns the network, or a plain function of its inputs.
        shapes: sizes that are fed.
        free: the same with ``None`` for sizes that the program leaves open.
        dtype: of the inputs.
        positive: whether the inputs are above 0.2.
    """

    make: Callable[[], Any]
    shapes: tuple[tuple[int, ...], ...] = ((2, 4, 6, 6),)
    free: tuple[tuple[int | None, ...], ...] | None = None
    dtype: str = "float32"
    positive: bool = False

    def inputs(self) -> list[np.ndarray]:
        random = np.random.RandomState(3)
        made = []
        for shape in self.shapes:
            values = random.uniform(-2.0, 2.0, shape)
            values = np.abs(values) * 0.4 + 0.2 if self.positive else values
            made.append((values * (3 if "int" in self.dtype else 1)).astype(self.dtype))
        return made

    def specs(self) -> list[InputSpec]:
        free = self.free or tuple((None, *shape[1:]) for shape in self.shapes)
        return [InputSpec(list(shape), self.dtype, name=f"x{i}") for i, shape in enumerate(free)]


class Wrapped(nn.Layer):
    """A function as a network; one parameter, since a program without any is not saved."""

    def __init__(self, function: Callable[..., Any], count: int, dtype: str) -> None:
        super().__init__()
        self.function, self.count = function, count
        self.shift = self.create_parameter([1], default_initializer=nn.initializer.Constant(0.0))
        self.cast = dtype == "float32"

    def forward(self, *inputs: Any) -> Any:
        first, *others = inputs
        result = self.function(first + self.shift if self.cast else first, *others)
        outputs = list(result) if isinstance(result, (list, tuple)) else [result]
        outputs = [one.astype("float32") if one.dtype == paddle.bool else one for one in outputs]
        return outputs if self.cast else [*outputs, self.shift * 2.0]


def network_of(case: Case) -> nn.Layer:
    """Return the network of a case, in eval mode, with weights and statistics that are not those of the beginning."""
    paddle.seed(7)
    made = case.make()
    network = made if isinstance(made, nn.Layer) else Wrapped(made, len(case.shapes), case.dtype)
    random = np.random.RandomState(5)
    for layer in network.sublayers(include_self=True):
        for key in ("_mean", "_variance"):
            if isinstance(getattr(layer, key, None), paddle.Tensor):
                tensor = getattr(layer, key)
                tensor.set_value((np.abs(random.standard_normal(tensor.shape)) + 0.5).astype("float32"))
    for parameter in network.parameters():
        if len(parameter.shape) == 1 and parameter.shape[0] > 1:
            parameter.set_value(random.uniform(0.3, 1.2, parameter.shape).astype("float32"))
    network.eval()
    return network


def _of(*layers: nn.Layer) -> nn.Layer:
    return nn.Sequential(*layers)


class Recurrent(nn.Layer):
    """CRNN's head: columns as a sequence, classified one by one."""

    def __init__(self, kind: type, **options: Any) -> None:
        super().__init__()
        self.rnn, self.out = kind(8, 5, **options), nn.Linear(5 * (2 if "direction" in options else 1), 7)

    def forward(self, x: Any) -> Any:
        sequence, _ = self.rnn(x.flatten(2).transpose([0, 2, 1]))
        return F.softmax(self.out(sequence), axis=-1)


class Attention(nn.Layer):
    """One block of SVTR: layer norm, global mixing over the tokens of a map, a perceptron."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2, self.up, self.down = nn.LayerNorm(width, epsilon=1e-6), nn.Linear(width, 16), nn.Linear(16, width)
        self.heads, self.size = heads, width // heads

    def forward(self, x: Any) -> Any:
        x = x.flatten(2).transpose([0, 2, 1])
        y = self.qkv(self.norm(x)).reshape([0, -1, 3, self.heads, self.size]).transpose([2, 0, 3, 1, 4])
        q, k, v = y[0] * self.size**-0.5, y[1], y[2]
        weights = F.softmax(q.matmul(k.transpose([0, 1, 3, 2])), axis=-1)
        y = weights.matmul(v).transpose([0, 2, 1, 3]).reshape([0, -1, self.heads * self.size])
        x = x + self.out(y)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Pyramid(nn.Layer):
    """Neck and heads of a detector: two levels, the upper one added to the lower, classes and boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Conv2D(3, 8, 3, 2, 1), nn.Conv2D(8, 8, 3, 2, 1, bias_attr=False)
        self.norm, self.side = nn.BatchNorm2D(8), nn.Conv2D(8, 8, 1)
        self.classes, self.boxes = nn.Conv2D(8, 3, 3, 1, 1), nn.Conv2D(8, 4, 3, 1, 1)

    def forward(self, x: Any) -> Any:
        low = F.relu(self.low(x))
        high = F.silu(self.norm(self.high(low)))
        low = self.side(low) + F.interpolate(high, size=paddle.shape(low)[2:], mode="nearest")
        levels = [low, high]
        classes = [F.sigmoid(self.classes(one)).flatten(2) for one in levels]
        boxes = [F.relu(self.boxes(one)).flatten(2).transpose([0, 2, 1]) for one in levels]
        return paddle.concat(classes, axis=-1), paddle.concat(boxes, axis=1)


class Segmentation(nn.Layer):
    """Segmentation head: maps of two sizes joined, logits at the size of the picture, the class of each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2D(3, 6, 3, 2, 1), nn.Conv2D(6, 6, 3, 2, 1)
        self.join, self.head = nn.Conv2D(12, 8, 1), nn.Conv2D(8, 4, 1)

    def forward(self, x: Any) -> Any:
        fine = F.relu(self.fine(x))
        coarse = F.relu(self.coarse(fine))
        coarse = coarse + F.adaptive_avg_pool2d(coarse, 1)
        coarse = F.interpolate(coarse, fine.shape[2:], mode="bilinear", align_corners=False)
        y = self.head(F.relu(self.join(paddle.concat([fine, coarse], axis=1))))
        logits = F.interpolate(y, x.shape[2:], mode="bilinear", align_corners=True)
        return logits, paddle.argmax(logits, axis=1)


class TextDetection(nn.Layer):
    """DB's head: two transposed convolutions, a map of probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2D(3, 8, 3, 1, 1, bias_attr=False), nn.BatchNorm2D(8)
        self.up, self.norm2 = nn.Conv2DTranspose(8, 8, 2, 2), nn.BatchNorm2D(8)
        self.up2 = nn.Conv2DTranspose(8, 1, 2, 2)

    def forward(self, x: Any) -> Any:
        y = F.relu(self.norm(self.conv(x)))
        return F.sigmoid(self.up2(F.relu(self.norm2(self.up(y)))))


def _written(x: Any, index: Any, value: Any) -> Any:
    y = x * 3
    if not paddle.in_dynamic_mode():
        return paddle.static.setitem(y, index, value)
    y[index] = value
    return y


class Deformable(nn.Layer):
    """A deformable convolution of the first or second form."""

    def __init__(self, masked: bool = False) -> None:
        super().__init__()
        self.offset, self.conv = nn.Conv2D(4, 18, 3, padding=1), DeformConv2D(4, 5, 3, padding=1)
        self.mask = nn.Conv2D(4, 9, 3, padding=1) if masked else None

    def forward(self, x: Any) -> Any:
        mask = None if self.mask is None else F.sigmoid(self.mask(x))
        return self.conv(x, self.offset(x), mask)


_UNARY = (
    *("abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "ceil", "cos", "cosh", "digamma", "erf", "erfinv"),
    *("exp", "expm1", "floor", "isfinite", "isinf", "isnan", "log", "log10", "log1p", "log2", "reciprocal", "round"),
    *("rsqrt", "sigmoid", "sign", "sin", "sinh", "sqrt", "square", "tan", "tanh", "trunc"),
)
_BELOW_ONE, _ABOVE_ONE = {"acos", "asin", "atanh", "erfinv"}, {"acosh"}
_ACTIVATIONS: dict[str, Callable[[], Any]] = {
    "relu": lambda: F.relu,
    "relu6": lambda: F.relu6,
    "hardswish": lambda: F.hardswish,
    "hardsigmoid": lambda: lambda x: F.hardsigmoid(x, slope=0.3, offset=0.4),
    "swish": lambda: F.swish,
    "silu": lambda: F.silu,
    "mish": lambda: F.mish,
    "gelu": lambda: F.gelu,
    "gelu_tanh": lambda: lambda x: F.gelu(x, approximate=True),
    "elu": lambda: lambda x: F.elu(x, alpha=0.7),
    "celu": lambda: lambda x: F.celu(x, alpha=0.7),
    "selu": lambda: F.selu,
    "leaky_relu": lambda: lambda x: F.leaky_relu(x, negative_slope=0.3),
    "prelu": lambda: _of(nn.PReLU(4, init=0.3)),
    "softplus": lambda: lambda x: F.softplus(x, beta=2.0, threshold=3.0),
    "softshrink": lambda: lambda x: F.softshrink(x, threshold=0.7),
    "hardshrink": lambda: lambda x: F.hardshrink(x, threshold=0.7),
    "hardtanh": lambda: lambda x: F.hardtanh(x, min=-0.4, max=0.9),
    "thresholded_relu": lambda: lambda x: F.thresholded_relu(x, threshold=0.7),
    "softsign": lambda: F.softsign,
    "tanhshrink": lambda: F.tanhshrink,
    "log_sigmoid": lambda: F.log_sigmoid,
    "stanh": lambda: lambda x: paddle.stanh(x, scale_a=0.5, scale_b=1.5),
    "softmax": lambda: lambda x: F.softmax(x, axis=1),
    "log_softmax": lambda: lambda x: F.log_softmax(x, axis=2),
    "maxout": lambda: lambda x: F.maxout(x, groups=2),
    "glu": lambda: lambda x: F.glu(x, axis=1),
    "rrelu": lambda: lambda x: F.rrelu(x, training=False),
}
_BINARY = {
    "add": paddle.add,
    "subtract": paddle.subtract,
    "multiply": paddle.multiply,
    "divide": paddle.divide,
    "maximum": paddle.maximum,
    "minimum": paddle.minimum,
    "fmax": paddle.fmax,
    "fmin": paddle.fmin,
    "pow_tensor": paddle.pow,
    "remainder": paddle.remainder,
    "floor_divide": paddle.floor_divide,
    "atan2": paddle.atan2,
    "equal": lambda x, y: paddle.equal(paddle.round(x), paddle.round(y)),
    "not_equal": lambda x, y: paddle.not_equal(paddle.round(x), paddle.round(y)),
    "less_than": paddle.less_than,
    "less_equal": paddle.less_equal,
    "greater_than": paddle.greater_than,
    "greater_equal": paddle.greater_equal,
    "logical_and": lambda x, y: paddle.logical_and(x > 0.7, y > 0.5),
    "logical_or": lambda x, y: paddle.logical_or(x > 0.7, y > 0.5),
    "logical_xor": lambda x, y: paddle.logical_xor(x > 0.7, y > 0.5),
    "logical_not": lambda x, y: paddle.logical_not(x > y),
    "where": lambda x, y: paddle.where(x > y, x, y * 2),
    "heaviside": lambda x, y: paddle.heaviside(x - 0.6, y),
    "kron": lambda x, y: paddle.kron(x[:, 0, :2, :2], y[:, 1, :2, :2]),
    "dot": lambda x, y: paddle.dot(x[:, 0, 0], y[:, 1, 2]),
    "mv": lambda x, y: paddle.mv(x[0, 0], y[1, 2, 3]),
    "lerp": lambda x, y: paddle.lerp(x, y, 0.3),
    "cosine_similarity": lambda x, y: F.cosine_similarity(x, y, axis=1),
}
_REDUCTIONS = {
    "mean": lambda x: paddle.mean(x, axis=[2, 3], keepdim=True),
    "mean_last": lambda x: x.mean(-1),
    "mean_all": lambda x: x.mean() + x,
    "sum": lambda x: paddle.sum(x, axis=[1, 3]),
    "sum_all": lambda x: x.sum() + x,
    "max": lambda x: paddle.max(x, axis=1, keepdim=True),
    "max_all": lambda x: x.max() + x,
    "min": lambda x: paddle.min(x, axis=[2]),
    "prod": lambda x: paddle.prod(x, axis=1),
    "amax": lambda x: paddle.amax(x, axis=[2, 3]),
    "amin": lambda x: paddle.amin(x, axis=[2, 3], keepdim=True),
    "any": lambda x: paddle.any(x > 1.5, axis=1),
    "all": lambda x: paddle.all(x > -1.5, axis=[1, 2]),
    "logsumexp": lambda x: paddle.logsumexp(x, axis=[1]),
    "norm": lambda x: paddle.linalg.norm(x, p=2, axis=1),
    "p_norm": lambda x: paddle.linalg.norm(x, p=3, axis=1, keepdim=True),
    "frobenius": lambda x: paddle.linalg.norm(x, p="fro", axis=[2, 3]),
    "normalize": lambda x: F.normalize(x, axis=1),
    "std": lambda x: paddle.std(x, axis=[2, 3]),
    "argmax": lambda x: paddle.argmax(x, axis=1),
    "argmax_keep": lambda x: paddle.argmax(x, axis=1, keepdim=True),
    "argmax_all": lambda x: paddle.argmax(x).astype("float32") + x,
    "argmin": lambda x: paddle.argmin(x, axis=-1, dtype="int32"),
    "argsort": lambda x: paddle.argsort(x, axis=1, descending=True),
    "topk": lambda x: paddle.topk(x, 2, axis=1),
    "cumsum": lambda x: paddle.cumsum(x, axis=2),
    "cumprod": lambda x: paddle.cumprod(x, dim=2),
}
_SHAPES = {
    "reshape": lambda x: x.reshape([0, 2, -1]),
    "reshape_free": lambda x: x.reshape([paddle.shape(x)[0], -1, 6]),
    "flatten": lambda x: x.flatten(1),
    "transpose": lambda x: x.transpose([0, 2, 3, 1]),
    "squeeze": lambda x: x.mean(axis=[2, 3], keepdim=True).squeeze([2, 3]),
    "unsqueeze": lambda x: x.unsqueeze([1, -1]),
    "concat": lambda x: paddle.concat([x, x * 2], axis=1),
    "split": lambda x: paddle.split(x, [1, 3], axis=1),
    "split_num": lambda x: paddle.split(x, 2, axis=1),
    "chunk_last": lambda x: paddle.chunk(x, 3, axis=-1),
    "unbind": lambda x: paddle.unbind(x, axis=1),
    "unstack": lambda x: paddle.unstack(x, axis=1),
    "stack": lambda x: paddle.stack([x, x + 1], axis=2),
    "slice": lambda x: x[:, 1:3, ::2],
    "slice_negative": lambda x: x[:, -2:, :, 1],
    "strided": lambda x: x[:, :, ::2, 1::2],
    "flip": lambda x: paddle.flip(x, axis=[2, 3]),
    "roll": lambda x: paddle.roll(x, shifts=[1, -2], axis=[2, 3]),
    "tile": lambda x: paddle.tile(x, [1, 2, 1, 1]),
    "expand": lambda x: x.mean(axis=[2, 3], keepdim=True).expand([-1, -1, 3, 5]),
    "expand_free": lambda x: x.mean(axis=[2, 3], keepdim=True).expand([paddle.shape(x)[0], 4, 3, 5]),
    "shape": lambda x: paddle.shape(x).astype("float32") * x.mean(),
    "expand_as": lambda x: paddle.expand_as(x.mean(axis=1, keepdim=True), x),
    "broadcast_to": lambda x: paddle.broadcast_to(x.mean(axis=[1], keepdim=True), [2, 4, 6, 6]),
    "pad": lambda x: F.pad(x, [1, 2, 0, 1], value=0.5),
    "pad_reflect": lambda x: F.pad(x, [1, 2, 0, 1], mode="reflect"),
    "pad_replicate": lambda x: F.pad(x, [1, 2, 0, 1], mode="replicate"),
    "pad_all": lambda x: F.pad(x, [0, 0, 0, 1, 1, 0, 2, 0], value=-1.0),
    "gather": lambda x: paddle.gather(x, paddle.to_tensor([2, 0], dtype="int64"), axis=1),
    "gather_nd": lambda x: paddle.gather_nd(x, paddle.to_tensor([[0, 1], [1, 3]], dtype="int64")),
    "index_select": lambda x: paddle.index_select(x, paddle.to_tensor([2, 0], dtype="int64"), axis=1),
    "index": lambda x: x[:, [2, 0]],
    "take_along": lambda x: paddle.take_along_axis(x, paddle.argsort(x, axis=1), axis=1),
    "scatter": lambda x: paddle.scatter(x, paddle.to_tensor([1, 0], dtype="int64"), x * 2, overwrite=True),
    "scatter_nd_add": lambda x: paddle.scatter_nd_add(
        x[:, :, 0, 0].transpose([1, 0]), paddle.to_tensor([[1], [0]], dtype="int64"), x[1, :2, :2, 3]
    ),
    "index_sample": lambda x: paddle.index_sample(x[:, 0, 0], paddle.argsort(x[:, 1, 1], axis=1)),
    "masked_select": lambda x: paddle.masked_select(x, x > 0.5),
    "nonzero": lambda x: paddle.nonzero(x > 0.5),
    "logit": lambda x: paddle.logit(F.sigmoid(x), eps=0.2),
    "tril": lambda x: paddle.tril(x) + paddle.triu(x, diagonal=1) * 2,
    "one_hot": lambda x: F.one_hot(paddle.argmax(x, axis=1), 4),
    "full_like": lambda x: paddle.full_like(x, 0.5) * x,
    "zeros_ones": lambda x: paddle.zeros_like(x) + paddle.ones_like(x) * x,
    "full": lambda x: paddle.full([6, 6], 0.25) + x,
    "full_free": lambda x: (
        paddle.zeros([paddle.shape(x)[0], 1, 1, 1]) + paddle.full([paddle.shape(x)[0], 4, 1, 1], 1.5) + x
    ),
    "constant": lambda x: x + paddle.to_tensor([0.5, 1.5, 2.5, 3.5, 4.5, 5.5]),
    "arange": lambda x: x + paddle.arange(0, 6, dtype="float32"),
    "arange_free": lambda x: x + paddle.arange(x.shape[3], dtype="float32"),
    "arange_int": lambda x: x + paddle.arange(5, -1, -1).astype("float32"),
    "linspace": lambda x: x + paddle.linspace(-1.0, 1.0, 6),
    "meshgrid": lambda x: (
        sum(paddle.meshgrid(paddle.arange(6, dtype="float32"), paddle.arange(6, dtype="float32"))) + x
    ),
    "set_value": lambda x: _written(x, (slice(None), slice(1, 3), 0), 0.5),
    "set_tensor": lambda x: _written(x, (slice(None), 1), x[:, 0] * 2),
    "cast": lambda x: x.astype("int32").astype("float32") + x.astype("float64").astype("float32"),
    "clip": lambda x: paddle.clip(x, min=-0.5, max=0.8),
    "clip_lower": lambda x: paddle.clip(x, min=0.1),
    "scale": lambda x: paddle.scale(x, scale=2.5, bias=0.5, bias_after_scale=False),
    "arithmetic": lambda x: (3.0 - x) * 2.0 / (x.abs() + 1.0) - 0.5,
    "pow": lambda x: paddle.pow(x, 3) + x.abs() ** 0.5,
    "matmul": lambda x: paddle.matmul(x, x, transpose_y=True),
    "bmm": lambda x: paddle.bmm(x.flatten(2), x.flatten(2).transpose([0, 2, 1])),
    "einsum": lambda x: paddle.einsum("nchw,ncvw->nhv", x, x),
    "masked_fill": lambda x: paddle.where(x > 0.5, paddle.full_like(x, -1e9), x).max(axis=-1),
    "infinite": lambda x: F.softmax(paddle.where(x > 1.5, paddle.full_like(x, float("-inf")), x), axis=-1),
    "numel": lambda x: x / paddle.numel(x).astype("float32"),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 2),
    "unfold": lambda x: F.unfold(x, 3, strides=1, paddings=1),
    "repeat_interleave": lambda x: paddle.repeat_interleave(x, 2, axis=1),
    "add_n": lambda x: paddle.add_n([x, x * 2, x * 3]),
    "dropout": lambda x: F.dropout(x, 0.4, training=False),
    "dropout_downscale": lambda x: F.dropout(x, 0.4, training=False, mode="downscale_in_infer"),
    "same_twice": lambda x: [x * 2, x * 2],
    "grid_sample": lambda x: F.grid_sample(x, x[:, :2].transpose([0, 2, 3, 1]) * 0.4, align_corners=False),
    "affine_grid": lambda x: F.grid_sample(x, F.affine_grid(x[:, 0, :2, :3], [2, 4, 5, 5])),
    "temporal_shift": lambda x: F.temporal_shift(x, 2, 0.25),
    "adaptive_avg": lambda x: F.adaptive_avg_pool2d(x, [2, 3]),
    "adaptive_avg_odd": lambda x: F.adaptive_avg_pool2d(x, 4),
    "adaptive_max": lambda x: F.adaptive_max_pool2d(x, 3),
    "avg_pool": lambda x: F.avg_pool2d(x, 3, 2, padding=1, exclusive=False),
    "avg_pool_exclusive": lambda x: F.avg_pool2d(x, 3, 2, padding=1, ceil_mode=True),
    "max_pool": lambda x: F.max_pool2d(x, 3, 2, padding=[0, 1], ceil_mode=True),
    "max_pool_mask": lambda x: F.max_pool2d(x, 2, 2, return_mask=True),
    "local_response": lambda x: F.local_response_norm(x, 3),
}
_LAYERS: dict[str, Callable[[], Any]] = {
    "conv2d": lambda: _of(nn.Conv2D(4, 6, (3, 5), stride=(2, 1), padding=(1, 2), dilation=1)),
    "conv2d_dilated": lambda: _of(nn.Conv2D(4, 6, 3, padding=2, dilation=2, groups=2, bias_attr=False)),
    "conv2d_same": lambda: _of(nn.Conv2D(4, 6, 3, stride=2, padding="SAME")),
    "conv2d_reflect": lambda: _of(nn.Conv2D(4, 6, 3, padding=1, padding_mode="reflect")),
    "conv2d_nhwc": lambda: _of(nn.Conv2D(6, 6, 3, padding=1, data_format="NHWC")),
    "depthwise": lambda: _of(nn.Conv2D(4, 4, 3, stride=2, padding=1, groups=4)),
    "depthwise_twice": lambda: _of(nn.Conv2D(4, 8, 3, padding=1, groups=4)),
    "conv2d_transpose": lambda: _of(nn.Conv2DTranspose(4, 6, 3, stride=2, padding=1, output_padding=1)),
    "conv2d_transpose_groups": lambda: _of(nn.Conv2DTranspose(4, 6, 2, stride=2, groups=2)),
    "depthwise_transpose": lambda: _of(nn.Conv2DTranspose(4, 4, 4, stride=2, padding=1, groups=4)),
    "batch_norm": lambda: _of(nn.BatchNorm2D(4, epsilon=1e-3)),
    "deformable_masked": lambda: Deformable(masked=True),
    "deformable": Deformable,
    "instance_norm": lambda: _of(nn.InstanceNorm2D(4, epsilon=1e-3)),
    "group_norm": lambda: _of(nn.GroupNorm(2, 4, epsilon=1e-3)),
    "layer_norm": lambda: _of(nn.LayerNorm([6, 6], epsilon=1e-3)),
    "layer_norm_plain": lambda: _of(nn.Conv2D(4, 4, 1), nn.LayerNorm(6, weight_attr=False, bias_attr=False)),
    "linear": lambda: _of(nn.Flatten(), nn.Linear(144, 10)),
    "upsample_nearest": lambda: _of(nn.Conv2D(4, 4, 1), nn.Upsample(scale_factor=2, mode="nearest")),
    "upsample_bilinear": lambda: _of(nn.Conv2D(4, 4, 1), nn.Upsample(scale_factor=1.5, mode="bilinear")),
    "upsample_corners": lambda: _of(nn.Conv2D(4, 4, 1), nn.Upsample(size=[9, 11], mode="bilinear", align_corners=True)),
    "upsample_bicubic": lambda: _of(nn.Conv2D(4, 4, 1), nn.Upsample(scale_factor=2, mode="bicubic")),
    "upsample_mode1": lambda: _of(nn.Conv2D(4, 4, 1), nn.Upsample(scale_factor=2, mode="bilinear", align_mode=1)),
    "spectral_norm": lambda: _of(nn.utils.spectral_norm(nn.Conv2D(4, 4, 3))),
    "weight_norm": lambda: _of(nn.utils.weight_norm(nn.Conv2D(4, 4, 3))),
}


def _named(group: str, functions: dict[str, Any], **options: Any) -> dict[str, Case]:
    return {f"{group}-{name}": Case(lambda f=function: f, **options) for name, function in functions.items()}


def _unary(name: str) -> Callable[[Any], Any]:
    def run(x: Any) -> Any:
        x = x * 0.9 if name in _BELOW_ONE else x + 1.0 if name in _ABOVE_ONE else x
        return getattr(paddle, name)(x) if hasattr(paddle, name) else getattr(F, name)(x)

    return run


_MAP = ((2, 4, 6, 6),)
_FREE = ((None, 4, None, None),)
_PICTURE, _FREE_PICTURE = ((2, 3, 16, 24),), ((None, 3, None, None),)
_SEQUENCE, _FREE_SEQUENCE = ((2, 8, 1, 6),), ((None, 8, 1, None),)

CASES: dict[str, Case] = {
    **{f"unary-{name}": Case(lambda n=name: _unary(n), positive=True) for name in _UNARY},
    **{f"activation-{name}": Case(make) for name, make in _ACTIVATIONS.items()},
    **_named("binary", _BINARY, shapes=((2, 4, 6, 6), (2, 4, 6, 6)), positive=True),
    "binary-broadcast": Case(lambda: lambda x, y: x * y + y, shapes=((2, 4, 6, 6), (2, 4, 1, 1))),
    "binary-bitwise": Case(
        lambda: lambda x, y: [x & y, x | y, x ^ y, ~x], shapes=((2, 4, 6), (2, 4, 6)), dtype="int32"
    ),
    "integer-arithmetic": Case(lambda: lambda x: (x + 3) * 2 - x // 2, shapes=((2, 5),), dtype="int64"),
    "embedding": Case(lambda: _of(nn.Embedding(9, 4)), shapes=((2, 5),), dtype="int64", positive=True),
    **_named("reduce", _REDUCTIONS),
    **_named("shape", _SHAPES),
    **{f"layer-{name}": Case(make) for name, make in _LAYERS.items()},
    **{
        f"free-{name}": Case(_LAYERS[name], free=_FREE)
        for name in ("conv2d", "depthwise", "conv2d_transpose", "upsample_nearest", "upsample_bilinear", "batch_norm")
    },
    "conv1d": Case(lambda: _of(nn.Conv1D(4, 6, 3, padding=1), nn.BatchNorm1D(6), nn.ReLU()), shapes=((2, 4, 9),)),
    "pool1d": Case(lambda: lambda x: [F.max_pool1d(x, 2), F.avg_pool1d(x, 3, 1)], shapes=((2, 4, 9),)),
    "upsample1d": Case(lambda: lambda x: F.interpolate(x, size=[12], mode="linear"), shapes=((2, 4, 9),)),
    "conv3d": Case(
        lambda: _of(nn.Conv3D(2, 4, 3, padding=1), nn.BatchNorm3D(4), nn.MaxPool3D(2)), shapes=((2, 2, 4, 6, 6),)
    ),
    "conv3d_transpose": Case(lambda: _of(nn.Conv3DTranspose(2, 4, 2, stride=2)), shapes=((2, 2, 3, 4, 4),)),
    "adaptive_max3d": Case(lambda: lambda x: F.adaptive_max_pool3d(x, 2), shapes=((2, 2, 4, 6, 6),)),
    "upsample3d": Case(lambda: lambda x: F.interpolate(x, scale_factor=2, mode="trilinear"), shapes=((2, 2, 3, 4, 4),)),
    "multihead": Case(lambda: nn.MultiHeadAttention(8, 2), shapes=((2, 5, 8),)),
    "transformer": Case(lambda: nn.TransformerEncoderLayer(8, 2, 16), shapes=((2, 5, 8),)),
    "crnn-lstm": Case(lambda: Recurrent(nn.LSTM), _SEQUENCE, _FREE_SEQUENCE),
    "crnn-bilstm2": Case(lambda: Recurrent(nn.LSTM, direction="bidirect", num_layers=2), _SEQUENCE, _FREE_SEQUENCE),
    "crnn-gru": Case(lambda: Recurrent(nn.GRU, direction="bidirect"), _SEQUENCE, _FREE_SEQUENCE),
    "crnn-rnn": Case(lambda: Recurrent(nn.SimpleRNN), _SEQUENCE, _FREE_SEQUENCE),
    "svtr-block": Case(Attention, ((2, 8, 2, 6),), ((None, 8, 2, None),)),
    "fpn-detector": Case(Pyramid, _PICTURE),
    "fpn-detector-free": Case(Pyramid, _PICTURE, _FREE_PICTURE),
    "segmentation": Case(Segmentation, _PICTURE),
    "segmentation-free": Case(Segmentation, _PICTURE, _FREE_PICTURE),
    "db": Case(TextDetection, _PICTURE, _FREE_PICTURE),
}
