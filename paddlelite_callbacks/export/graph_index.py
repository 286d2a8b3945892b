"""Index producers and consumers of an editable graph's tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

__all__ = ["GraphIndex", "unique_name"]


class GraphIndex:
    """Base of editable graphs: finds the operators that write and read a tensor."""

    def __init__(self) -> None:
        self._producers: dict[str, Any] = {}
        self._consumers: dict[str, dict[int, Any]] = {}

    def producer(self, name: str) -> Any | None:
        """Return the operator that writes ``name``; for inputs and constants, None."""
        return self._producers.get(name)

    def consumers(self, name: str) -> list[Any]:
        """Return the operators that read ``name``."""
        return list(self._consumers.get(name, {}).values())

    @staticmethod
    def read_by(operator: Any) -> Iterable[str]:
        """Return the tensors that ``operator`` reads."""
        raise NotImplementedError

    @staticmethod
    def written_by(operator: Any) -> Iterable[str]:
        """Return the tensors that ``operator`` writes."""
        raise NotImplementedError

    def _index(self, operator: Any) -> None:
        for name in self.written_by(operator):
            self._producers[name] = operator
        for name in self.read_by(operator):
            self._consumers.setdefault(name, {})[id(operator)] = operator

    def _forget_reads(self, operator: Any) -> None:
        for name in self.read_by(operator):
            self._consumers.get(name, {}).pop(id(operator), None)


def unique_name(name: str, taken: Collection[str]) -> str:
    """Return ``name``, with a number appended if it is in ``taken``.

    Args:
        name: Wanted name.
        taken: Names in use.
    """
    unique, number = name, 0
    while unique in taken:
        number += 1
        unique = f"{name}_{number}"
    return unique
