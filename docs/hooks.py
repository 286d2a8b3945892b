"""MkDocs hooks: pictures of ``examples/results`` are part of the site, under the links that also work on GitHub."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

RESULTS = Path(__file__).resolve().parents[1] / "examples" / "results"
SHOWN = ("*/*.png", "*/*.jpg")


def on_files(files: Files, *, config: Any) -> Files:
    """Add each picture as ``assets/<folder>/<name>``."""
    for pattern in SHOWN:
        for picture in sorted(RESULTS.glob(pattern)):
            name = f"assets/{picture.relative_to(RESULTS).as_posix()}"
            files.append(File.generated(config, name, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Turn links to ``examples/results`` into links to the added pictures."""
    up = posixpath.relpath("assets", posixpath.dirname(page.file.src_uri) or ".")
    return re.sub(r"\]\((?:\.\./)+examples/results/", f"]({up}/", markdown)
