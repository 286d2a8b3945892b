"""Write and read Paddle 2 programs with Paddle's own protobuf classes.

A ``.pdmodel`` is a serialised ProgramDesc.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from paddlelite_callbacks.utils.file_kind import mistaken_kind
from paddlelite_callbacks.utils.private_names import require_private

__all__ = ["DTYPES", "OldOperator", "ProgramWriter", "attribute_of", "old_operator", "read_program_desc"]

DTYPES = {
    "bool": 0,
    "int16": 1,
    "int32": 2,
    "int64": 3,
    "float16": 4,
    "float32": 5,
    "float64": 6,
    "uint8": 20,
    "int8": 21,
    "bfloat16": 22,
}
"""Numbers of the data types in ``VarType``, by name."""

_TENSOR, _FEED, _FETCH = 7, 9, 10  # of VarType
_EXTRA = {"op_role", "op_role_var", "op_namescope", "op_callstack", "op_device", "with_quant_attr"}  # for training
_TUNING = {"use_quantizer", "mkldnn_data_type"}  # set by oneDNN's own passes
_FIELDS = {
    "INT": ("i", int),
    "LONG": ("l", int),
    "FLOAT": ("f", float),
    "STRING": ("s", str),
    "BOOLEAN": ("b", bool),
    "INTS": ("ints", int),
    "LONGS": ("longs", int),
    "FLOATS": ("floats", float),
    "FLOAT64S": ("float64s", float),
    "STRINGS": ("strings", str),
    "BOOLEANS": ("bools", bool),
}
_OLDER = {  # attributes that the installed Paddle no longer lists and older readers need
    "fp32_values": "FLOATS",
    "fp64_values": "FLOAT64S",
    "int32_values": "INTS",
    "int64_values": "LONGS",
    "bool_values": "INTS",
    "threshold": "FLOAT",
    "beta": "FLOAT",
}
_LISTS = ("INTS", "LONGS", "FLOATS", "FLOAT64S", "STRINGS", "BOOLEANS")


_NEEDED_FOR = "A program of Paddle 2 (.pdmodel)"


def _framework_pb2() -> Any:
    """Return Paddle's protobuf classes of a ``.pdmodel``."""
    return require_private("paddle.base.proto.framework_pb2", "ProgramDesc", "AttrType", needed_for=_NEEDED_FOR)


class OldOperator:
    """Signature of a Paddle 2 operator, as the installed Paddle describes it.

    Args:
        name: Operator name, such as ``"conv2d"``.

    Attributes:
        inputs: Names of the input slots.
        outputs: Names of the output slots.
        attributes: Type by name, such as ``"INTS"``; without those for training.
        defaults: Values of the attributes that have a default.
        by_products: Output slots that every writer fills and no reader needs.
    """

    def __init__(self, name: str) -> None:
        core = require_private("paddle.base.core", "get_op_attrs_default_value", needed_for=_NEEDED_FOR)
        framework = require_private("paddle.base.framework", "OpProtoHolder.instance", needed_for=_NEEDED_FOR)
        framework_pb2 = _framework_pb2()

        proto = framework.OpProtoHolder.instance().get_op_proto(name)
        defaults = core.get_op_attrs_default_value(name.encode())
        self.name = name
        self.inputs = tuple(item.name for item in proto.inputs)
        self.outputs = tuple(item.name for item in proto.outputs)
        self.attributes = {
            item.name: framework_pb2.AttrType.Name(item.type)
            for item in proto.attrs
            if item.name not in _EXTRA | _TUNING
        }
        self.defaults = {key: value for key, value in defaults.items() if key in self.attributes}
        unneeded = [item for item in proto.outputs if item.intermediate or item.name == "XShape"]  # Lite reads its type
        self.by_products = tuple(item.name for item in unneeded if not item.duplicable)


@cache
def old_operator(name: str) -> OldOperator:
    """Return the signature of a Paddle 2 operator.

    Args:
        name: Operator name, such as ``"reshape2"``.

    Raises:
        ValueError: Unknown operator.
    """
    return OldOperator(name)


