"""Moved to `report.gate`."""

from paddlelite_callbacks.utils.deprecation import forwarded

__getattr__, __dir__ = forwarded(
    __name__,
    {
        "Criterion": "report.gate",
        "EngineVerdict": "report.gate",
        "GATE_FAILED": "report.gate",
        "GateError": "report.gate",
        "Verdict": "report.gate",
    },
)
