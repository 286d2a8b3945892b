"""Define exceptions, and import heavy or optional packages."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import io
import logging
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType

__all__ = ["ExportError", "MissingDependencyError", "NonFiniteLossError", "near_names", "require", "require_installed"]

_REMEDIES = {
    "paddleclas": (
        "paddleclas 2.6.0 pins numpy 1.24.4, which has no build for Python 3.12 and later: use Python 3.10 or 3.11, or "
        "a network of paddle.vision, such as mobilenet_v3_small"
    ),
    "paddleslim": "pip install paddleslim==2.6.0 decorator requests six 'setuptools<81', on Python 3.10 to 3.12",
    "paddle2onnx": "pip install 'paddlelite_callbacks[deploy]' (paddle2onnx has no build for Python 3.13 yet)",
    "onnx": "pip install 'paddlelite_callbacks[deploy]'",
    "onnxruntime": "pip install 'paddlelite_callbacks[deploy]'",
    "openvino": "pip install 'paddlelite_callbacks[deploy]'",
    "onnxslim": "pip install 'paddlelite_callbacks[deploy]'",
    "rich": "pip install 'paddlelite_callbacks[terminal]'",
    "shtab": "pip install 'paddlelite_callbacks[terminal]'",
    "MNN": "pip install 'paddlelite_callbacks[edge]'",
    "ncnn": "pip install 'paddlelite_callbacks[edge]'",
    "pnnx": "pip install --no-deps pnnx==20261020 (it names PyTorch, which ONNX files do not need)",
    "matplotlib": "pip install 'paddlelite_callbacks[examples]'",
    "sklearn": "pip install 'paddlelite_callbacks[examples]'",
}

_REPORTERS = {"openvino": "openvino_telemetry"}  # sends telemetry on import, from a thread that stays


class MissingDependencyError(ImportError):
    """An optional package is missing; the message names the remedy."""


class NonFiniteLossError(FloatingPointError):
    """The loss of a batch is NaN or Inf; weights are those before that batch.

    Args:
        message: Names the batch, the terms and their cause.
        epoch: Index of the epoch, from 0.
        batch: Index of the batch in the epoch, from 0.
        terms: Names of the terms of the loss that are not finite, as in ``logs`` (``"task_loss"``, ``"distill_kl"``).

    Attributes:
        epoch: As given.
        batch: As given.
        terms: As given.

    Example:
        >>> try:
        ...     model.fit(data, callbacks=[DistillCallback(teacher)])
        ... except NonFiniteLossError as error:
        ...     print(error.epoch, error.batch, error.terms, error)  # doctest: +SKIP
    """

    def __init__(self, message: str, *, epoch: int, batch: int, terms: Sequence[str]) -> None:
        super().__init__(message)
        self.epoch, self.batch, self.terms = epoch, batch, tuple(terms)


def require(name: str, *, needed_for: str) -> ModuleType:
    """Import a heavy or optional module silently.

    Args:
        name: Dotted module name, for instance ``"paddleclas"``.
        needed_for: Feature that needs it, for the error message.

    Returns:
        The imported module.

    Raises:
        MissingDependencyError: The package is missing or cannot be imported; says what to install.
    """
    try:
        with _hushed(), _hidden(_REPORTERS.get(name)):
            return importlib.import_module(name)
    except ImportError as error:
        raise _missing(name.partition(".")[0], str(error), needed_for) from error


def require_installed(name: str, *, needed_for: str) -> None:
    """Check that a top-level module can be found, without importing it.

    Args:
        name: Name of the module.
        needed_for: Feature that needs it, for the error message.

    Raises:
        MissingDependencyError: The package is missing; says what to install.
    """
    if importlib.util.find_spec(name) is None:
        raise _missing(name, f"No module named {name!r}", needed_for)


def near_names(wrong: str, names: Iterable[str], *, limit: int = 5) -> list[str]:
    """Return up to ``limit`` names similar to ``wrong``, ignoring case.

    Args:
        wrong: Unknown name.
        names: Known names.
        limit: Largest number of results.
    """
    known = list(names)
    folded: dict[str, list[str]] = {}
    for name in known:
        folded.setdefault(name.casefold(), []).append(name)
    near = difflib.get_close_matches(wrong.casefold(), list(folded), n=limit, cutoff=0.5)
    near.sort(key=lambda name: not name.startswith(wrong.casefold()))  # what was begun comes before what looks like it
    found = [name for key in near for name in sorted(folded[key], key=lambda name: name != wrong)]
    return found[:limit] or known[:limit]


def _missing(package: str, why: str, needed_for: str) -> MissingDependencyError:
    remedy = _REMEDIES.get(package, f"pip install {package}")
    return MissingDependencyError(f"{needed_for} needs {package} ({why}). Remedy: {remedy}.")


@contextlib.contextmanager
def _hidden(module: str | None) -> Iterator[None]:
    """Make ``module`` look missing, unless it is imported already."""
    if module is None or module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Silence warnings, INFO records and prints of an import."""
    root = logging.getLogger()
    handlers, level, disabled = root.handlers[:], root.level, root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        root.handlers[:], root.level = handlers, level


class ExportError(RuntimeError):
    """A network cannot be exported, or its files compute something else."""
