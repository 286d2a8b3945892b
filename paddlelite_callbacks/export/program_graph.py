"""Rewrite Paddle 2 programs and their parameters, operator by operator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paddlelite_callbacks.export.graph_index import GraphIndex, unique_name
from paddlelite_callbacks.export.program_desc import DTYPES, ProgramWriter, attribute_of, read_program_desc
from paddlelite_callbacks.utils.atomic_files import staged_files
from paddlelite_callbacks.utils.parameters_file import check_not_truncated, read_tensors, write_tensors

__all__ = ["ProgramGraph"]

_PLACES = ("feed", "fetch")
_NAMES = {number: name for name, number in DTYPES.items()}


class ProgramGraph(GraphIndex):
    """Operators of a ``.pdmodel`` in their order, and its parameters as arrays.

    Args:
        program: Path of the ``.pdmodel`` file.
        parameters: Path of its ``.pdiparams`` file.

    Attributes:
        variables: ``VarDesc`` messages by name.
        operators: ``OpDesc`` messages; change them only with the methods of this class.
        parameters: Arrays by name.

    Raises:
        ValueError: A file is damaged, the two do not belong together, or the program holds a branch or a loop.
    """

    def __init__(self, program: Path, parameters: Path) -> None:
        super().__init__()
        description = read_program_desc(program)
        if len(description.blocks) > 1:
            raise ValueError(f"{program} holds a branch or a loop, which cannot be rewritten.")
        check_not_truncated(parameters)
        self.variables: dict[str, Any] = {one.name: one for one in description.blocks[0].vars}
        stored = [name for name, one in self.variables.items() if one.persistable and name not in _PLACES]
        self.parameters = read_tensors(parameters, stored)
        self.operators: list[Any] = list(description.blocks[0].ops)
        self._description = description  # keeps the messages alive
        for operator in self.operators:
            self._index(operator)

    # reading

    def inputs(self, operator: Any, slot: str) -> list[str]:
        """Return the variables that ``operator`` reads in ``slot``."""
        return next((list(one.arguments) for one in operator.inputs if one.parameter == slot), [])

    def outputs(self, operator: Any, slot: str) -> list[str]:
        """Return the variables that ``operator`` writes in ``slot``."""
        return next((list(one.arguments) for one in operator.outputs if one.parameter == slot), [])

    def attribute(self, operator: Any, name: str, default: Any = None) -> Any:
        """Return the value of an operator's attribute."""
        return attribute_of(operator, name, default)

    @staticmethod
    def read_by(operator: Any) -> list[str]:
        """Return the variables that ``operator`` reads."""
        return _arguments(operator.inputs)

    @staticmethod
    def written_by(operator: Any) -> list[str]:
        """Return the variables that ``operator`` writes."""
        return _arguments(operator.outputs)

    def only_consumer(self, name: str, kind: str) -> Any | None:
        """Return the consumer of ``name`` if it is the only one and of ``kind``."""
        found = self.consumers(name)
        return found[0] if len(found) == 1 and found[0].type == kind else None

    def shape(self, name: str) -> list[int]:
        """Return the declared shape of a variable; dynamic sizes are -1."""
        return list(self.variables[name].type.dense_tensor.tensor.dims)

    def dtype(self, name: str) -> str:
        """Return the declared type of a variable."""
        return _NAMES[self.variables[name].type.dense_tensor.tensor.data_type]

    # changing

    def add_variable(self, name: str, dtype: str, shape: Sequence[int], *, parameter: bool = False) -> str:
        """Declare a variable; return its name, made unique where ``name`` is taken."""
        unique = unique_name(name, self.variables)
        writer = ProgramWriter()
        writer.variable(unique, dtype, shape, parameter=parameter)
        self.variables[unique] = writer.last_variable()
        return unique

    def add_parameter(self, name: str, value: np.ndarray) -> str:
        """Add a parameter; return its name, made unique where ``name`` is taken."""
        name = self.add_variable(name, str(value.dtype), value.shape, parameter=True)
        self.parameters[name] = np.ascontiguousarray(value).reshape(value.shape)
        return name

    def insert_before(
        self,
        operator: Any,
        kind: str,
        inputs: Mapping[str, Sequence[str]],
        outputs: Mapping[str, Sequence[str]],
        attributes: Mapping[str, Any] | None = None,
    ) -> Any:
        """Insert an operator before ``operator`` and return it."""
        writer = ProgramWriter()
        writer.operator(kind, inputs, outputs, attributes)
        new = writer.last_operator()
        self.operators.insert(next(i for i, one in enumerate(self.operators) if one is operator), new)
        self._index(new)
        return new

    def replace(
        self,
        operator: Any,
        kind: str,
        inputs: Mapping[str, Sequence[str]],
        outputs: Mapping[str, Sequence[str]],
        attributes: Mapping[str, Any] | None = None,
    ) -> Any:
        """Put a new operator in the place of ``operator`` and return it."""
        new = self.insert_before(operator, kind, inputs, outputs, attributes)
        self._forget_reads(operator)
        self.operators = [one for one in self.operators if one is not operator]
        return new

    def set_input(self, operator: Any, slot: str, names: Sequence[str]) -> None:
        """Set the variables that ``operator`` reads in ``slot``."""
        self._forget_reads(operator)
        for one in operator.inputs:
            if one.parameter == slot:
                del one.arguments[:]
                one.arguments.extend(names)
        self._index(operator)

    def set_attribute(self, operator: Any, name: str, value: Any) -> None:
        """Set an existing attribute of ``operator`` to a value of the same type."""
        writer = ProgramWriter()
        kind = next(one for one in operator.attrs if one.name == name).type
        for number, attribute in enumerate(operator.attrs):
            if attribute.name == name:
                operator.attrs[number].CopyFrom(writer.attribute(name, kind, value))

    def redirect(self, old: str, new: str) -> None:
        """Replace the variable ``old`` by ``new`` in all operators that read it."""
        for operator in self.consumers(old):
            for one in list(operator.inputs):
                if old in one.arguments:
                    self.set_input(operator, one.parameter, [new if name == old else name for name in one.arguments])

    def drop_attribute(self, operator: Any, name: str) -> None:
        """Remove an attribute of ``operator``: readers take its default."""
        kept = [one for one in operator.attrs if one.name != name]
        del operator.attrs[:]
        operator.attrs.extend(kept)

    def rename(self, names: Mapping[str, str]) -> None:
        """Rename variables and parameters.

        Args:
            names: New names by present ones; a new one may not be taken by a variable that keeps its name.
        """
        self._producers.clear()
        self._consumers.clear()
        for operator in self.operators:
            for slot in (*operator.inputs, *operator.outputs):
                arguments = [names.get(name, name) for name in slot.arguments]
                del slot.arguments[:]
                slot.arguments.extend(arguments)
            self._index(operator)
        for old, new in names.items():
            self.variables[old].name = new
        self.variables = {one.name: one for one in self.variables.values()}
        self.parameters = {names.get(name, name): value for name, value in self.parameters.items()}

    def remove(self, operators: Iterable[Any]) -> None:
        """Remove operators; their outputs have no producer afterwards."""
        gone = {id(operator) for operator in operators}
        for operator in self.operators:
            if id(operator) in gone:
                self._forget_reads(operator)
                for name in self.written_by(operator):
                    self._producers.pop(name, None)
        self.operators = [operator for operator in self.operators if id(operator) not in gone]

    # writing

    def write(self, prefix: Path) -> tuple[Path, Path]:
        """Prune, then write ``<prefix>.pdmodel`` and ``<prefix>.pdiparams`` atomically.

        Args:
            prefix: Path prefix of the two files.

        Returns:
            Paths of the program and its parameters.
        """
        self._drop_unneeded()
        used = {name for one in self.operators for name in (*self.read_by(one), *self.written_by(one))}
        writer = ProgramWriter()
        for name, variable in self.variables.items():
            if name in used and name not in _PLACES:
                writer.copy_variable(variable)
        for operator in self.operators:
            writer.copy_operator(operator)
        files = prefix.with_name(f"{prefix.name}.pdmodel"), prefix.with_name(f"{prefix.name}.pdiparams")
        with staged_files(prefix, last=".pdmodel") as stage:
            held = {name: value for name, value in self.parameters.items() if name in used}
            write_tensors(stage.with_name(files[1].name), held)
            stage.with_name(files[0].name).write_bytes(writer.to_bytes())
        return files

    def _drop_unneeded(self) -> None:
        needed: set[str] = set()
        kept = []
        for operator in reversed(self.operators):
            if operator.type in _PLACES or needed.intersection(self.written_by(operator)):
                kept.append(operator)
                needed.update(self.read_by(operator))
        kept_ids = {id(operator) for operator in kept}
        self.remove([operator for operator in self.operators if id(operator) not in kept_ids])


def _arguments(slots: Any) -> list[str]:
    return [name for slot in slots for name in slot.arguments]
