"""``python -m paddlelite_callbacks report DIR``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Args:
        parser: of the command.
    """
    parser.add_argument("folder", help="with runs.jsonl; report.md, report.html and their pictures are drawn there")
    parser.add_argument(
        "--metric", help="that the ladder shows (default: the budget's, else the first that is no loss)"
    )


def run(options: argparse.Namespace) -> int:
    """Write the report; print the paths of its files.

    Args:
        options: as parsed.
    """
    from paddlelite_callbacks.report.write import write_report

    folder = Path(options.folder)
    write_report(folder, metric=options.metric)
    sys.stdout.write(f"{folder / 'report.md'}\n{folder / 'report.html'}\n")
    return 0
