"""Depthwise convolutions by compiled kernels: values, gradients, and what is left to Paddle."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import _C_ops, nn
from paddle.static import InputSpec
from toy import Images, hapi_model

from paddlelite_callbacks import DistillCallback, NonFiniteLossError, PACTQuantCallback
from paddlelite_callbacks.workarounds.depthwise_training import compiled_depthwise

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="there is no C compiler on the PATH"
)
SHAPES = {  # channels, height, width, kernel size, stride, padding
    "wide rows": (8, 32, 32, 3, 1, 1),
    "stride 2": (6, 16, 16, 3, 2, 1),
    "5x5": (5, 9, 12, 5, 1, 2),
    "5x5, stride 2, uneven": (6, 4, 9, 5, 2, 2),
    "no padding": (3, 9, 8, 3, 1, 0),
    "7x7": (4, 12, 20, 7, 1, 3),
    "2x2": (4, 6, 6, 2, 2, 0),
    "even kernel, padded to the brim": (3, 8, 8, 4, 1, 3),
    "tiny maps": (7, 2, 3, 3, 1, 1),
    "stride 3": (2, 11, 10, 3, 3, 1),
    "one row left": (2, 3, 40, 3, 1, 0),
    "kernel 16": (2, 20, 17, 16, 1, 8),
}


def drawn(shape, images=19, seed=0):
    channels, height, width, side, *_ = SHAPES[shape]
    stream = np.random.default_rng(seed)
    return (
        stream.standard_normal([images, channels, height, width]).astype("float32"),
        stream.standard_normal([channels, 1, side, side]).astype("float32"),
    )


def by_hand(x, weight, dy, stride, padding):
    """Output and gradients of a depthwise convolution in float64, by its definition."""
    side = weight.shape[2]
    x, weight = x.astype("float64"), weight.astype("float64")
    padded = np.pad(x, [(0, 0), (0, 0), (padding, padding), (padding, padding)])
    rows, columns = ((size - side) // stride + 1 for size in padded.shape[2:])
    y, dx, dw = np.zeros([*x.shape[:2], rows, columns]), np.zeros_like(padded), np.zeros_like(weight)
    dy = np.ones_like(y) if dy is None else dy.astype("float64")
    for a in range(side):
        for b in range(side):
            place = np.s_[:, :, a : a + (rows - 1) * stride + 1 : stride, b : b + (columns - 1) * stride + 1 : stride]
            y += padded[place] * weight[:, 0, a, b][:, None, None]
            dx[place] += dy * weight[:, 0, a, b][:, None, None]
            dw[:, 0, a, b] = (padded[place] * dy).sum(axis=(0, 2, 3))
    return y, dx[:, :, padding : padding + x.shape[2], padding : padding + x.shape[3]], dw


def by_paddle(x, weight, dy, stride, padding, **options):
    x, weight = paddle.to_tensor(x, stop_gradient=False), paddle.to_tensor(weight, stop_gradient=False)
    y = F.conv2d(x, weight, stride=stride, padding=padding, groups=weight.shape[0], **options)
    y.backward(None if dy is None else paddle.to_tensor(dy))
    return y, x.grad, weight.grad


def is_compiled(y: paddle.Tensor) -> bool:
    return "PyLayer" in y.grad_fn.name()


@needs_compiler
@pytest.mark.parametrize("images", [1, 16, 19, 33])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_the_definition(shape, images):
    *_, stride, padding = SHAPES[shape]
    x, weight = drawn(shape, images)
    dy = np.random.default_rng(1).standard_normal(by_hand(x, weight, None, stride, padding)[0].shape).astype("float32")
    with compiled_depthwise() as used:
        found = by_paddle(x, weight, dy, stride, padding)
    assert used
    assert is_compiled(found[0])
    for got, right in zip(found, by_hand(x, weight, dy, stride, padding), strict=True):
        np.testing.assert_allclose(got.numpy(), right, rtol=0, atol=2e-6 * np.abs(right).max())


@needs_compiler
def test_gradients_that_are_not_asked_for_are_left_out():
    x, weight = map(paddle.to_tensor, drawn("5x5"))
    with compiled_depthwise():
        weight.stop_gradient = False
        F.conv2d(x, weight, groups=5).sum().backward()
        assert x.grad is None
        assert weight.grad is not None
        frozen = weight.detach()
        x.stop_gradient = False
        F.conv2d(x, frozen, groups=5).sum().backward()
        assert x.grad is not None
        assert frozen.grad is None
        with paddle.no_grad():
            assert F.conv2d(x, weight, groups=5).stop_gradient


OTHERS = {
    "float64": (lambda x, w: (x.astype("float64"), w.astype("float64")), {}),
    "dilation": (lambda x, w: (x, w), {"dilation": 2}),
    "NHWC": (lambda x, w: (x.transpose([0, 2, 3, 1]), w), {"data_format": "NHWC"}),
    "padding SAME": (lambda x, w: (x, w), {"padding": "SAME"}),
    "padding of one side": (lambda x, w: (x, w), {"padding": [1, 0, 0, 0]}),
    "uneven strides": (lambda x, w: (x, w), {"stride": [1, 2]}),
    "two filters a channel": (lambda x, w: (x, paddle.concat([w, w])), {}),
    "1x1": (lambda x, w: (x, w[:, :, :1, :1]), {}),
    "flat filter": (lambda x, w: (x, w[:, :, :1]), {}),
}


@needs_compiler
@pytest.mark.parametrize("case", OTHERS)
def test_everything_else_is_left_to_paddle(case):
    prepare, options = OTHERS[case]
    x, weight = prepare(*map(paddle.to_tensor, drawn("5x5")))
    x.stop_gradient = weight.stop_gradient = False
    expected = F.conv2d(x, weight, groups=5, **options)
    with compiled_depthwise():
        found = F.conv2d(x, weight, groups=5, **options)
    assert not is_compiled(found)
    assert np.array_equal(found.numpy(), expected.numpy())


def light() -> nn.Layer:
    paddle.seed(3)
    return nn.Sequential(
        nn.Conv2D(3, 8, 3, padding=1), nn.BatchNorm2D(8), nn.Hardswish(),
        nn.Conv2D(8, 8, 3, stride=2, padding=1, groups=8, bias_attr=False), nn.BatchNorm2D(8), nn.ReLU(),
        nn.Conv2D(8, 16, 1), nn.Conv2D(16, 16, 5, padding=2, groups=16), nn.ReLU(),
        nn.AdaptiveAvgPool2D(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip


def trained(callbacks) -> dict[str, np.ndarray]:
    network = light()
    model = hapi_model(network, optimizer="SGD")
    paddle.seed(4)
    model.fit(Images(32), batch_size=16, epochs=2, shuffle=False, verbose=0, callbacks=callbacks())
    return {key: value.numpy() for key, value in network.state_dict().items()}


@needs_compiler
@pytest.mark.parametrize(
    "callbacks",
    [list, lambda: [PACTQuantCallback()], lambda: [DistillCallback(light()), PACTQuantCallback()]],
    ids=["alone", "pact", "distil and pact"],
)
def test_a_training_is_that_of_paddle_within_rounding(callbacks):
    expected = trained(callbacks)
    with compiled_depthwise():
        found = trained(callbacks)
    assert found.keys() == expected.keys()
    for key, right in expected.items():
        np.testing.assert_allclose(found[key], right, rtol=2e-3, atol=2e-4, err_msg=key)


@needs_compiler
def test_programs_traced_inside_hold_paddles_operation(tmp_path):
    network = light()
    network.eval()
    with compiled_depthwise():
        paddle.jit.save(network, str(tmp_path / "net"), input_spec=[InputSpec([None, 3, 8, 8], "float32")])
    assert "depthwise_conv2d" in (tmp_path / "net.json").read_text(encoding="utf-8")
    x = paddle.randn([2, 3, 8, 8])
    loaded = paddle.jit.load(str(tmp_path / "net"))
    np.testing.assert_allclose(loaded(x).numpy(), network(x).numpy(), atol=1e-5)


@needs_compiler
def test_the_operation_is_put_back_after_an_error_and_when_nested():
    before = _C_ops.depthwise_conv2d

    def interrupted():
        with compiled_depthwise():
            with compiled_depthwise():
                assert is_compiled(by_paddle(*drawn("2x2"), None, 2, 0)[0])
            assert _C_ops.depthwise_conv2d is not before
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert _C_ops.depthwise_conv2d is before


@needs_compiler
def test_values_that_are_not_finite_pass_through_and_are_seen_by_the_guard():
    x, weight = drawn("stride 2")
    x[3, 2, 5, 6] = float("nan")
    expected = by_paddle(x, weight, None, 2, 1)
    with compiled_depthwise():
        found = by_paddle(x, weight, None, 2, 1)
    for got, right in zip(found, expected, strict=True):
        assert np.array_equal(np.isnan(got.numpy()), np.isnan(right.numpy()))
    images = Images(16)
    images.images[9] = float("nan")
    with compiled_depthwise(), pytest.raises(NonFiniteLossError):
        hapi_model(light()).fit(images, batch_size=8, shuffle=False, verbose=0, callbacks=[DistillCallback(light())])


@needs_compiler
def test_denormal_numbers_stay_in_the_process():
    with compiled_depthwise():
        by_paddle(*drawn("2x2"), None, 2, 0)
    tiny = np.array([1e-40], "float32")
    assert (tiny * np.float32(0.5))[0] > 0


@needs_compiler
def test_threads_do_not_share_scratch_memory():
    cases = [(shape, *drawn(shape, seed=number)) for number, shape in enumerate(SHAPES)]
    right = [by_hand(x, weight, None, *SHAPES[shape][-2:])[0] for shape, x, weight in cases]
    wrong = []

    def work(order):
        for number in order:
            shape, x, weight = cases[number]
            y = by_paddle(x, weight, None, *SHAPES[shape][-2:])[0].numpy()
            if np.abs(y - right[number]).max() > 2e-6 * np.abs(right[number]).max():
                wrong.append(shape)

    with compiled_depthwise():
        orders = [np.random.default_rng(seed).permutation(len(cases)) for seed in range(4)]
        threads = [threading.Thread(target=work, args=[order]) for order in orders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


CHILD = """
import warnings
import paddle
from paddlelite_callbacks.workarounds.depthwise_training import compiled_depthwise
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    with compiled_depthwise() as used:
        paddle.nn.functional.conv2d(paddle.ones([1, 2, 4, 4]), paddle.ones([2, 1, 3, 3]), groups=2)
print(used, *{str(item.message) for item in said if "Depthwise" in str(item.message)}, sep="|")
"""


@pytest.mark.parametrize(
    ("compiler", "said"),
    [
        (None, "there is no C compiler (cc, gcc or clang) on the PATH"),
        ("#!/bin/sh\necho 'no such thing' >&2\nexit 3\n", "failed with exit code 3: no such thing"),
        ('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho nothing > "$2"\n', "could not be loaded"),
    ],
    ids=["none", "failing", "bad library"],
)
def test_without_a_working_compiler_paddle_computes_and_a_warning_says_so(compiler, said, tmp_path):
    if compiler:
        (tmp_path / "cc").write_text(compiler)
        (tmp_path / "cc").chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        env={**os.environ, "PATH": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    used, *messages = done.stdout.strip().splitlines()[-1].split("|")
    assert used == "False"
    assert len(messages) == 1
    assert messages[0].startswith("Depthwise convolutions are computed by Paddle: ")
    assert said in messages[0]


@needs_compiler
def test_no_warning_where_the_kernels_are_used():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with compiled_depthwise() as used:
            assert used
