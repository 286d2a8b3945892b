"""Faster depthwise convolutions for training on a CPU.

Paddle 3.3 computes the gradients of a depthwise convolution on a CPU by one small matrix product per image and channel
(``phi/kernels/impl/conv_grad_kernel_impl.h``). They take most of a training step of PP-LCNet, MobileNetV3 and
LiteHRNet. `compiled_depthwise` replaces the operation by kernels that the machine's C compiler builds.
"""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paddle
from paddle import Tensor
from paddle.autograd import PyLayer

from paddlelite_callbacks.utils.private_names import private_module

__all__ = ["compiled_depthwise"]

_paddle = private_module("paddle", "_C_ops.depthwise_conv2d")
_framework = private_module("paddle.base.framework", "_dygraph_tracer")

_LANES = 16  # images side by side in a vector, where rows are shorter than one
_ROW = 8  # least width for which a row fills a vector
# What -ffast-math allows that sums need to be vectorised; itself it would switch off denormal numbers in the process.
_FLAGS = (
    "-O3", "-march=native", "-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno",
    "-ffp-contract=fast", "-w", "-shared", "-fPIC",
)  # fmt: skip


@contextmanager
def compiled_depthwise() -> Iterator[bool]:
    """Compute depthwise convolutions in eager mode by kernels compiled for this CPU.

    A training step of PP-LCNet_x0_25 on 128 images of 32x32 takes 0.28 of the time on one thread (AMD EPYC, AVX2
    without VNNI). Outputs and gradients are those of Paddle within rounding (relative 1e-6). Covered are ``Conv2D``
    layers and ``F.conv2d`` with one filter per channel on float32 NCHW tensors in CPU memory, with equal strides and
    symmetric padding; everything else, tracing and export included, is left to Paddle. Gradients of gradients are not
    available. The kernels run on one thread.

    Yields:
        Whether the kernels are used. Without a C compiler (``cc``, ``gcc`` or ``clang``), or in a Paddle without the
        private operation that is replaced, a ``UserWarning`` says so and Paddle computes as before.

    Example:
        >>> import paddle
        >>> from paddlelite_callbacks import compiled_depthwise
        >>> images, filters = paddle.randn([2, 8, 16, 16]), paddle.randn([8, 1, 3, 3])
        >>> with compiled_depthwise() as used:
        ...     y = paddle.nn.functional.conv2d(images, filters, padding=1, groups=8)
    """
    reason = _missing()
    if reason:
        warnings.warn(f"Depthwise convolutions are computed by Paddle: {reason}.", UserWarning, stacklevel=3)
        yield False
        return
    operations = _paddle._C_ops
    original = operations.depthwise_conv2d
    operations.depthwise_conv2d = functools.partial(_convolution, original)
    try:
        yield True
    finally:
        operations.depthwise_conv2d = original


def _missing() -> str | None:
    if _paddle is None or _framework is None:
        return f"Paddle {paddle.__version__} lacks _C_ops.depthwise_conv2d or _dygraph_tracer"
    library = _library()
    return library if isinstance(library, str) else None


@functools.cache
def _library() -> ctypes.CDLL | str:
    """Compile and load the kernels; return the reason where that fails."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        return "there is no C compiler (cc, gcc or clang) on the PATH"
    with tempfile.TemporaryDirectory(prefix="depthwise") as folder:
        result = Path(folder, "kernels.so")
        source = Path(__file__).with_name("depthwise_kernels.c")
        done = subprocess.run(
            [compiler, *_FLAGS, "-o", str(result), str(source)], capture_output=True, text=True, errors="replace"
        )
        if done.returncode:
            return (
                f"{compiler} failed with exit code {done.returncode}: {(done.stderr.strip().splitlines() or [''])[0]}"
            )
        try:
            return ctypes.CDLL(str(result))
        except OSError as error:
            return f"the compiled kernels could not be loaded: {error}"


class _Sizes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("n", "c", "h", "w", "ho", "wo", "k", "s", "p")]


def _convolution(
    original: Any,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    algorithm: str,
    groups: int,
    dilation: Sequence[int],
    layout: str,
    *others: Any,
) -> Tensor:
    """Replace ``_C_ops.depthwise_conv2d``, with its arguments."""
    fits = (
        not others
        and isinstance(x, paddle.Tensor)
        and isinstance(weight, paddle.Tensor)
        and not _autocast()
        and x.dtype == weight.dtype == paddle.float32
        and x.place.is_cpu_place()
        and layout == "NCHW"
        and algorithm == "EXPLICIT"
        and len({*dilation}) == len({*stride}) == len({*padding}) == dilation[0] == 1
        and weight.shape[0] == groups == x.shape[1]
        and weight.shape[2] == weight.shape[3]
        and 1 < weight.shape[2] <= 16
        and 0 <= padding[0] < weight.shape[2]
        and min(x.shape[2:]) + 2 * padding[0] >= weight.shape[2]
        and x.shape[0] > 0
    )
    if not fits:
        return original(x, weight, stride, padding, algorithm, groups, dilation, layout, *others)
    return _DepthwiseConv2D.apply(x, weight, int(stride[0]), int(padding[0]))


def _autocast() -> bool:
    """Return whether mixed precision is on, which casts in the original operation."""
    tracer = _framework._dygraph_tracer()
    return tracer is not None and int(getattr(tracer, "_amp_level", 0)) != 0


_kept = threading.local()


def _scratch(name: str, floats: int) -> ctypes.c_void_p:
    """Return the address of the thread's aligned memory for ``floats`` numbers."""
    held = vars(_kept).get(name)
    if held is None or ctypes.sizeof(held) < 4 * floats + 64:
        held = ctypes.create_string_buffer(4 * floats + 64)
        setattr(_kept, name, held)
    return ctypes.c_void_p((ctypes.addressof(held) + 63) // 64 * 64)


def _run(name: str, tensors: Sequence[Tensor], sizes: _Sizes) -> None:
    """Call a kernel with the tensors' memory and its scratch memory."""
    rows = sizes.s == 1 and sizes.w >= _ROW
    lanes = 1 if rows else _LANES
    border = max(sizes.p, sizes.k - 1 - sizes.p)
    area = lanes * (sizes.h + 2 * border) * (sizes.w + 2 * border)
    scratch = [_scratch(part, area) for part in ("x", "y", "dx")]
    kernel = getattr(_library(), f"{name}_rows" if rows else f"{name}_lanes")
    kernel(*(ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors), sizes, *scratch)


class _DepthwiseConv2D(PyLayer):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        """Convolve ``[N, C, H, W]`` with ``[C, 1, k, k]``."""
        ctx.needed = (not x.stop_gradient, not weight.stop_gradient)
        x, weight = x.contiguous(), weight.contiguous()
        (n, c, h, w), k = x.shape, weight.shape[2]
        ho, wo = ((size + 2 * padding - k) // stride + 1 for size in (h, w))
        ctx.sizes = _Sizes(n, c, h, w, ho, wo, k, stride, padding)
        ctx.save_for_backward(x, weight)
        y = paddle.empty([n, c, ho, wo], "float32")
        _run("forward", [x, weight, y], ctx.sizes)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of input and filters; ``None`` with ``stop_gradient``."""
        x, weight = ctx.saved_tensor()
        dx, dw = paddle.empty(x.shape, "float32"), paddle.empty(weight.shape, "float32")
        _run("backward", [x, weight, dy.contiguous(), dx, dw], ctx.sizes)
        return tuple(grad if needed else None for grad, needed in zip((dx, dw), ctx.needed, strict=True))
