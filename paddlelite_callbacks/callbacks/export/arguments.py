"""Check the arguments of an export before training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import paddle
from paddle.static import InputSpec

from paddlelite_callbacks.hapi import check_data, input_specs, metric_names
from paddlelite_callbacks.report.gate import Budget
from paddlelite_callbacks.utils.isolation import same_random_streams

__all__ = [
    "FORMS",
    "check_budget_engine",
    "check_budget_metric",
    "check_choices",
    "check_input_sizes",
    "check_input_spec",
    "check_monitor",
    "checked_arguments",
    "checked_forms",
]

FORMS = ("pdmodel", "lite")
_FILES = ("runs.jsonl", "report.md", "report.html", "pareto.png", "curves.png")  # beside the folders of the runs


def checked_arguments(folder: Any, budget: Any, eval_data: Any) -> Path:
    """Check the types of arguments of `ExportBenchCallback`; return ``folder``.

    Args:
        folder: Path of a folder.
        budget: `Budget` or ``None``.
        eval_data: Data set or loader, ``None`` or ``False``.

    Raises:
        TypeError: An argument of another type; the message has its type and the allowed ones.
        ValueError: Data of length 0.
    """
    if not isinstance(folder, (str, Path)):
        raise TypeError(f"folder must be a path, got {type(folder).__name__}: give one, as ExportBenchCallback('out').")
    if budget is not None and not isinstance(budget, Budget):
        raise TypeError(f"budget must be a Budget, got {type(budget).__name__}: give one, as Budget(size_mb=20).")
    if eval_data is not None and eval_data is not False:
        check_data("eval_data", eval_data)
    return Path(folder)


def check_input_spec(input_spec: Any) -> None:
    """Check the type of ``input_spec``.

    Args:
        input_spec: List of `InputSpec`, or ``None``.

    Raises:
        TypeError: An object of another type.
    """
    specs = input_spec is None or isinstance(input_spec, (list, tuple))
    if not specs or not all(isinstance(spec, InputSpec) for spec in input_spec or ()):
        raise TypeError(
            f"input_spec must be a list of paddle.static.InputSpec, got {input_spec!r}: "
            "input_spec=[InputSpec([None, 3, 224, 224], 'float32', 'x')], or leave it out."
        )


def check_choices(folder: str | Path, name: str | None, *, gate: str, which: str, budget: Budget | None) -> None:
    """Check that ``name`` is a plain folder name, and the choices are known.

    Args:
        folder: Folder of all runs, for the message.
        name: Name of this run's folder; ``None`` for the network's class name.
        gate: See `ExportBenchCallback`.
        which: See `ExportBenchCallback`.
        budget: See `ExportBenchCallback`.

    Raises:
        ValueError: An argument is not allowed; the message has the allowed values.
    """
    if name is not None and (
        not name or Path(name).name != name or name.startswith(".") or "\0" in name or name in _FILES
    ):
        raise ValueError(
            f"name becomes a folder inside {folder}, so it must be a plain name, got {name!r}: 'run1'. The names "
            f"{list(_FILES)} are reserved."
        )
    _one_of("gate", gate, ("report", "fail"))
    _one_of("which", which, ("last", "best"))
    if gate == "fail" and (budget is None or not budget.has_limits):
        raise ValueError(
            f"gate='fail' needs a budget with a limit, got budget={budget}: give one, as budget=Budget(latency_ms=100)."
        )


def checked_forms(forms: Sequence[str]) -> tuple[str, ...]:
    """Return ``forms`` as a tuple.

    Args:
        forms: Additional file formats, see `ExportOptions`.

    Raises:
        ValueError: A form is unknown, or it is not a list.
    """
    if isinstance(forms, str):
        raise ValueError(f"forms must be a list of names, got {forms!r}: write forms=[{forms!r}].")
    if unknown := [form for form in forms if form not in FORMS]:
        raise ValueError(f"forms must be some of {list(FORMS)}, got {unknown}: leave it out for the usual files only.")
    return tuple(forms)


def check_budget_engine(budget: Budget | None, chosen: Sequence[str]) -> None:
    """Check that the engine of the budget is one that will run.

    Args:
        budget: See `ExportBenchCallback`.
        chosen: Names of the engines that will run.

    Raises:
        ValueError: The engine of the budget will not run; the message has the others.
    """
    if budget is not None and budget.engine is not None and budget.engine not in chosen:
        raise ValueError(
            f"The budget names the engine {budget.engine!r}, which is not one of the engines {list(chosen)}: add "
            "it to engines, or leave engine out of the budget for the fastest."
        )


def check_budget_metric(budget: Budget | None, model: paddle.Model, *, evaluated: bool) -> None:
    """Check that the metric of the budget will be measured.

    Args:
        budget: See `ExportBenchCallback`.
        model: Prepared model, or a model with a network only.
        evaluated: Whether there is data to evaluate on.

    Raises:
        ValueError: It will not be measured; the message has the metric and the available ones.
    """
    if budget is None or budget.metric is None:
        return
    names = metric_names(model)
    known = sorted({"loss", *names}) if evaluated else []
    if budget.metric in known:
        return
    if not evaluated:
        raise ValueError(
            f"The budget asks for the metric {budget.metric!r}, but nothing is evaluated: give fit() evaluation data, "
            "or ExportBenchCallback eval_data=..., or leave metric out of the budget."
        )
    raise ValueError(
        f"The budget asks for the metric {budget.metric!r}, but the evaluation has only {known}: name "
        "one of them, or give the metric to model.prepare."
    )


def check_monitor(model: paddle.Model, monitor: str | None) -> None:
    """Check that the evaluation computes the metric ``monitor``.

    Args:
        model: Prepared model.
        monitor: Name of a metric; ``None`` for the first.

    Raises:
        ValueError: It does not; the message has the available metrics.
    """
    known = sorted({"loss", *metric_names(model)})
    if monitor is not None and monitor not in known:
        raise ValueError(
            f"Unknown metric monitor={monitor!r}; available: {known}. Name one of them, or give the metric to "
            "model.prepare."
        )


def check_input_sizes(model: paddle.Model, given: Sequence[InputSpec] | None, data: Any) -> None:
    """Check ``input_spec`` against the training batches, where those are known.

    Args:
        model: Prepared model.
        given: ``input_spec`` of the user.
        data: Loader of the training data, if known.

    Raises:
        ValueError: The shapes do not fit; the message has both.
    """
    if given is None:
        return
    with same_random_streams():
        known = input_specs(model, data)
    shapes = [list(spec.shape) for spec in given]
    seen = [shape for shape, _ in known or []]
    if known is None or _in_order(shapes, seen):
        return
    raise ValueError(
        f"input_spec has the shapes {shapes}, the network is trained on {seen}: give one spec per input, or per input "
        "that it uses in eval mode, with the same number of axes and channels, or leave it out."
    )


def _in_order(shapes: Sequence[Sequence[int | None]], seen: Sequence[Sequence[int | None]]) -> bool:
    """Return whether each of ``shapes`` fits one of ``seen``, in order."""
    if len(shapes) == len(seen):
        return all(_fits(shape, other) for shape, other in zip(shapes, seen, strict=True))
    rest = iter(seen)
    return bool(shapes) and all(any(_fits(shape, other) for other in rest) for shape in shapes)


def _fits(shape: Sequence[int | None], seen: Sequence[int | None]) -> bool:
    """Return whether numbers of axes and channels agree; resolutions may differ."""
    given, known = ([size if size != -1 else None for size in sizes[1:2]] for sizes in (shape, seen))
    return len(shape) == len(seen) and (given == known or None in (*given, *known))


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {list(known)}, got {value!r}: leave it out for {known[0]!r}.")
