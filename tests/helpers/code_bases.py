"""PaddleSeg, PaddleDetection and PaddleOCR as PyPI has them, beside the environment: their own pins clash with ours."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

VERSIONS = {"paddleseg": "2.8.0", "paddledet": "2.6.0", "paddleocr": "2.10.0"}
KEPT = Path(tempfile.gettempdir()) / "paddlelite_code_bases"


def code_base(name: str) -> Path:
    """Return the folder of the unpacked wheel; skip the test where it cannot be had."""
    folder = KEPT / f"{name}-{VERSIONS[name]}"
    if folder.is_dir():
        return folder
    with tempfile.TemporaryDirectory() as wheels:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", wheels, f"{name}=={VERSIONS[name]}"]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        found = list(Path(wheels).glob("*.whl"))
        if done.returncode or not found:
            pytest.skip(f"{name} {VERSIONS[name]} cannot be downloaded: {done.stderr[-200:]}")
        KEPT.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=KEPT) as unpacked:
            zipfile.ZipFile(found[0]).extractall(unpacked)
            Path(unpacked).rename(folder)
            Path(unpacked).mkdir()  # for the end of the block
    return folder
