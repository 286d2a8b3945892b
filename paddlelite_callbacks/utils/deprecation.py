"""Keep old names of modules, functions and arguments working, with a warning."""

from __future__ import annotations

import functools
import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from paddlelite_callbacks.errors import near_names

__all__ = ["Folded", "Moved", "Renamed", "forwarded", "old_arguments", "old_attributes"]

T = TypeVar("T")
_GOES, _PATH = "the old spelling goes with the next release", "the old path goes with the next release"


@dataclass(frozen=True)
class Renamed:
    """An argument with a new name.

    Args:
        new: New name.
        convert: Converts the old value to the new one; ``None`` where they are equal.
    """

    new: str
    convert: Callable[[Any], Any] | None = None


@dataclass(frozen=True)
class Moved:
    """An argument that is now a field of an options object.

    Args:
        into: Argument that takes the object.
        kind: Returns the object's class.
        convert: Converts the old value to fields of the object; ``None`` for the field of the same name.
    """

    into: str
    kind: Callable[[], Callable[..., Any]]
    convert: Callable[[Any], dict[str, Any]] | None = None


@dataclass(frozen=True)
class Folded:
    """An argument that is now a field of each entry of another argument.

    Args:
        into: The other argument.
        fold: Returns its new value, from its current one (``None`` if left out), the old arguments by name, and all
            given arguments.
        example: New spelling, with ``{}`` for the old arguments.
        field: Name of the field in the entries; ``None`` for the same name.
    """

    into: str
    fold: Callable[[Any, dict[str, Any], Mapping[str, Any]], Any]
    example: str
    field: str | None = None


def old_arguments(**rules: Renamed | Moved | Folded) -> Callable[[T], T]:
    """Decorate a function or class to accept old argument names with a warning.

    ``inspect.signature`` and ``help`` show only the new ones. An unknown name raises an error with near names.

    Args:
        rules: Rules by old name.

    Raises:
        TypeError: At the call: old and new spelling at once, or an unknown argument.
    """

    def decorate(target: T) -> T:
        if isinstance(target, type):
            target.__init__ = _accepting(target.__init__, rules, target.__name__)  # type: ignore[misc]
            return target
        name = getattr(target, "__qualname__", "").removesuffix(".__init__")
        return _accepting(target, rules, name)  # type: ignore[return-value, arg-type]

    return decorate


def old_attributes(**names: str | tuple[str, Callable[[Any], Any]]) -> Callable[[Any, str], Any]:
    """Return a class's ``__getattr__`` that maps old attribute names, with a warning.

    Args:
        names: New name by old name, dotted for a field of an options object; or a pair of it and a function that
            computes the old value from the instance.

    Raises:
        AttributeError: Raised by the returned function for other names.
    """

    def get(self: Any, name: str) -> Any:
        if name not in names:
            kind = type(self).__name__
            raise AttributeError(f"{kind!r} object has no attribute {name!r}", name=name, obj=self)
        rule = names[name]
        new, read = (rule, None) if isinstance(rule, str) else rule
        warnings.warn(f"{type(self).__name__}.{name} is now {new}; {_GOES}.", DeprecationWarning, stacklevel=2)
        return read(self) if read else functools.reduce(getattr, new.split("."), self)

    return get


