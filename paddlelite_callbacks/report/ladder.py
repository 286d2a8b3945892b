"""Moved to `report.retime`."""

from paddlelite_callbacks.utils.deprecation import forwarded

__getattr__, __dir__ = forwarded(
    __name__,
    {
        "append_joint_timing": "report.retime",
        "timed_together": "report.retime",
    },
)