class ProgramWriter:
    """Build a program of one block from variables and operators."""

    def __init__(self) -> None:
        framework_pb2 = _framework_pb2()
        self._pb = framework_pb2
        self._desc = framework_pb2.ProgramDesc()
        self._block = self._desc.blocks.add()
        self._block.idx, self._block.parent_idx = 0, -1
        for name, kind in (("feed", _FEED), ("fetch", _FETCH)):
            variable = self._block.vars.add()
            variable.name, variable.persistable = name, True
            variable.type.type = kind

    def variable(
        self, name: str, dtype: str, shape: Sequence[int], *, parameter: bool = False, fed: bool = False
    ) -> None:
        """Declare a tensor.

        Args:
            name: Unique name.
            dtype: One of `DTYPES`.
            shape: Sizes; -1 for dynamic ones.
            parameter: Whether its values are in the parameter file.
            fed: Whether it is an input of the program.
        """
        variable = self._block.vars.add()
        variable.name, variable.persistable = name, parameter
        variable.type.type = _TENSOR
        tensor = variable.type.dense_tensor.tensor
        tensor.data_type = DTYPES[dtype]
        tensor.dims.extend(shape)
        if parameter:
            variable.stop_gradient = True
        if fed:
            variable.need_check_feed = True

    def operator(
        self,
        name: str,
        inputs: Mapping[str, Sequence[str]],
        outputs: Mapping[str, Sequence[str]],
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """Add an operator.

        Args:
            name: Operator name of Paddle 2.
            inputs: Variable names by input slot.
            outputs: Variable names by output slot.
            attributes: Values by name; Paddle's defaults for the rest.

        Raises:
            ValueError: An attribute without a default is missing, or a value has the wrong type.
        """
        known = old_operator(name)
        operator = self._block.ops.add()
        operator.type = name
        for slots, given in ((operator.inputs, inputs), (operator.outputs, outputs)):
            for slot, names in given.items():
                entry = slots.add()
                entry.parameter = slot
                entry.arguments.extend(names)
        values = {**known.defaults, **(attributes or {})}
        if missing := [key for key in known.attributes if key not in values]:
            raise ValueError(f"the operator {name} needs the attributes {missing}")
        for key in sorted(values):
            self._attribute(operator, key, known.attributes.get(key), values[key])

    def _attribute(self, operator: Any, name: str, kind: str | None, value: Any) -> None:
        self._fill(operator.attrs.add(), name, kind or _OLDER[name], value)

    def _fill(self, attribute: Any, name: str, kind: str, value: Any) -> None:
        attribute.name, attribute.type = name, self._pb.AttrType.Value(kind)
        if kind == "SCALARS":
            for item in value:
                self._scalar(attribute.scalars.add(), item)
            return
        field, make = _FIELDS[kind]
        if kind in _LISTS:
            items = value if isinstance(value, (list, tuple)) else [value]
            getattr(attribute, field).extend(make(item) for item in items)
        else:
            setattr(attribute, field, make(value))

    def _scalar(self, scalar: Any, value: Any) -> None:
        kinds = self._pb.Scalar.Type
        if isinstance(value, bool):
            scalar.type, scalar.b = kinds.Value("BOOLEAN"), value
        elif isinstance(value, int):
            scalar.type, scalar.i = kinds.Value("LONG"), value
        else:
            scalar.type, scalar.r = kinds.Value("FLOAT64"), float(value)

    def feed(self, name: str, column: int) -> None:
        """Make the variable ``name`` input number ``column`` of the program.

        Args:
            name: Variable declared with ``fed``.
            column: Index, from 0.
        """
        self.operator("feed", {"X": ["feed"]}, {"Out": [name]}, {"col": column})

    def fetch(self, name: str, column: int) -> None:
        """Make the variable ``name`` output number ``column`` of the program.

        Args:
            name: Name of a variable.
            column: Index, from 0.
        """
        self.operator("fetch", {"X": [name]}, {"Out": ["fetch"]}, {"col": column})

    def last_operator(self) -> Any:
        """Return the operator that was added last (``OpDesc``)."""
        return self._block.ops[-1]

    def last_variable(self) -> Any:
        """Return the variable that was declared last (``VarDesc``)."""
        return self._block.vars[-1]

    def attribute(self, name: str, number: int, value: Any) -> Any:
        """Return an attribute (``OpDesc.Attr``) that belongs to no operator yet.

        Args:
            name: Name of the attribute.
            number: Number of its type in ``AttrType``.
            value: Value of that type.
        """
        attribute = self._pb.OpDesc.Attr()
        self._fill(attribute, name, self._pb.AttrType.Name(number), value)
        return attribute

    def copy_operator(self, operator: Any) -> None:
        """Add a copy of an operator of another program.

        Args:
            operator: ``OpDesc`` message.
        """
        self._block.ops.add().CopyFrom(operator)

    def copy_variable(self, variable: Any) -> None:
        """Declare a variable as another program does.

        Args:
            variable: ``VarDesc`` message.
        """
        self._block.vars.add().CopyFrom(variable)

    def to_bytes(self) -> bytes:
        """Return the content of a ``.pdmodel`` file."""
        self._desc.version.version = 0
        return self._desc.SerializeToString(deterministic=True)


def attribute_of(operator: Any, name: str, default: Any = None) -> Any:
    """Return the value of an operator's attribute.

    Args:
        operator: ``OpDesc`` message.
        name: Name of the attribute.
        default: Returned if the attribute is missing or is not a number, string or list.
    """
    kinds = _framework_pb2().AttrType
    for attribute in operator.attrs:
        if attribute.name == name:
            kind = kinds.Name(attribute.type)
            field, make = _FIELDS.get(kind, (None, None))
            if field is None or make is None:
                return default
            value = getattr(attribute, field)
            return [make(item) for item in value] if kind in _LISTS else make(value)
    return default


def read_program_desc(path: str | Path) -> Any:
    """Read a ``.pdmodel`` file.

    Args:
        path: Path of the file.

    Returns:
        Paddle's protobuf object ``ProgramDesc`` with at least one operator.

    Raises:
        ValueError: Another kind of file, or a truncated one.
    """
    framework_pb2 = _framework_pb2()
    path = Path(path)
    if (what := mistaken_kind(path)) is not None:
        raise ValueError(f"{path} cannot be read: it is not a program of Paddle but {what}. Export it again.")
    try:
        program = framework_pb2.ProgramDesc.FromString(path.read_bytes())
    except Exception as error:
        raise ValueError(
            f"{path} is truncated, or not a program of Paddle ({type(error).__name__}): copy it again."
        ) from error
    if not program.blocks or not program.blocks[0].ops:
        raise ValueError(f"{path} holds no operation: it is truncated, or not a program of Paddle. Copy it again.")
    return program
