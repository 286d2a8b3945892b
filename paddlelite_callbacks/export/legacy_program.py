"""Convert Paddle 3 programs (``model.json``) to Paddle 2's format (``.pdmodel``).

Phones (Paddle Lite), older Paddles and many tools read only ``.pdmodel`` + ``.pdiparams``, which Paddle 3.3 no longer
writes. Nothing is executed: the program is read as JSON and written as protobuf, operator by operator, see
``pir_operators``.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from paddlelite_callbacks.errors import near_names
from paddlelite_callbacks.export.pir_operators import OPERATORS, Constant, InPlace, Int32, Operator
from paddlelite_callbacks.export.pir_program import PirOperation, PirProgram, PirType, PirValue, read_pir_program
from paddlelite_callbacks.export.program_desc import DTYPES, ProgramWriter, old_operator
from paddlelite_callbacks.utils.atomic_files import staged_file, staged_files
from paddlelite_callbacks.utils.parameters_file import check_not_truncated, stored_tensors

__all__ = ["UnknownOperatorError", "legacy_program", "write_legacy_program"]

_NOTES = {"stop_gradient", "struct_name", "op_callstack", "place", "persistable"}  # without effect on the outputs
_INTERPOLATIONS = {f"{kind}_interp" for kind in ("nearest", "bilinear", "bicubic", "linear", "trilinear")}
_INTEGERS = ("int16", "int32", "int64", "int8", "uint8")
_VALUES = {
    "float32": "fp32_values",
    "float64": "fp64_values",
    "int32": "int32_values",
    "int64": "int64_values",
    "bool": "bool_values",
}
_REDUCTIONS = re.compile(r"reduce_|frobenius_norm|logsumexp")


class UnknownOperatorError(ValueError):
    """An operator has no equivalent in Paddle 2; the message names it and its layer."""


def write_legacy_program(program: str | Path, target: str | Path) -> tuple[Path, Path]:
    """Write a Paddle 3 program and its parameters as ``.pdmodel`` + ``.pdiparams``.

    Both files are written atomically. Where ``target`` is the program's own prefix, its parameters are shared.

    Args:
        program: Path of ``model.json``, with ``model.pdiparams`` beside it.
        target: Path prefix of the two files, such as ``"phone/model"``.

    Returns:
        Paths of the program and its parameters.

    Raises:
        UnknownOperatorError: An operator has no equivalent in Paddle 2.
        ValueError: A file is damaged, not Paddle's, or the two do not belong together.
        OSError: The disk is full, or the folder is not writable.
    """
    program, target = Path(program), Path(target)
    parameters = program.with_suffix(".pdiparams")
    source = read_pir_program(program)
    _check_parameters(source, parameters)
    content = legacy_program(source)
    files = target.with_name(f"{target.name}.pdmodel"), target.with_name(f"{target.name}.pdiparams")
    if files[1].resolve() == parameters.resolve():
        with staged_file(files[0]) as partial:
            partial.write_bytes(content)
        return files
    with staged_files(target, last=".pdmodel") as stage:
        shutil.copyfile(parameters, stage.with_name(files[1].name))  # no link: the original may be rewritten
        stage.with_name(files[0].name).write_bytes(content)
    return files


def _check_parameters(program: PirProgram, parameters: Path) -> None:
    """Check that the parameters belong to the program."""
    wanted = program.parameters()
    if not parameters.is_file():
        raise ValueError(f"{program.path} has no parameters beside it: {parameters.name} is missing. Copy both files.")
    check_not_truncated(parameters)
    held = stored_tensors(parameters)
    if len(held) != len(wanted):
        raise ValueError(
            f"{parameters} holds {len(held)} tensors, {program.path.name} beside it has {len(wanted)} parameters: they "
            "come from different exports. Export the network again."
        )
    for (name, kind), (number, shape) in zip(wanted.items(), held, strict=True):
        if (DTYPES[kind.dtype], kind.shape) != (number, shape):
            raise ValueError(
                f"{parameters} does not belong to {program.path.name}: the parameter {name!r} is {kind.dtype} "
                f"{list(kind.shape)} there and {list(shape)} here. Export the network again."
            )


def legacy_program(program: PirProgram) -> bytes:
    """Return the content of the ``.pdmodel`` file of ``program``.

    Args:
        program: Program of Paddle 3.

    Raises:
        UnknownOperatorError: An operator has no equivalent in Paddle 2.
    """
    return _Conversion(program).run()


class _Conversion:
    """Convert one program: Paddle 3 numbers its values, Paddle 2 names its variables."""

    def __init__(self, program: PirProgram) -> None:
        self.program, self.writer = program, ProgramWriter()
        self.makers = {value.number: op for op in program.operations for value in op.results if value.number}
        self.names: dict[int, str] = {}  # variables of tensors
        self.lists: dict[int, list[str]] = {}  # variables of lists of tensors
        self.types: dict[str, PirType] = {}
        self.casts: dict[tuple[str, str], str] = {}
        self.counter = 0
        fetched = [op for op in program.operations if op.name == "fetch"]
        fed = {op.attributes["name"] for op in program.operations if op.name in ("data", "parameter")}
        self.fetched = _unlike({op.attributes["col"]: op.attributes["name"] for op in fetched}, {"feed", "fetch", *fed})
        self.outputs = {op.operands[0]: self.fetched[op.attributes["col"]] for op in fetched}
        self.reserved = {*self.fetched.values(), *fed}
        self.special: dict[str, Callable[[PirOperation], None]] = {
            "parameter": self._parameter,
            "data": lambda op: None,
            "full": lambda op: None,  # emitted where it is read
            "full_int_array": lambda op: None,
            "fetch": lambda op: None,
            "combine": self._combine,
            "split": self._split,
            "shape64": self._shape64,
            "arange": self._arange,
            "full_with_tensor": self._full_with_tensor,
            "deformable_conv": self._deformable,
            "set_value_": self._set_value,
            "set_value_with_tensor_": self._set_value,
            "assign_value_": self._assign_value,
            "assign_value": self._assign_value,
            **dict.fromkeys(_INTERPOLATIONS, self._interpolation),
        }

    def run(self) -> bytes:
        operations = self.program.operations
        fed = [op for op in operations if op.name == "data"]
        for column, op in enumerate(fed):
            self._feed(op, column)
        for op in operations:
            if op.regions:
                raise self._unknown(op, "it holds a branch or a loop, which depends on values at run time")
            if op.name == "split" and len(op.operands) == 1:  # of a list; the tensor operator has more operands
                self._split(op)
            elif op.name in self.special and op.name != "split":
                self.special[op.name](op)
            else:
                self._plain(op)
        for op in sorted((op for op in operations if op.name == "fetch"), key=lambda op: op.attributes["col"]):
            self._fetch(op)
        return self.writer.to_bytes()

    # inputs, outputs, parameters

    def _parameter(self, op: PirOperation) -> None:
        (value,) = op.results
        name, (kind,) = op.attributes["name"], value.types
        self.names[value.number], self.types[name] = name, kind
        self.writer.variable(name, kind.dtype, kind.shape, parameter=True)

    def _feed(self, op: PirOperation, column: int) -> None:
        (value,) = op.results
        name, (kind,) = op.attributes["name"], value.types
        self.names[value.number], self.types[name] = name, kind
        self.writer.variable(name, kind.dtype, kind.shape, fed=True)
        self.writer.feed(name, column)

    def _fetch(self, op: PirOperation) -> None:
        name, own = self._tensor(op.operands[0], op), self.fetched[op.attributes["col"]]
        if name != own:  # an input, a parameter, or the same tensor as another output
            name, source = self._declare(self.types[name], own), name
            self.writer.operator("assign", {"X": [source]}, {"Out": [name]})
        self.writer.fetch(name, op.attributes["col"])

    # names and constants

    def _declare(self, kind: PirType, name: str | None = None) -> str:
        while name is None:
            self.counter += 1
            name = f"tmp_{self.counter}" if f"tmp_{self.counter}" not in self.reserved else None
        self.types[name] = kind
        self.writer.variable(name, kind.dtype, kind.shape)
        return name

    def _result(self, value: PirValue) -> list[str]:
        """Declare the results of an operator; return their names."""
        if value.is_list:
            self.lists[value.number] = [self._declare(kind) for kind in value.types]
            return self.lists[value.number]
        if not value.types:
            return []
        self.names[value.number] = self._declare(value.types[0], self.outputs.get(value.number))
        return [self.names[value.number]]

    def _tensor(self, number: int, op: PirOperation) -> str:
        """Return the variable of a value; emits a constant that is read as a tensor."""
        if number not in self.names:
            maker = self.makers[number]
            (value,) = maker.results
            kind = value.types[0]
            if maker.name == "full":
                self.names[number] = self._filled(kind, maker.attributes["value"])
            elif maker.name == "full_int_array":
                self.names[number] = self._assigned(kind, maker.attributes["value"])
            else:
                raise self._unknown(op, f"one of its operands is made by {maker.name}")
        return self.names[number]

    def _tensors(self, number: int, op: PirOperation) -> list[str]:
        return self.lists[number] if number in self.lists else [self._tensor(number, op)]

    def _constant(self, number: int) -> Any:
        """Return the value of a constant, ``None`` where an operator computes it."""
        maker = self.makers[number]
        return maker.attributes["value"] if maker.name in ("full", "full_int_array") else None

    def _filled(self, kind: PirType, value: float) -> str:
        name = self._declare(kind)
        text = str(int(value)) if kind.dtype in _INTEGERS else repr(float(value))
        attributes = {"shape": list(kind.shape), "value": float(value), "str_value": text, "dtype": DTYPES[kind.dtype]}
        self.writer.operator("fill_constant", {}, {"Out": [name]}, attributes)
        return name

    def _assigned(self, kind: PirType, values: Sequence[Any]) -> str:
        name = self._declare(kind)
        attributes = {"shape": list(kind.shape), "dtype": DTYPES[kind.dtype], **_values(kind.dtype, values)}
        self.writer.operator("assign_value", {}, {"Out": [name]}, attributes)
        return name

    def _as(self, name: str, dtype: str) -> str:
        """Return a variable with the values of ``name`` as ``dtype``."""
        kind = self.types[name]
        if kind.dtype == dtype:
            return name
        if (name, dtype) not in self.casts:
            self.casts[name, dtype] = cast = self._declare(PirType(dtype, kind.shape))
            attributes = {"in_dtype": DTYPES[kind.dtype], "out_dtype": DTYPES[dtype]}
            self.writer.operator("cast", {"X": [name]}, {"Out": [cast]}, attributes)
        return self.casts[name, dtype]

    # operators that need more than a mapping of names

    def _combine(self, op: PirOperation) -> None:
        self.lists[op.results[0].number] = [self._tensor(number, op) for number in op.operands]

    def _split(self, op: PirOperation) -> None:
        for value, name in zip(op.results, self.lists[op.operands[0]], strict=True):
            if value.number:
                self.names[value.number] = name

    def _shape64(self, op: PirOperation) -> None:
        """Cast: Paddle 2 returns shapes as int32."""
        (value,) = op.results
        narrow = self._declare(PirType("int32", value.types[0].shape))
        self.writer.operator("shape", {"Input": [self._tensor(op.operands[0], op)]}, {"Out": [narrow]})
        (wide,) = self._result(value)
        self.casts[wide, "int32"] = narrow
        attributes = {"in_dtype": DTYPES["int32"], "out_dtype": DTYPES["int64"]}
        self.writer.operator("cast", {"X": [narrow]}, {"Out": [wide]}, attributes)

    def _arange(self, op: PirOperation) -> None:
        """Cast the limits: Paddle 3 has doubles, Paddle 2 the type of the result."""
        dtype = op.results[0].types[0].dtype
        limits = {}
        for slot, number in zip(("Start", "End", "Step"), op.operands, strict=True):
            value = self._constant(number)
            constant = value is not None
            limits[slot] = [
                self._filled(PirType(dtype, (1,)), value) if constant else self._as(self._tensor(number, op), dtype)
            ]
        self.writer.operator("range", limits, {"Out": self._result(op.results[0])})

    def _full_with_tensor(self, op: PirOperation) -> None:
        value, shape = op.operands
        constant = self._constant(value)
        kind = op.results[0].types[0]
        inputs = {"ShapeTensor": [self._as(self._tensor(shape, op), "int32")]}
        attributes: dict[str, Any] = {"dtype": DTYPES[kind.dtype]}
        if constant is None:
            inputs["ValueTensor"] = [self._tensor(value, op)]
        else:
            text = str(int(constant)) if kind.dtype in _INTEGERS else repr(float(constant))
            attributes |= {"value": float(constant), "str_value": text}
        self.writer.operator("fill_constant", inputs, {"Out": self._result(op.results[0])}, attributes)

    def _assign_value(self, op: PirOperation) -> None:
        (value,) = op.results
        self.names[value.number] = self._assigned(value.types[0], op.attributes["values"])

    def _set_value(self, op: PirOperation) -> None:
        """Copy first: Paddle 3 writes into the tensor, Paddle 2 into a copy."""
        dtype = self.types[self._tensor(op.operands[0], op)].dtype
        by_tensor = op.name == "set_value_with_tensor_"
        values = {} if by_tensor else _values(dtype, op.attributes["values"])
        limits = (Constant("starts"), Constant("ends"), Constant("steps"))
        inputs = ("Input", "ValueTensor", *limits) if by_tensor else ("Input", *limits)
        rule = Operator("set_value", inputs, fixed={"dtype": DTYPES[dtype], **values}, left_out={"values": None})
        self._plain(op, rule)

    def _deformable(self, op: PirOperation) -> None:
        """Use the operator without a mask (version 1), which has another name."""
        rule = OPERATORS["deformable_conv"]
        self._plain(op, rule if op.operands[3] else replace(rule, name="deformable_conv_v1"))

    def _interpolation(self, op: PirOperation) -> None:
        """Name the operator by ``interp_method``, see `run_beside_onednn`."""
        name = f"{op.attributes['interp_method']}_interp_v2"
        inputs = ("X", Int32("OutSize"), Int32("SizeTensor"), "Scale")
        self._plain(op, Operator(name, inputs, renamed={"data_format": "data_layout"}))

    # all others

    def _plain(self, op: PirOperation, rule: Operator | None = None) -> None:
        rule = rule or OPERATORS.get(op.name)
        if rule is None:
            raise self._unknown(op, None)
        if len(op.operands) > len(rule.inputs) or len(op.results) > len(rule.outputs):
            raise self._unknown(op, f"it has {len(op.operands)} operands, {len(rule.inputs)} are known")
        attributes = self._attributes(op, rule)
        inputs: dict[str, list[str]] = {}
        for slot, number in zip(rule.inputs, op.operands, strict=False):
            if not number or slot is None:
                continue
            if isinstance(slot, Constant):
                value = self._constant(number)
                if value is not None:
                    attributes[slot.attribute] = value
                elif slot.slot is None:
                    raise self._unknown(op, f"its {slot.attribute} depends on values at run time")
                else:
                    inputs[slot.slot] = self._tensors(number, op)
            elif isinstance(slot, Int32):
                inputs[slot.slot] = [self._as(name, "int32") for name in self._tensors(number, op)]
            else:
                inputs[slot] = self._tensors(number, op)
        self._complete(op, rule, inputs, attributes)
        outputs: dict[str, list[str]] = {}
        for place, value in zip(rule.outputs, op.results, strict=False):
            if place is None:
                continue
            if isinstance(place, InPlace):
                outputs[place.slot] = inputs[place.input]
                self.names[value.number] = inputs[place.input][0]
            elif names := self._result(value):
                outputs[place] = names
        for missing in old_operator(rule.name).by_products:
            if missing not in outputs:
                outputs[missing] = [self._by_product(missing, inputs)]
        self.writer.operator(rule.name, inputs, outputs, attributes)

    def _attributes(self, op: PirOperation, rule: Operator) -> dict[str, Any]:
        known = old_operator(rule.name).attributes
        found = dict(rule.fixed)
        for key, value in op.attributes.items():
            if key in rule.left_out:
                if rule.left_out[key] not in (None, value):
                    raise self._unknown(op, f"with {key}={value}")
                continue
            name = rule.renamed.get(key, key)
            if name in known:
                found[name] = DTYPES.get(value, -1) if name.endswith("dtype") else value
            elif key not in _NOTES:
                raise self._unknown(op, f"its attribute {key} has no counterpart")
        return found

    def _complete(
        self, op: PirOperation, rule: Operator, inputs: dict[str, list[str]], attributes: dict[str, Any]
    ) -> None:
        """Add what Paddle 2 also records: input types, and reductions over all axes."""
        if rule.name == "cast":
            attributes["in_dtype"] = DTYPES[self.types[inputs["X"][0]].dtype]
        if rule.name == "reduce_sum" and attributes.get("out_dtype", -1) >= 0:
            attributes["in_dtype"] = DTYPES[self.types[inputs["X"][0]].dtype]
        if _REDUCTIONS.match(rule.name) and rule.name != "frobenius_norm":
            axes = attributes.get("axis" if rule.name == "logsumexp" else "dim", [])
            axes = axes if isinstance(axes, list) else [axes]
            attributes["reduce_all"] = not axes or len(axes) == len(self.types[inputs["X"][0]].shape)
        if rule.name == "strided_slice":
            attributes["infer_flags"] = [1] * len(attributes["axes"])

    def _by_product(self, slot: str, inputs: dict[str, list[str]]) -> str:
        source = self.types[next(iter(inputs.values()))[0]]
        return self._declare(PirType(source.dtype, (0, *source.shape)) if slot == "XShape" else PirType("uint8", ()))

    # messages

    def _unknown(self, op: PirOperation, why: str | None) -> UnknownOperatorError:
        said = f"{op.name} ({why})" if why else op.name
        near = near_names(op.name, [*OPERATORS, *self.special]) if why is None else []
        hint = f" Convertible operators with similar names: {near}." if near else ""
        return UnknownOperatorError(
            f"The operator {said}, {self._place(op)}, has no equivalent in a .pdmodel file.{hint} Write this part of "
            "the network with other operations, or leave the .pdmodel file out."
        )

    def _place(self, op: PirOperation) -> str:
        """Name the layer of an operation: by its scope, else by the nearest parameter."""
        scope = op.attributes.get("struct_name")
        layer = f"of the layer {scope.strip('/')}, " if isinstance(scope, str) and scope.strip("/") else ""
        seen, waiting = set(), list(op.operands)
        while waiting:
            number = waiting.pop(0)
            maker = self.makers.get(number)
            if maker is None or number in seen:
                continue
            seen.add(number)
            if maker.name == "parameter":
                return f"{layer}after the layer of the parameter {maker.attributes['name']!r}"
            waiting += maker.operands
        return f"{layer}after the network's input"


def _values(dtype: str, values: Sequence[Any]) -> dict[str, Any]:
    """Return the attributes that hold constants of type ``dtype``."""
    make = float if dtype.startswith("float") else bool if dtype == "bool" else int
    made = [make(value) for value in values]
    older = {_VALUES[dtype]: made} if dtype in _VALUES else {}  # read by Paddle before 3 and by Paddle Lite
    return {"values": made, **older}


def _unlike(names: dict[int, str], taken: set[str]) -> dict[int, str]:
    """Append underscores to names in use: an output may have the name of an input."""
    found: dict[int, str] = {}
    for key, name in names.items():
        while name in taken:
            name = f"{name}_"
        found[key] = name
        taken = {*taken, name}
    return found
