"""Measure the tolerance of int8 ONNX files by perturbing what they quantise.

The same as `middle_noise` and `flip_noise` measure of a network, here of a graph: each value that is about to be
rounded is moved, by a few units in its last place or, one a row, by a whole step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from paddlelite_callbacks.errors import require
from paddlelite_callbacks.export.onnx_graph import copied_model
from paddlelite_callbacks.export.onnx_session import Run, run_model, with_outputs
from paddlelite_callbacks.export.variants import Reference

__all__ = ["graph_reference"]

_RELATIVE = 1e-6  # as of networks, see `rounding_noise`
_DRAWS = 3
_MOVE = ".moved_by"


def graph_reference(model: Any, inputs: Mapping[str, np.ndarray], *, seed: int = 0) -> Reference:
    """Return the outputs of an int8 model as ONNX defines them, and tolerances.

    Args:
        model: An ``onnx.ModelProto`` in QDQ format.
        inputs: Real inputs by name, batch first.
        seed: Seed of the perturbations.
    """
    quantizers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    given = {item.name for item in model.graph.input}
    names = [node.input[0] for node in quantizers]
    seen = {**inputs, **run_model(with_outputs(model, [name for name in names if name not in given]))(inputs)}
    outputs = [seen[item.name] for item in model.graph.output]
    run = run_model(_movable(model, quantizers))
    arrays = _arrays(model)
    steps = {node.input[0]: float(arrays[node.input[1]].reshape(-1)[0]) for node in quantizers}
    random = np.random.RandomState(seed)

    def last_bits(name: str, x: np.ndarray) -> np.ndarray:
        return random.uniform(-_RELATIVE, _RELATIVE, x.shape) * np.abs(x).max(initial=0.0)

    def one_a_row(name: str, x: np.ndarray) -> np.ndarray:
        moves = np.zeros((len(x), int(np.prod(x.shape[1:]))))
        places = random.randint(moves.shape[1], size=len(x))
        moves[np.arange(len(x)), places] = random.choice([-1.0, 1.0], size=len(x)) * steps[name]
        return moves.reshape(x.shape)

    noise = _changes(run, inputs, {name: seen[name] for name in names}, outputs, model, last_bits)
    flips = _changes(run, inputs, {name: seen[name] for name in names}, outputs, model, one_a_row)
    return Reference(
        outputs=[np.asarray(item) for item in outputs],
        noise=[largest for largest, _ in noise],
        middle=[middle for _, middle in noise],
        flips=[largest for largest, _ in flips],
    )


def _arrays(model: Any) -> dict[str, np.ndarray]:
    to_array = require("onnx.numpy_helper", needed_for="ONNX files").to_array
    return {item.name: to_array(item) for item in model.graph.initializer}


def _movable(model: Any, quantizers: Sequence[Any]) -> Any:
    """Return a copy in which an input is added to each value before it is rounded."""
    onnx = require("onnx", needed_for="ONNX files")
    copied = copied_model(model)
    del copied.graph.node[:]
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            moved = onnx.helper.make_node("Add", [node.input[0], node.input[0] + _MOVE], [f"{node.output[0]}.moved"])
            copied.graph.node.append(moved)
            new = copied.graph.node.add()
            new.CopyFrom(node)
            new.input[0] = moved.output[0]
        else:
            copied.graph.node.add().CopyFrom(node)
    for name in dict.fromkeys(node.input[0] for node in quantizers):
        copied.graph.input.append(onnx.helper.make_tensor_value_info(name + _MOVE, onnx.TensorProto.FLOAT, None))
    return copied


def _changes(
    run: Run,
    inputs: Mapping[str, np.ndarray],
    seen: Mapping[str, np.ndarray],
    outputs: Sequence[np.ndarray],
    model: Any,
    move: Callable[[str, np.ndarray], np.ndarray],
) -> list[tuple[float, float]]:
    """Return per output the largest change, and the largest of its median row."""
    names = [item.name for item in model.graph.output]
    found = [(0.0, 0.0)] * len(names)
    for _ in range(_DRAWS):
        moves = {name + _MOVE: move(name, x).astype("float32") for name, x in seen.items()}
        got = run({**inputs, **moves})
        for place, (name, expected) in enumerate(zip(names, outputs, strict=True)):
            change = np.abs(got[name].astype("float64") - expected)
            rows = change.reshape(len(change), -1).max(axis=1) if change.ndim else change.reshape(1)
            largest, middle = found[place]
            found[place] = max(largest, float(rows.max(initial=0.0))), max(middle, float(np.median(rows)))
    return found
