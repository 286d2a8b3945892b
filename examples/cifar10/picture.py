"""Draw the ladder: accuracy of the files against their size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from table import NAMES, by_rung, file_accuracy, precision_of

from paddlelite_callbacks.report.intervals import mean_half_width
from paddlelite_callbacks.utils.atomic_files import staged_file

__all__ = ["draw"]


def draw(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw mean accuracy, and over several seeds its 95 % interval, against MB of the ONNX file.

    Args:
        lines: Lines of the teacher and of one light network, see ``rung.line_of``.
        path: The ``.png`` to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(figsize=(7, 4.2), dpi=120)
    rows = by_rung(lines)
    for number, name in enumerate(name for name in NAMES if name in rows):
        same = rows[name]
        precision = precision_of(same[0])
        values = [100 * file_accuracy(line, precision) for line in same]
        size = same[0]["size_mb"].get(f"{precision} onnx")
        if size is None:  # no ONNX file was written
            continue
        colour = f"C{number % 10}"
        axes.errorbar(
            size, np.mean(values), yerr=mean_half_width(values), fmt="s" if precision == "int8" else "o", color=colour,
            capsize=3,
            label=f"{NAMES[name]}: {np.mean(values):.1f} %, {size:.2f} MB",
        )  # fmt: skip
    axes.set(xscale="log", xlabel="MB of the ONNX file (1e6 bytes)", ylabel="accuracy of the file, %")
    axes.xaxis.set_major_locator(ticker.FixedLocator([0.1, 0.2, 0.3, 0.5, 1, 2, 3, 5, 10]))
    axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.set_title("CIFAR-10, 10,000 test images")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.tight_layout()
    with staged_file(path) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})
    pyplot.close(figure)
