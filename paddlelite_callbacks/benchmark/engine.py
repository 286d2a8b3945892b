"""Define the interface of inference engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:  # without importing Paddle in a process that runs an ONNX file
    from paddlelite_callbacks.export.artefact import Artefact

__all__ = ["Engine", "EngineError", "Predict"]

Predict = Callable[[Sequence[np.ndarray]], list[np.ndarray]]


class EngineError(RuntimeError):
    """An engine could not load or run a file; the message is one line."""


class Engine(Protocol):
    """Inference engine that runs exported files.

    Attributes:
        name: Name in options and reports.
        kind: Kind of the artefacts that it reads.
        package: Package that must be installed and whose version is recorded.
    """

    name: str
    kind: str
    package: str

    def load(self, artefact: Artefact, *, threads: int) -> Predict:
        """Return a function that runs the file; outputs in the file's order.

        Raises:
            EngineError: The file cannot be loaded.
            MissingDependencyError: The engine is not installed.
        """
