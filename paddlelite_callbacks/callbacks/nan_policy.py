"""What is to be done with a batch whose loss is not finite: what a callback says, and what one ``fit`` does."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["ON_NAN", "agreed_policy", "checked_policy"]

ON_NAN = ("raise", "skip", "ignore")


def checked_policy(on_nan: str | None) -> str | None:
    """Return ``on_nan`` where it is allowed.

    Raises:
        ValueError: it is not.
    """
    if on_nan is not None and on_nan not in ON_NAN:
        raise ValueError(
            f"on_nan must be one of {list(ON_NAN)}, or None for 'raise' unless another callback says otherwise, got "
            f"{on_nan!r}: leave it out to stop at the first loss that is not finite."
        )
    return on_nan


def agreed_policy(wishes: Mapping[str, str | None]) -> str:
    """Return what one ``fit`` does, from what its callbacks want.

    Args:
        wishes: ``on_nan`` by the callback's class; empty if none of them guards.

    Raises:
        ValueError: they want different things.
    """
    said = {name: wish for name, wish in wishes.items() if wish is not None}
    if len(set(said.values())) > 1:
        raise ValueError(f"The callbacks of one fit need the same on_nan=, got {said}: give it to one of them.")
    return next(iter(said.values()), "raise") if wishes else "ignore"
