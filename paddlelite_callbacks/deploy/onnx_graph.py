"""An ONNX graph that can be rewritten: constants by name, producers and consumers of a tensor, new nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from paddlelite_callbacks.errors import require

__all__ = ["OnnxGraph"]

_FOLDED: dict[str, Callable[..., np.ndarray]] = {
    "Identity": lambda x: x,
    "Reshape": lambda x, shape: x.reshape([n if n else x.shape[i] for i, n in enumerate(shape)]),
    "Squeeze": lambda x, axes=None: np.squeeze(x, None if axes is None else tuple(axes)),
    "Unsqueeze": lambda x, axes: np.expand_dims(x, tuple(axes)),
}


class OnnxGraph:
    """The nodes of a model in their order, and its constants as arrays.

    Paddle's converter writes constants as nodes and leaves chains of ``Identity``; both are gone here, and reshapes
    of constants are computed.

    Args:
        model: an ``onnx.ModelProto``; `to_model` gives a new one.
    """

    def __init__(self, model: Any) -> None:
        self._onnx = require("onnx", needed_for="int8 ONNX files")
        to_array = self._onnx.numpy_helper.to_array
        self._model = model
        self.constants: dict[str, np.ndarray] = {item.name: to_array(item) for item in model.graph.initializer}
        self.outputs = [item.name for item in model.graph.output]
        self.inputs = [item.name for item in model.graph.input if item.name not in self.constants]
        self.nodes: list[Any] = []
        renamed: dict[str, str] = {}
        for node in model.graph.node:
            self._take(node, renamed, to_array)
        self._keep_output_names(renamed)

    def producer(self, name: str) -> Any | None:
        """Return the node that computes the tensor ``name``; ``None`` for inputs and constants."""
        return next((node for node in self.nodes if name in node.output), None)

    def consumers(self, name: str) -> list[Any]:
        """Return the nodes that read the tensor ``name``."""
        return [node for node in self.nodes if name in node.input]

    def only_consumer(self, name: str, kind: str) -> Any | None:
        """Return the one node that reads ``name``, if it is of ``kind`` and nothing else needs the tensor."""
        found = self.consumers(name)
        alone = len(found) == 1 and name not in self.outputs and found[0].op_type == kind
        return found[0] if alone else None

    def attribute(self, node: Any, name: str, default: Any = None) -> Any:
        """Return the value of a node's attribute."""
        values = [self._onnx.helper.get_attribute_value(item) for item in node.attribute if item.name == name]
        return values[0] if values else default

    def constant(self, name: str, value: np.ndarray) -> str:
        """Add a constant; return its name, made unique where ``name`` is taken."""
        unique, number = name, 0
        while unique in self.constants:
            number += 1
            unique = f"{name}_{number}"
        self.constants[unique] = value
        return unique

    def insert_before(self, node: Any, kind: str, inputs: list[str], output: str, **attributes: Any) -> Any:
        """Add a node in front of ``node``."""
        new = self._onnx.helper.make_node(kind, inputs, [output], name=f"{kind}_{output}", **attributes)
        self.nodes.insert(self.position(node), new)
        return new

    def position(self, node: Any) -> int:
        """Return the index of ``node`` in `nodes`; by identity, since equal protos are equal."""
        return next(i for i, item in enumerate(self.nodes) if item is node)

    def remove(self, *nodes: Any) -> None:
        """Take nodes out; what read their outputs must have been redirected."""
        gone = {id(node) for node in nodes}
        self.nodes = [node for node in self.nodes if id(node) not in gone]

    def redirect(self, old: str, new: str) -> None:
        """Let whatever reads the tensor ``old`` read ``new``."""
        for node in self.nodes:
            for index, name in enumerate(node.input):
                if name == old:
                    node.input[index] = new

    def to_model(self) -> Any:
        """Return the model: nodes that nothing reads and unused constants are left out."""
        needed, kept = set(self.outputs), []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(node.input)
        model = self._onnx.ModelProto()
        model.CopyFrom(self._model)
        del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
        model.graph.node.extend(reversed(kept))
        model.graph.initializer.extend(
            self._onnx.numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
            for name, value in self.constants.items()
            if name in needed
        )
        return model

    def _take(self, node: Any, renamed: dict[str, str], to_array: Any) -> None:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            self.constants[node.output[0]] = to_array(node.attribute[0].t)
        elif node.op_type in _FOLDED and len(node.output) == 1 and all(i in self.constants for i in node.input):
            self.constants[node.output[0]] = _FOLDED[node.op_type](*(self.constants[i] for i in node.input))
        elif node.op_type == "Identity":
            renamed[node.output[0]] = node.input[0]
        else:
            self.nodes.append(node)

    def _keep_output_names(self, renamed: dict[str, str]) -> None:
        for output in self.outputs:
            source = renamed.get(output)
            if source is None:
                continue
            node = self.producer(source)
            if node is None or source in self.outputs:  # an input or constant handed through, or a second name
                make_node = self._onnx.helper.make_node
                self.nodes.append(make_node("Identity", [source], [output], name=f"Identity_{output}"))
                continue
            node.output[list(node.output).index(source)] = output
            self.redirect(source, output)
