"""Moved to `report.ladder_table`, `report.pareto`, `report.write`."""

from paddlelite_callbacks.utils.deprecation import forwarded

__getattr__, __dir__ = forwarded(
    __name__,
    {
        "ladder_blocks": "report.ladder_table",
        "ladder_markdown": "report.ladder_table",
        "ladder_png": "report.pareto",
        "metric_cell": "report.ladder_table",
        "verdict_cell": "report.ladder_table",
        "write_ladder": "report.write",
        "write_whole": "report.write",
    },
)
