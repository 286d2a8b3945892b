"""Rewrite ONNX graphs: constants by name, producers and consumers, new nodes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from paddlelite_callbacks.errors import require
from paddlelite_callbacks.export.graph_index import GraphIndex, unique_name

__all__ = ["WEIGHTED", "OnnxGraph", "Shapes", "copied_model", "rename_tensors", "tensor_shapes"]

WEIGHTED = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1, "Gemm": 1}
"""Operators with a weight as second input, and the axis of its output channels."""

Shapes = dict[str, list[int | None]]
"""Sizes of tensors by name, ``None`` for one that is not known."""

_FOLDED: dict[str, Callable[..., np.ndarray]] = {
    "Identity": lambda x: x,
    "Reshape": lambda x, shape: x.reshape([n if n else x.shape[i] for i, n in enumerate(shape)]),
    "Squeeze": lambda x, axes=None: np.squeeze(x, None if axes is None else tuple(axes)),
    "Unsqueeze": lambda x, axes: np.expand_dims(x, tuple(axes)),
}


def copied_model(model: Any) -> Any:
    """Return a copy of an ``onnx.ModelProto``.

    Args:
        model: Model to copy.
    """
    copied = type(model)()
    copied.CopyFrom(model)
    return copied


def tensor_shapes(model: Any) -> Shapes:
    """Return the shapes of the tensors for which the rank can be inferred, by name.

    Args:
        model: An ``onnx.ModelProto``.

    Returns:
        Sizes; ``None`` for one that is not known.
    """
    onnx = require("onnx", needed_for="ONNX files")
    found = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    return {
        item.name: [dim.dim_value if dim.HasField("dim_value") else None for dim in item.type.tensor_type.shape.dim]
        for item in (*found.value_info, *found.input, *found.output)
        if item.type.tensor_type.HasField("shape")
    }


class OnnxGraph(GraphIndex):
    """Editable nodes of a model, with its constants as arrays.

    Values that the bodies of branches and loops read from outside count as read by their node; the bodies do not
    change. Paddle's converter writes constants as nodes and leaves chains of ``Identity``: both are removed here, and
    reshapes of constants are computed.

    Args:
        model: An ``onnx.ModelProto``; `to_model` returns a new one.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
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
        for node in self.nodes:
            self._index(node)
        self._keep_output_names(renamed)

    @staticmethod
    def read_by(operator: Any) -> set[str]:
        """Return the tensors that a node and its subgraphs read."""
        return _read(operator)

    @staticmethod
    def written_by(operator: Any) -> list[str]:
        """Return the tensors that a node computes."""
        return list(operator.output)

    def only_consumer(self, name: str, kind: str) -> Any | None:
        """Return the only reader of ``name`` if it is of ``kind``; ``None`` otherwise."""
        found = self.consumers(name)
        alone = len(found) == 1 and name not in self.outputs and found[0].op_type == kind
        return found[0] if alone else None

    def attribute(self, node: Any, name: str, default: Any = None) -> Any:
        """Return the value of a node's attribute."""
        values = [self._onnx.helper.get_attribute_value(item) for item in node.attribute if item.name == name]
        return values[0] if values else default

    def constant(self, name: str, value: np.ndarray) -> str:
        """Add a constant and return its name, made unique where ``name`` is in use."""
        unique = unique_name(name, self.constants)
        self.constants[unique] = value
        return unique

    def insert_before(self, node: Any, kind: str, inputs: list[str], output: str, **attributes: Any) -> Any:
        """Insert a node before ``node``."""
        new = self._onnx.helper.make_node(kind, inputs, [output], **attributes)
        self.nodes.insert(next(i for i, item in enumerate(self.nodes) if item is node), new)
        self._index(new)
        return new

    def set_inputs(self, node: Any, inputs: list[str]) -> None:
        """Replace the inputs of ``node``."""
        self._forget_reads(node)
        del node.input[:]
        node.input.extend(inputs)
        self._index(node)

    def change_kind(self, node: Any, kind: str, **attributes: Any) -> None:
        """Make ``node`` a node of another kind with the same inputs and outputs."""
        node.op_type = kind
        del node.attribute[:]
        node.attribute.extend(self._onnx.helper.make_attribute(name, value) for name, value in attributes.items())

    def replace_output(self, node: Any, name: str, number: int) -> list[str]:
        """Replace an output of ``node`` by ``number`` new ones and return their names."""
        names = [unique_name(f"{name}.{index}", self._producers) for index in range(number)]
        outputs = [new for output in node.output for new in (names if output == name else [output])]
        self._producers.pop(name)
        del node.output[:]
        node.output.extend(outputs)
        self._index(node)
        return names

    def redirect(self, old: str, new: str) -> None:
        """Replace the tensor ``old`` by ``new`` in all nodes that read it."""
        for node in self.consumers(old):
            for body in _bodies(node):
                rename_tensors(body, {old: new})
            self._consumers[old].pop(id(node), None)
            self.set_inputs(node, [new if name == old else name for name in node.input])

    def remove(self, node: Any) -> None:
        """Remove a node whose outputs nothing reads."""
        self.nodes = [item for item in self.nodes if item is not node]
        self._forget_reads(node)
        for name in node.output:
            self._producers.pop(name)

    def remove_unread(self) -> None:
        """Remove the nodes that no output depends on."""
        kept, _ = self._needed()
        read = {id(node) for node in kept}
        for node in [node for node in self.nodes if id(node) not in read]:
            self._forget_reads(node)
            for name in node.output:
                self._producers.pop(name, None)
        self.nodes = kept

    def absorb(self, node: Any, follower: Any) -> None:
        """Remove ``follower``, the only reader of ``node``, which takes over its output."""
        output = follower.output[0]
        self.remove(follower)
        self._producers.pop(node.output[0])
        node.output[0] = output
        self._index(node)

    def to_model(self, *, short_names: bool = True) -> Any:
        """Return a compact model: no unread nodes, equal constants shared, short names.

        Weights (constants of two and more dimensions) keep their names.

        Args:
            short_names: Whether to rename other tensors and leave out the names of nodes; else nothing is renamed or
                shared.
        """
        kept, needed = self._needed()
        model = self._onnx.ModelProto()
        model.CopyFrom(self._model)
        del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
        model.graph.node.extend(kept)
        if not short_names:
            arrays = {name: np.asarray(self.constants[name]) for name in self.constants if name in needed}
            stored = [
                self._onnx.numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
                for name, value in arrays.items()
            ]
            model.graph.initializer.extend(stored)
            return model
        names = {name: name for name in (*self.inputs, *self.outputs, "")}
        inside = {name for node in kept for body in _bodies(node) for name in _all_names(body)}
        unused = _unused_names({*names, *inside, *(name for name in self.constants if name in needed)})
        known: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        for name in (name for name in self.constants if name in needed):
            value = self.constants[name]
            short = name if value.ndim > 1 else next(unused)
            names[name] = known.setdefault((str(value.dtype), value.shape, value.tobytes()), short)
            if names[name] == short:
                array = np.ascontiguousarray(value).reshape(value.shape)
                model.graph.initializer.append(self._onnx.numpy_helper.from_array(array, short))
        for node in model.graph.node:
            node.name = ""
            for name in (*_read(node), *node.output):
                if name not in names and name not in inside:
                    names[name] = next(unused)
            for tensors in (node.input, node.output):
                tensors[:] = [names.get(name, name) for name in tensors]
            for body in _bodies(node):
                rename_tensors(body, names)
        return model

    def _needed(self) -> tuple[list[Any], set[str]]:
        """Return the nodes that an output depends on, and the tensors they need."""
        needed, kept = set(self.outputs), []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(_read(node))
        return kept[::-1], needed

    def _take(self, node: Any, renamed: dict[str, str], to_array: Any) -> None:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        for body in _bodies(node):
            rename_tensors(body, renamed)
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
            if node is None or source in self.outputs:  # an input, a constant, or a second name of an output
                self.nodes.append(self._onnx.helper.make_node("Identity", [source], [output]))
                self._index(self.nodes[-1])
                continue
            node.output[list(node.output).index(source)] = output
            self._index(node)
            self.redirect(source, output)


