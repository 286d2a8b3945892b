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
        kind: ``"paddle"`` (program and parameters), ``"onnx"``, ``"pdmodel"`` (program in Paddle 2's format),
            ``"lite-arm"`` or ``"lite-x86"`` (Paddle Lite's ``.nb`` for that target).
        path: File that an engine loads: Paddle's program, or the ``.onnx`` file.
        files: All files of the model.
        precision: Type of the weights: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        program: Program and parameters that a ``.nb`` was made from; deleted after the checks.
    """

    kind: str
    path: Path
    files: tuple[Path, ...]
    precision: str = "fp32"
    program: tuple[Path, ...] = ()

    @property
    def size_mb(self) -> float:
        """Total size of the files in MB (1e6 bytes), as the gate counts it."""
        return sum(file.stat().st_size for file in self.files) / 1e6

    def sha256(self) -> dict[str, str]:
        """Return the SHA-256 of each file, by path relative to the folder of ``path``."""
        return {file.relative_to(self.path.parent).as_posix(): sha256_of(file) for file in self.files}
