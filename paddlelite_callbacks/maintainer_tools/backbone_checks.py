"""Check backbones: training, export to each format, quantisation."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import paddle
from paddle import Tensor
from paddle.nn import Conv2D, Layer, Linear
from paddle.static import InputSpec

from paddlelite_callbacks.backbone.structure import unpack
from paddlelite_callbacks.benchmark.engines import ENGINES
from paddlelite_callbacks.export.compare import compare_outputs
from paddlelite_callbacks.export.onnx_export import export_onnx
from paddlelite_callbacks.export.paddle_program import export_paddle
from paddlelite_callbacks.export.tolerance import rounding_noise
from paddlelite_callbacks.nn.surgery import same_modes
from paddlelite_callbacks.quant.convert import convert_for_export_
from paddlelite_callbacks.quant.prepare import prepare_pact_, quantized_layers

__all__ = ["CHECKS", "settle_"]

Check = Callable[[Layer, Tensor], "bool | str"]


def settle_(network: Layer, x: Tensor) -> None:
    """Set the batch-norm statistics of an untrained network from ``x``, in place.

    With the initial statistics (0 and 1), activations of deep networks reach 1e5, where rounding errors exceed any
    tolerance.

    Args:
        network: Network with batch-norm layers.
        x: Images ``[N, C, H, W]``; their mirror images are used too.
    """
    norms = [layer for layer in network.sublayers() if hasattr(layer, "_momentum") and hasattr(layer, "_variance")]
    momenta = [layer._momentum for layer in norms]
    with same_modes(network), paddle.no_grad():
        network.train()
        for layer in norms:
            layer._momentum = 0.0
        network(paddle.concat([x, x.flip(3)]))
    for layer, momentum in zip(norms, momenta, strict=True):
        layer._momentum = momentum


def _train(network: Layer, x: Tensor) -> bool | str:
    """Check that every weight has a gradient and is finite after one SGD step."""
    network = _copy(network)
    network.train()
    optimizer = paddle.optimizer.SGD(0.01, parameters=network.parameters())
    batch = paddle.concat([x, x.flip(3)])
    paddle.add_n([value.square().mean() for value in unpack(network(batch))]).backward()
    still = [name for name, p in network.named_parameters() if not p.stop_gradient and p.grad is None]
    optimizer.step()
    bad = [name for name, p in network.named_parameters() if not bool(paddle.isfinite(p).all())]
    return f"no gradient: {still[:3]}" if still else f"not finite: {bad[:3]}" if bad else True


def _paddle(network: Layer, x: Tensor) -> bool | str:
    """Check ``jit.save`` and ``jit.load`` with a dynamic batch size."""
    network = _copy(network)
    with tempfile.TemporaryDirectory() as folder:
        program = export_paddle(network, Path(folder), input_spec=[_spec(x)])
        loaded = paddle.jit.load(str(program.path.with_suffix("")))
        return _same(network, x, [value.numpy() for value in unpack(loaded(x))])


def _onednn(network: Layer, x: Tensor) -> bool | str:
    """Check Paddle Inference with oneDNN."""
    return _engine(network, x, "paddle-onednn")


def _onnx(network: Layer, x: Tensor) -> bool | str:
    """Check paddle2onnx and ONNX Runtime."""
    return _engine(network, x, "onnxruntime")


def _pact(network: Layer, x: Tensor) -> bool | str:
    """Check fake quantisation and the int8 program."""
    network = _copy(network)
    undo, plain = prepare_pact_(network), set()
    network.train()
    for name, layer in network.named_sublayers():
        if isinstance(layer, (Conv2D, Linear)):
            layer.register_forward_post_hook(lambda *_, name=name: plain.add(name))
    network(paddle.concat([x, x.flip(3)]))
    undo.pop_all()
    if plain:
        return f"not quantised: {sorted(plain)[:3]}"
    network.eval()
    expected = [value.numpy() for value in unpack(network(x))]
    noise = rounding_noise(quantized_layers(network).values(), lambda: unpack(network(x)))
    shipped = _copy(network)
    convert_for_export_(shipped)
    return _close(expected, [value.numpy() for value in unpack(shipped(x))], noise)


CHECKS: dict[str, Check] = {
    name: lambda network, x, check=check: _tried(check, network, x)  # type: ignore[misc]
    for name, check in (
        ("train", _train),
        ("paddle", _paddle),
        ("paddle-onednn", _onednn),
        ("onnx", _onnx),
        ("pact", _pact),
    )
}


def _tried(check: Check, network: Layer, x: Tensor) -> bool | str:
    try:
        return check(network, x)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[-200:]}"


def _engine(network: Layer, x: Tensor, name: str) -> bool | str:
    network, engine = _copy(network), ENGINES[name]
    with tempfile.TemporaryDirectory() as folder:
        artefact = export_paddle(network, Path(folder), input_spec=[_spec(x)])
        if engine.kind == "onnx":
            artefact = export_onnx(artefact, Path(folder, "model.onnx"))
        return _same(network, x, engine.load(artefact, threads=1)([x.numpy()]))


def _same(network: Layer, x: Tensor, got: Sequence[np.ndarray]) -> bool | str:
    network.eval()
    with paddle.no_grad():
        return _close([value.numpy() for value in unpack(network(x))], got)


def _close(expected: Sequence[np.ndarray], got: Sequence[np.ndarray], noise: Sequence[float] = ()) -> bool | str:
    check = compare_outputs(expected, got, engine="", noise=noise)
    return check.passed or check.error or f"differs by {check.max_abs_diff:.2g}, allowed {check.tolerance:.2g}"


def _spec(x: Tensor) -> InputSpec:
    return InputSpec([None, *x.shape[1:]], dtype="float32", name="x")


def _copy(network: Layer) -> Layer:
    return copy.deepcopy(network)
