"""One exported model: its files, size and checksums."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paddlelite_callbacks.utils.checksum import sha256_of

__all__ = ["Artefact"]


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """One exported model.

    Args:
        kind: ``"paddle"`` (program and parameters), ``"onnx"``, or ``"pdmodel"`` (program in Paddle 2's format).
        path: File that an engine loads: Paddle's program, or the ``.onnx`` file.
        files: All files of the model.
        precision: Type of the weights: ``"fp32"``, ``"fp16"`` or ``"int8"``.
    """

    kind: str
    path: Path
    files: tuple[Path, ...]
    precision: str = "fp32"

    @property
    def size_mb(self) -> float:
        """Total size of the files in MB (1e6 bytes), as the gate counts it."""
        return sum(file.stat().st_size for file in self.files) / 1e6

    def sha256(self) -> dict[str, str]:
        """Return the SHA-256 of each file, by path relative to the folder of ``path``."""
        return {file.relative_to(self.path.parent).as_posix(): sha256_of(file) for file in self.files}
