"""Run the CIFAR-10 ladder over several seeds.

Rungs: teacher, light network alone, distilled, quantised, and both. Each runs in a separate process (``rung.py``).
Started again after an interruption, the same command resumes unfinished rungs and skips finished ones. Writes
``ladder.jsonl``, ``table.md``, and of one light network ``short.md`` and ``accuracy.png`` after each rung.

    python examples/cifar10/ladder.py --data cifar-10-python.tar.gz --jobs 2
    python examples/cifar10/ladder.py --quick                # smoke test on drawn images
    python examples/cifar10/ladder.py --table-only --out examples/results/cifar10
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from picture import draw
from rung import RUNGS, TEACHER, add_flags, lines_of
from table import markdown, summary

from paddlelite_callbacks.utils.atomic_files import staged_file

__all__ = ["main", "parse"]

Job = tuple[str, int]


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Read the command line; also return the arguments passed to every rung."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    own = parser.add_argument_group("the ladder")
    own.add_argument("--rungs", nargs="+", choices=RUNGS, help="rungs to run (default: all)")
    own.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="seeds of the light networks")
    own.add_argument("--jobs", type=int, default=1, metavar="N", help="rungs at a time, single-threaded (default: 1)")
    own.add_argument("--table-only", action="store_true", help="only write the table from ladder.jsonl")
    given = list(sys.argv[1:] if arguments is None else arguments)
    _, rungs_own = parser.parse_known_args([item for item in given if item not in ("-h", "--help")])
    add_flags(parser)
    flags = parser.parse_args(given)
    if flags.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {flags.jobs}")
    return flags, rungs_own


def jobs_of(flags: argparse.Namespace) -> list[Job]:
    """Return the rungs to run, each after those that it needs."""
    rungs = [name for name in RUNGS if name in (flags.rungs or RUNGS)]
    seeds = [0] if flags.quick else flags.seeds
    jobs = [(TEACHER, 0)] if TEACHER in rungs else []
    return jobs + [(name, seed) for seed in seeds for name in rungs if name != TEACHER]


def needs(job: Job) -> list[Job]:
    """Return the rungs that must be finished before ``job``."""
    name, seed = job
    rung = RUNGS[name]
    return [(TEACHER, 0)] * bool(rung.loss) + [(start, seed) for start in [rung.start] if start]


def finished(flags: argparse.Namespace) -> set[Job]:
    """Return the rungs in ``ladder.jsonl``."""
    return {(line["rung"], line["seed"]) for line in lines_of(flags) if line["light"] in (None, flags.light)}


def run_all(flags: argparse.Namespace, options: Sequence[str]) -> list[Job]:
    """Run missing rungs, ``flags.jobs`` at a time; return those that failed.

    Rungs that could not start, as one that they need failed, are returned too.
    """
    waiting, failed = [job for job in jobs_of(flags) if job not in finished(flags)], []
    mine = set(waiting)
    running: dict[Job, subprocess.Popen] = {}
    while waiting or running:
        for job in [job for job in waiting if len(running) < flags.jobs]:
            if any(need in mine and need not in finished(flags) for need in needs(job)):
                if any(need in failed for need in needs(job)):
                    waiting.remove(job)
                    failed.append(job)
                continue
            if len(running) < flags.jobs:
                waiting.remove(job)
                running[job] = _started(job, options)
        for job, process in list(running.items()):
            if process.poll() is None:
                continue
            del running[job]
            if process.returncode:
                print(f"=== {job[0]}, seed {job[1]} failed with exit code {process.returncode}", flush=True)
                failed.append(job)
            write_table(flags)
        time.sleep(0.2)
    return failed


def _started(job: Job, options: Sequence[str]) -> subprocess.Popen:
    print(f"=== {job[0]}, seed {job[1]}", flush=True)
    script = Path(__file__).with_name("rung.py")
    return subprocess.Popen(
        [sys.executable, "-u", str(script), *options, "--rung", job[0], "--seed", str(job[1])],
        stdin=subprocess.DEVNULL,
    )


def write_table(flags: argparse.Namespace) -> str:
    """Write tables and picture beside ``ladder.jsonl``; return the full table."""
    lines = lines_of(flags)
    if not lines:
        return ""
    folder, mine = flags.out / ("holdout" if flags.holdout else ""), (None, flags.light)
    texts = {"table.md": markdown(lines), "short.md": summary([line for line in lines if line["light"] in mine])}
    for name, text in texts.items():
        with staged_file(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
    draw([line for line in lines if line["light"] in mine], folder / "accuracy.png")
    return texts["table.md"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ladder; return 1 if a rung failed, else 0."""
    flags, options = parse(arguments)
    failed = [] if flags.table_only else run_all(flags, options)
    print(write_table(flags))
    for name, seed in failed:
        print(f"Not finished: {name}, seed {seed}. Start the same command again to go on.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
