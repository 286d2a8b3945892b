"""CPU seconds of a whole report by the number of runs and of record lines, each in a process of its own.

``python -m pytest tests/benchmarks/bench_report.py -s``. CPU seconds of the process, not the clock's: they hold on a
machine that others use too. Counted from after the import of Paddle; Matplotlib's import is in. The issue asks for less
than 5 s at 1,000 runs, and at 300 runs of 5,000 lines: each joint timing of a ladder adds a line a run.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

CODE = """
import json, random, sys, time
from dataclasses import replace
from pathlib import Path
sys.path[:0] = [sys.argv[1] + "/report", sys.argv[1] + "/helpers"]
from test_report_many import BUDGET, many, write
from paddlelite_callbacks.report.write import write_report
folder = Path(sys.argv[2])
runs, lines = many(int(sys.argv[3])), int(sys.argv[4])
again = [replace(random.choice(runs), retimes=True, history=(), config={}) for _ in range(lines - len(runs))]
write(folder, [*runs, *again])
cpu, wall = time.process_time(), time.perf_counter()
write_report(folder, budget=BUDGET)
figures = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
figures["html_mb"] = (folder / "report.html").stat().st_size / 1e6
print(json.dumps(figures))
"""


def test_a_report_of_many_runs(tmp_path, report):
    tests, figures = str(Path(__file__).parents[1]), {}
    for runs, lines in ((10, 10), (100, 100), (1000, 1000), (300, 5000)):
        folder = tmp_path / str(lines)
        folder.mkdir()
        command = [sys.executable, "-c", CODE, tests, str(folder), str(runs), str(lines)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        figures[f"{runs} runs, {lines} lines"] = json.loads(done.stdout.splitlines()[-1])
    report("report", figures)
