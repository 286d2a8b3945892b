"""Command ``gate DIR``: judge recorded runs by a budget."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paddlelite_callbacks.cli.output import write_json, write_text

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Args:
        parser: Parser of the command.
    """
    parser.description = (
        "Judge the latest run of every name in DIR/runs.jsonl by a budget. Exit code 0 if one passes (with --run: "
        "if that one does; with --all: if every one does), 3 if not, 1 if it cannot be judged."
    )
    parser.add_argument("folder", help="folder with runs.jsonl")
    parser.add_argument("--size-mb", type=float, help="parameters and program, 1 MB = 1e6 bytes")
    parser.add_argument("--latency-ms", type=float, help="median latency per call")
    parser.add_argument("--metric", help="name of the accuracy metric, for instance acc; with one of the next two")
    parser.add_argument("--baseline", type=float, help="metric of the large model")
    parser.add_argument("--metric-limit", type=float, help="worst allowed value of the metric")
    parser.add_argument("--metric-drop", type=float, help="allowed loss against the baseline (default: 0.05 of it)")
    parser.add_argument("--absolute", action="store_true", help="the drop is not relative to the baseline")
    parser.add_argument(
        "--mode",
        choices=["auto", "max", "min"],
        help="better values of the metric: larger (max), smaller (min), or by its name (auto, the default)",
    )
    parser.add_argument("--lower-is-better", action="store_true", help=argparse.SUPPRESS)  # the old spelling
    parser.add_argument("--engine", type=str.lower, help="engine whose latency is judged (default: the fastest)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--run", metavar="NAME", help="judge only the latest run of this name")
    which.add_argument("--all", action="store_true", help="every run must pass")


def run(options: argparse.Namespace) -> int:
    """Print the verdicts.

    Args:
        options: Parsed arguments.

    Returns:
        0 if the gate is passed, 3 if not.

    Raises:
        ValueError: No limit, an unknown engine or run, or no record.
    """
    from paddlelite_callbacks.errors import near_names
    from paddlelite_callbacks.report.blocks import one_line
    from paddlelite_callbacks.report.gate import GATE_FAILED, Budget, judge, most_accurate
    from paddlelite_callbacks.report.record import Record, scan_records

    if options.metric_drop is not None and options.baseline is None:
        raise ValueError("--metric-drop needs --metric and --baseline to compare with: give both.")
    if options.metric is not None and options.baseline is None and options.metric_limit is None:
        raise ValueError(
            f"--metric {options.metric} needs a value to compare with: give --baseline, the large model's, or "
            "--metric-limit, the worst allowed value; without --metric no accuracy is judged."
        )
    if options.lower_is_better:
        if options.mode is not None:
            raise ValueError("--lower-is-better is the old spelling of --mode min, got both: give --mode alone.")
        sys.stderr.write("--lower-is-better is now --mode min; the old spelling goes with the next release.\n")
    budget = Budget(
        size_mb=options.size_mb,
        latency_ms=options.latency_ms,
        **({} if options.metric_drop is None else {"metric_drop": options.metric_drop}),
        metric=options.metric,
        baseline=options.baseline,
        metric_limit=options.metric_limit,
        mode="min" if options.lower_is_better else options.mode or "auto",
        relative=not options.absolute,
        engine=options.engine,
    )
    if not budget.has_limits:
        raise ValueError(
            "Got no limit. Give at least one limit: --size-mb, --latency-ms, or --metric with --baseline or "
            "--metric-limit."
        )
    path = Path(options.folder) / "runs.jsonl"
    if not path.is_file():
        raise ValueError(
            f"No record file {path}: give the folder of ExportBenchCallback(folder), after a fit has ended."
        )
    # an unreadable line is judged too: it fails, and older records of its name do not replace it
    latest = {one.name or f"line {getattr(one, 'line', '')}": one for one in scan_records(path.read_bytes())}
    if options.run is not None:
        if options.run not in latest:
            raise ValueError(
                f"Unknown run {options.run!r}; near names: {near_names(options.run, latest)}. Name one, or leave "
                "--run out for all."
            )
        latest = {options.run: latest[options.run]}
    if not latest:
        raise ValueError(f"{path} holds no run: let ExportBenchCallback write one.")
    records = [one for one in latest.values() if isinstance(one, Record)]
    if not records and options.run is None:
        said = "; ".join(one_line(one) for one in list(latest.values())[:3])
        raise ValueError(f"No record of {path} can be judged: {said}.")
    known = sorted({metric for record in records for metric in record.metrics})
    if budget.metric is not None and records and budget.metric not in known:
        raise ValueError(f"No run has the metric {budget.metric!r}; available: {known or 'none'}. Give one of these.")
    winner = most_accurate(records, budget) if budget.metric is not None else None
    passed, lines = [], []
    judged: list[dict[str, Any]] = []
    for name, one in latest.items():
        if isinstance(one, Record):
            verdict = judge(one, budget)
            passed.append(verdict.passed)
            lines.append(f"{one_line(name)}: {verdict}\n\n{verdict.table()}\n")
            criteria = [{**asdict(criterion), "passed": criterion.passed} for criterion in verdict.criteria]
            judged.append({"name": name, "passed": verdict.passed, "criteria": criteria, "error": None})
        else:
            passed.append(False)
            lines.append(f"{one_line(name)}: fail: its latest record cannot be judged: {one_line(one)}\n")
            judged.append({"name": name, "passed": False, "criteria": [], "error": one_line(one)})
    if budget.metric is not None:
        lines.append(f"Most accurate of those that pass: {winner.name}" if winner else "None passes.")
    whole = all(passed) if options.all else any(passed)
    if options.json:
        most = winner.name if winner else None
        write_json({"passed": whole, "runs": judged, "most_accurate": most, "budget": asdict(budget)})
    else:
        write_text("\n".join(lines) + "\n")
    return 0 if whole else GATE_FAILED
