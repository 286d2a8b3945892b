"""Outputs of layers in the middle of a network, by name, while it trains or teaches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from paddle.nn import Layer

from paddlelite_callbacks.distill.terms import FeatureTerm
from paddlelite_callbacks.surgery import find_sublayer, match_sublayers

__all__ = ["Taps", "expanded"]


class Taps:
    """Keep what named layers give, from `start` to `take`.

    Args:
        names: as in ``named_sublayers()``.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(dict.fromkeys(names))
        self._kept: dict[str, list[Any]] | None = None

    def attach(self, network: Layer, scope: ExitStack) -> None:
        """Set the hooks; they go with ``scope``.

        Raises:
            ValueError: no such layer.
        """
        for name in self.names:
            hook = find_sublayer(network, name).register_forward_post_hook(self._keep(name))
            scope.callback(hook.remove)
        scope.callback(self.forget)

    def start(self) -> None:
        """Begin to keep; what is there is dropped."""
        self._kept = {name: [] for name in self.names}

    def forget(self) -> None:
        """Keep nothing any more."""
        self._kept = None

    def take(self) -> dict[str, Any]:
        """Return the outputs by name, and forget them.

        Raises:
            ValueError: a layer did not run, or ran several times, so that its output is not one.
        """
        kept, self._kept = self._kept or {}, None
        wrong = {name: len(found) for name, found in kept.items() if len(found) != 1}
        if wrong:
            raise ValueError(
                f"These layers did not run exactly once in the forward pass, so their feature is not one: {wrong} "
                "(name: times). Choose the layer around them, or one behind them."
            )
        return {name: found[0] for name, found in kept.items()}

    def _keep(self, name: str) -> Callable[[Layer, Any, Any], None]:
        def hook(layer: Layer, inputs: Any, output: Any) -> None:
            if self._kept is not None:
                self._kept[name].append(output)

        return hook


def expanded(term: FeatureTerm, student: Layer, teacher: Layer) -> Sequence[FeatureTerm]:
    """Return one term per pair of layers that the names or globs of ``term`` match.

    Args:
        term: with names or globs.
        student: whose layers are meant.
        teacher: the same.

    Raises:
        ValueError: a name matches nothing (near ones are listed), or the two sides match different numbers.
    """
    if isinstance(term.student, tuple) or isinstance(term.teacher, tuple):
        for network, names in zip((student, teacher), term.layers(), strict=True):
            for name in names:
                find_sublayer(network, name)
        return [term]
    ours, theirs = _on_one_level(student, term.student), _on_one_level(teacher, term.teacher)
    if len(ours) != len(theirs):
        raise ValueError(
            f"features pairs layers in order, but {term.student!r} matches {len(ours)} of the student ({ours[:8]}) and "
            f"{term.teacher!r} matches {len(theirs)} of the teacher ({theirs[:8]}). Write the pairs one by one: "
            f"features={{'student.layer': 'teacher.layer'}}."
        )
    if len(ours) > 1 and isinstance(term.project, Layer):
        raise ValueError(f"project= is one layer, but {term.student!r} matches {len(ours)}: give one term per pair.")
    return [replace(term, student=a, teacher=b) for a, b in zip(ours, theirs, strict=True)]


def _on_one_level(network: Layer, pattern: str) -> list[str]:
    """Match ``pattern`` with names of its own depth: ``blocks*`` means the blocks, not all that is inside them."""
    names = match_sublayers(network, pattern)
    return [name for name in names if name.count(".") == pattern.count(".")] or names
