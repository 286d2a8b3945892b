"""``paddlelite-callbacks compare A B``."""

from __future__ import annotations

import argparse
from pathlib import Path

from paddlelite_callbacks.cli.output import write_json, write_text

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Args:
        parser: of the command.
    """
    parser.description = (
        "Compare the latest run of every name in two folders: metric with its interval, size, latency, gate, and the "
        "options that differ."
    )
    parser.add_argument("before", metavar="A", help="folder with runs.jsonl")
    parser.add_argument("after", metavar="B", help="another; two folders of one run each may name it differently")
    parser.add_argument("--metric", help="that is compared (default: the budget's, else the first that is no loss)")
    parser.add_argument("--html", metavar="FILE", help="write a self-contained page too")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")


def run(options: argparse.Namespace) -> int:
    """Print the comparison.

    Args:
        options: as parsed.

    Raises:
        ValueError: a folder without runs, or an unknown metric.
    """
    from paddlelite_callbacks.report.comparison import compare_folders
    from paddlelite_callbacks.report.write import write_whole

    found = compare_folders(options.before, options.after, metric=options.metric)
    if options.html is not None:
        write_whole(Path(options.html), found.html())
    if options.json:
        write_json(found.as_dict())
    else:
        write_text(found.markdown())
    return 0
