"""Shorten engine error messages to one line."""

from __future__ import annotations

from pathlib import Path

from paddlelite_callbacks.utils.folder_names import without_folder

__all__ = ["reason"]

_NO_ONEDNN = "ConvertPirAttribute2RuntimeAttribute"  # a list of floats, such as the scales of an interpolation


def reason(error: BaseException, *, folder: Path | None = None) -> str:
    """Return the informative line of an engine's error message.

    Args:
        error: Caught exception.
        folder: Folder of the file, left out of the message: files are checked before they are moved into place.
    """
    said = str(error) if folder is None else without_folder(str(error), folder)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if "Error:" in line or line.startswith(("[Hint", "("))]
    if telling and _NO_ONEDNN in telling[0]:
        return "Paddle's oneDNN has no interpolation (F.interpolate, nn.Upsample): the other engines run this network"
    why = [line for line in lines if not line.startswith("Exception from ")]  # OpenVINO's source locations
    shorter = [" ".join(why)] if 0 < len(why) < len(lines) else lines
    text = (telling or shorter or [type(error).__name__])[0]
    return f"{type(error).__name__}: {text.replace(str(Path.cwd()), '.')}"[:300]
