"""Command ``compare A B``: compare two folders of runs."""

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
    parser.description = (
        "Compare the latest run of every name in two folders: metric with its interval, size, latency, gate, and the "
        "options that differ."
    )
    parser.add_argument("before", metavar="A", help="folder with runs.jsonl")
    parser.add_argument("after", metavar="B", help="another such folder; if both hold one run, its names may differ")
    parser.add_argument("--metric", help="metric to compare (default: the budget's, else the first that is not a loss)")
    parser.add_argument("--html", metavar="FILE", help="also write a self-contained page")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")


def run(options: argparse.Namespace) -> int:
    """Print the comparison.

    Args:
        options: Parsed arguments.

    Raises:
        ValueError: A folder holds no runs, or the metric is unknown.
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
