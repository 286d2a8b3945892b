"""MkDocs hooks: notebooks and pictures of ``examples/results`` are part of the site, with links as on GitHub."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS.parent / "examples" / "results"
SHOWN = ("*/*.png", "*/*.jpg")


def on_files(files: Files, *, config: Any) -> Files:
    """Add each picture as ``assets/<folder>/<name>``, and a page per notebook."""
    for pattern in SHOWN:
        for picture in sorted(RESULTS.glob(pattern)):
            name = f"assets/{picture.relative_to(RESULTS).as_posix()}"
            files.append(File.generated(config, name, abs_src_path=str(picture)))
    for notebook in sorted(DOCS.glob("notebooks/*.ipynb")):
        name = notebook.relative_to(DOCS).with_suffix(".md").as_posix()
        files.append(File(name, config.docs_dir, config.site_dir, config.use_directory_urls))
    return files


def on_page_read_source(*, page: Any, config: Any) -> str | None:
    """Return a notebook as Markdown, with a link to the file."""
    notebook = (DOCS / page.file.src_uri).with_suffix(".ipynb")
    if not notebook.is_file():
        return None
    text, _ = MarkdownExporter().from_filename(str(notebook))
    name = notebook.name.replace(".zh.ipynb", ".ipynb")
    return f'{text}\n\n<a href="../{name}" download>{name}</a>\n'


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Turn links to notebooks and to ``examples/results`` into links to the added pages and pictures."""
    markdown = re.sub(r"\]\(([\w./-]+)\.ipynb\)", r"](\1.md)", markdown)
    up = posixpath.relpath("assets", posixpath.dirname(page.file.src_uri) or ".")
    return re.sub(r"\]\((?:\.\./)+examples/results/", f"]({up}/", markdown)
