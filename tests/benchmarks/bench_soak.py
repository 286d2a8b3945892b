"""200 fits (``SOAK_FITS``) in one process: what grows? ``python -m pytest tests/benchmarks/bench_soak.py -s``.

A tiny network, all four parts; every tenth fit has worker processes, every tenth one fails half-way, every 25th exports
to ONNX (without PACT). The slopes are of a line through the second half of the fits. `heap in use MB` is what is handed
out by ``malloc``, without the holes between: what of the resident memory is above it is fragments and Python's small
objects (`Python's memory blocks`). `bench_alone.py` has what of it others leave behind without us; `test_soak` holds to
none the objects of this package, and what Paddle keeps of an export and we clear away.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from soak import Soak, slope

FITS = int(os.environ.get("SOAK_FITS", "200"))


def test_soak(tmp_path, report):
    soak = Soak(tmp_path)
    for number in range(FITS):
        soak.step(number, onnx=number % 25 == 3)
    rows = soak.figures
    quarter = rows[len(rows) // 4]
    summary = {
        name: {
            "after a quarter": round(quarter[name], 2),
            "at the end": round(rows[-1][name], 2),
            "a fit": round(slope([row[name] for row in rows]), 4),
        }
        for name in rows[0]
    }
    report("soak", {"fits": FITS, "figures": summary})