def forwarded(old: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` of a module whose names have moved.

    Args:
        old: Name of the module.
        homes: New module of each name, inside the package; ``"module:Name"`` if its name changed, too.

    Raises:
        AttributeError: Raised by the returned function for other names.
    """
    package = old.partition(".")[0]

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        module, _, new = homes[name].partition(":")
        home = f"{package}.{module}"
        said = f"is now {module}.{new}; {_GOES}." if home == old else f"has moved to {home}.{new or name}; {_PATH}."
        warnings.warn(f"{old}.{name} {said}", DeprecationWarning, stacklevel=2)
        return getattr(importlib.import_module(home), new or name)

    return get, lambda: sorted(homes)


def _accepting(
    function: Callable[..., Any], rules: Mapping[str, Renamed | Moved | Folded], name: str
) -> Callable[..., Any]:
    signature = inspect.signature(function)
    known = [one.name for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
    is_open = len(known) < len(signature.parameters)

    @functools.wraps(function)
    def call(*args: Any, **given: Any) -> Any:
        if unknown := [key for key in given if key not in known and key not in rules and not is_open]:
            raise TypeError(_unknown(name, unknown[0], known, rules))
        if old := {key: value for key, value in given.items() if key in rules}:
            rest = {key: value for key, value in given.items() if key not in rules}
            present = {**signature.bind_partial(*args).arguments, **rest}
            changes, said = _translated(name, old, rules, present)
            warnings.warn(f"{name}: {'; '.join(said)}; {_GOES}.", DeprecationWarning, stacklevel=2)
            given = {**rest, **changes}
        return function(*args, **given)

    return call


def _unknown(name: str, wrong: str, known: Sequence[str], rules: Mapping[str, Renamed | Moved | Folded]) -> str:
    """Return what to write in place of an argument that there is not."""
    for into, kind in {rule.into: rule.kind() for rule in rules.values() if isinstance(rule, Moved)}.items():
        if wrong in inspect.signature(kind).parameters:
            return f"{name} has no argument {wrong!r}: it goes into {into}={kind.__name__}({wrong}=...)."
    near = near_names(wrong, [key for key in known if key not in ("self", "cls")])
    return f"{name} has no argument {wrong!r}; near names: {near}. See help({name}) for all."


def _translated(
    name: str,
    old: Mapping[str, Any],
    rules: Mapping[str, Renamed | Moved | Folded],
    present: Mapping[str, Any],
) -> tuple[dict[str, Any], list[str]]:
    """Return the new arguments, and one message per change.

    Raises:
        TypeError: An old and its new argument are both given.
    """
    changes: dict[str, Any] = {}
    said: list[str] = []
    groups: dict[str, list[str]] = {}
    for key in old:
        one = rules[key]
        groups.setdefault(one.new if isinstance(one, Renamed) else one.into, []).append(key)
    for new, keys in groups.items():
        rule, values = rules[keys[0]], {key: old[key] for key in keys}
        doubled = len(keys) > 1 or new in present if isinstance(rule, Renamed) else present.get(new) is not None
        if doubled and not isinstance(rule, Folded):
            both = " and ".join(f"{key}=" for key in (*keys, new) if key in old or new in present)
            raise TypeError(f"{name} was given {both}: these are old and new spellings. Give {new}= alone.")
        if isinstance(rule, Renamed):
            value = values[keys[0]] if rule.convert is None else rule.convert(values[keys[0]])
            changes[new], written = value, f"{new}={_short(value)}"
        elif isinstance(rule, Moved):
            fields: dict[str, Any] = {}
            for key in keys:
                one = rules[key]
                fields |= one.convert(old[key]) if isinstance(one, Moved) and one.convert else {key: old[key]}
            kind = rule.kind()
            changes[new] = kind(**fields)
            written = f"{new}={kind.__name__}({', '.join(f'{key}={_short(value)}' for key, value in fields.items())})"
        else:
            changes[new] = rule.fold(present.get(new), values, present)
            written = rule.example.format(
                ", ".join(f"{rule.field or key}={_short(value)}" for key, value in values.items())
            )
        said.append(f"{', '.join(f'{key}={_short(value)}' for key, value in values.items())} is now {written}")
    return changes, said


def _short(value: Any) -> str:
    """Format plain values; leave out data and networks."""
    if isinstance(value, (list, tuple)) and all(isinstance(item, (str, int, float)) for item in value):
        return repr(value)
    return repr(value) if value is None or isinstance(value, (bool, int, float, str)) else "..."
