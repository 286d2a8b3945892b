"""One exported form of a network: its files, size and checksums."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paddlelite_callbacks.utils.checksum import sha256_of

__all__ = ["Artefact"]


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """One exported form of a network.

    Args:
        kind: ``"paddle"`` (program and parameters), ``"onnx"``, or ``"pdmodel"`` (Paddle 2's format of the former).
        path: the file an engine is pointed at: Paddle's program, or the ``.onnx`` file.
        files: all files that belong to it.
        precision: ``"fp32"``, or ``"int8"`` for int8 weights.
    """

    kind: str
    path: Path
    files: tuple[Path, ...]
    precision: str = "fp32"

    @property
    def size_mb(self) -> float:
        """Sum of the files in MB (1e6 bytes), as the gate counts: parameters and program."""
        return sum(file.stat().st_size for file in self.files) / 1e6

    def sha256(self) -> dict[str, str]:
        """Return the checksum of each file by its path in the folder of ``path``."""
        return {file.relative_to(self.path.parent).as_posix(): sha256_of(file) for file in self.files}
