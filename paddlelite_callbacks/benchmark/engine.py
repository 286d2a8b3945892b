"""Define the interface of inference engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:  # a process that runs an ONNX file need not import Paddle
    from paddlelite_callbacks.export.artefact import Artefact

__all__ = ["Engine", "EngineError", "Predict"]

Predict = Callable[[Sequence[np.ndarray]], list[np.ndarray]]


class EngineError(RuntimeError):
    """An engine could not load or run a file; one line with its reason."""


class Engine(Protocol):
    """Something that runs exported files.

    Attributes:
        name: as used in options and reports.
        kind: of the artefacts it reads.
        package: whose presence and version count.
    """

    name: str
    kind: str
    package: str

    def load(self, artefact: Artefact, *, threads: int) -> Predict:
        """Return a function that runs the file; outputs in the file's order.

        Raises:
            EngineError: the file cannot be loaded.
            MissingDependencyError: the engine is not installed.
        """