def rename_tensors(graph: Any, names: Mapping[str, str]) -> None:
    """Rename tensors of ``graph`` (``onnx.GraphProto``) in place, subgraphs included.

    Args:
        graph: Graph of a model, or a body.
        names: New names by old ones; other tensors keep theirs.
    """
    if not names:
        return
    for item in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        item.name = names.get(item.name, item.name)
    for node in graph.node:
        for tensors in (node.input, node.output):
            tensors[:] = [names.get(name, name) for name in tensors]
        for body in _bodies(node):
            rename_tensors(body, names)


def _bodies(node: Any) -> Iterator[Any]:
    """Yield the subgraphs of a branch or loop."""
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            if body.node or body.output:
                yield body


def _read(node: Any) -> set[str]:
    """Return the tensors that ``node`` and its subgraphs read."""
    names = set(node.input)
    for body in _bodies(node):
        made = {name for inner in body.node for name in inner.output}
        made |= {item.name for item in (*body.input, *body.initializer)}
        inside = {name for inner in body.node for name in _read(inner)} | {item.name for item in body.output}
        names |= inside - made
    return names


def _all_names(body: Any) -> set[str]:
    """Return the tensors that ``body`` computes."""
    names = {name for node in body.node for name in node.output}
    names |= {item.name for item in (*body.input, *body.initializer)}
    return names.union(*(_all_names(inner) for node in body.node for inner in _bodies(node)))


def _unused_names(taken: set[str]) -> Iterator[str]:
    """Yield ``t0``, ``t1``, ... without those in ``taken``."""
    return (name for name in (f"t{number}" for number in itertools.count()) if name not in taken)
