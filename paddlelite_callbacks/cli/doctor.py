"""Command ``doctor``: check installation and machine."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from dataclasses import asdict

from paddlelite_callbacks.benchmark.doctor import LEVELS, Finding, doctor
from paddlelite_callbacks.cli.output import write_json, write_text

__all__ = ["add_arguments", "run"]

_WIDTH = 110


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Args:
        parser: Parser of the command.
    """
    parser.description = (
        "Check that the packages are compatible, that a small network runs on every engine, and processor, threads, "
        "disk and locale. Exit code 0; 1 if something is broken (with --strict: also at a warning)."
    )
    parser.add_argument("folder", nargs="?", default=".", help="folder for results (default: the current one)")
    parser.add_argument("--quick", action="store_true", help="check only versions and settings: run no network")
    parser.add_argument("--strict", action="store_true", help="exit code 1 at a warning, too")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")


def run(options: argparse.Namespace) -> int:
    """Print the findings.

    Args:
        options: Parsed arguments.

    Returns:
        0; 1 if something is broken.
    """
    found = doctor(options.folder, probe=not options.quick)
    counts = {level: sum(finding.level == level for finding in found) for level in LEVELS}
    if options.json:
        write_json({"findings": [asdict(finding) for finding in found], "counts": counts})
    else:
        write_text(_lines(found) + ", ".join(f"{count} {level}" for level, count in counts.items()) + "\n")
    return 1 if counts["error"] or (options.strict and counts["warning"]) else 0


def _lines(found: Sequence[Finding]) -> str:
    lines = []
    for finding in found:
        head, rest = f"{finding.level:8}{finding.topic:10}", " " * 18
        for text, begin in ((finding.text, head), (finding.remedy and f"Remedy: {finding.remedy}.", rest)):
            if text:  # without breaking paths and commands
                lines += textwrap.wrap(
                    text, _WIDTH, initial_indent=begin, subsequent_indent=rest, break_long_words=False,
                    break_on_hyphens=False,
                )  # fmt: skip
    return "".join(line + "\n" for line in lines)
