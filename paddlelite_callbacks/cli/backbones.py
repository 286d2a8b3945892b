"""Command ``backbones``: list available backbones."""

from __future__ import annotations

import argparse
import dataclasses

from paddlelite_callbacks.backbone.catalogue import list_backbones, render_table, why_left_out
from paddlelite_callbacks.cli.output import write_json, write_text

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Args:
        parser: Parser of the command.
    """
    parser.add_argument(
        "pattern", nargs="?", default="*", help="pattern of names, for instance 'PPLCNet_*', in any case (default: all)"
    )
    parser.add_argument(
        "--source", type=str.lower, choices=["paddleclas", "paddle.vision", "models"], help="package that builds them"
    )
    parser.add_argument("--max-parameters", type=float, metavar="MILLIONS", help="most parameters of a trunk, millions")
    parser.add_argument("--json", action="store_true", help="one JSON object per line instead of a table")
    parser.add_argument("--left-out", action="store_true", help="list networks that are not in the catalogue, and why")


def run(options: argparse.Namespace) -> int:
    """Print the list.

    Args:
        options: Parsed arguments.
    """
    if options.left_out:
        reasons = why_left_out()
        if options.json:
            for name, reason in reasons.items():
                write_json({"name": name, "reason": reason})
        else:
            write_text("".join(f"{name}: {reason}\n" for name, reason in reasons.items()))
        return 0
    found = list_backbones(options.pattern, source=options.source)
    if options.max_parameters is not None:
        found = [b for b in found if b.trunk_parameters <= options.max_parameters * 1e6]
    if options.json:
        for backbone in found:
            write_json(dataclasses.asdict(backbone))
    else:
        write_text(render_table(found) + "\n")
    return 0
