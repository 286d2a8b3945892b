"""Command ``report DIR``: write the report of a folder of runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from paddlelite_callbacks.cli.output import write_json, write_text

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Args:
        parser: Parser of the command.
    """
    parser.add_argument("folder", help="folder with runs.jsonl, where report.md, report.html and pictures are written")
    parser.add_argument(
        "--metric", help="metric of the ladder (default: the budget's, else the first that is not a loss)"
    )
    parser.add_argument("--json", action="store_true", help="the paths as one JSON object")


def run(options: argparse.Namespace) -> int:
    """Write the report; print the paths of its files.

    Args:
        options: Parsed arguments.
    """
    from paddlelite_callbacks.report.write import write_report

    folder = Path(options.folder)
    write_report(folder, metric=options.metric)
    files = [str(folder / "report.md"), str(folder / "report.html")]
    if options.json:
        write_json({"files": files})
    else:
        write_text("".join(f"{file}\n" for file in files))
    return 0
