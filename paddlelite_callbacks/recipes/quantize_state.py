"""Keep what a quantisation has measured, to resume it after an interruption."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from paddlelite_callbacks.quant.layer_search import SearchPoint
from paddlelite_callbacks.utils.atomic_files import staged_file

__all__ = ["Measured"]

_VERSION = 2


class Measured:
    """Sensitivities and files that were measured; on disk after each.

    Args:
        path: File of the state; read if it is there and was written with the same settings.
        settings: What the measurements depend on, as JSON holds it.

    Attributes:
        sensitivity: Sensitivity of layers by name.
        quantize_outputs: Whether outputs are quantised too, as it was measured; ``None`` if it was not yet.
        resumed: Whether measurements were read.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self._path = path
        self._settings = json.loads(json.dumps(dict(settings)))
        self.sensitivity: dict[str, float] = {}
        self.quantize_outputs: bool | None = None
        self._points: dict[str, dict[str, Any]] = {}
        self.resumed = False
        with suppress(OSError, ValueError, KeyError, TypeError):  # unreadable: everything is measured again
            held = json.loads(path.read_text(encoding="utf-8"))
            if (held["version"], held["settings"]) == (_VERSION, self._settings):
                self.sensitivity = {str(name): float(value) for name, value in held["sensitivity"].items()}
                self.quantize_outputs = held["quantize_outputs"]
                self._points = dict(held["points"])
                self.resumed = True

    def keep_outputs(self, quantized: bool) -> None:
        """Keep whether outputs are quantised too; a second timing might differ.

        Args:
            quantized: The choice.
        """
        self.quantize_outputs = quantized
        self._write()

    def keep_sensitivity(self, found: Mapping[str, float]) -> None:
        """Keep the sensitivity of layers.

        Args:
            found: Sensitivity by name.
        """
        self.sensitivity.update(found)
        self._write()

    def point(self, to: str, layers: frozenset[str]) -> SearchPoint | None:
        """Return what was measured of a file; ``None`` if it was not made yet.

        Args:
            to: What the layers were put back to.
            layers: Names of these layers.
        """
        held = self._points.get(_key(to, layers))
        if held is None:
            return None
        return SearchPoint(layers=layers, metric=held["metric"], latency_ms=held["latency_ms"])

    def keep_point(self, to: str, point: SearchPoint) -> None:
        """Keep what was measured of a file.

        Args:
            to: What its layers were put back to.
            point: Its measurements.
        """
        self._points[_key(to, point.layers)] = {"metric": point.metric, "latency_ms": point.latency_ms}
        self._write()

    def delete(self) -> None:
        """Delete the file of a finished quantisation."""
        self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        held = {
            "version": _VERSION,
            "settings": self._settings,
            "quantize_outputs": self.quantize_outputs,
            "sensitivity": self.sensitivity,
            "points": self._points,
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with staged_file(self._path) as partial:
            partial.write_text(json.dumps(held, indent=1), encoding="utf-8")


def _key(to: str, layers: frozenset[str]) -> str:
    names: Sequence[str] = sorted(layers)
    return json.dumps([to, *names])
