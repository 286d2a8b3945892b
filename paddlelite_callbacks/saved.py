"""Moved to `utils.safe_load`."""

from paddlelite_callbacks.utils.deprecation import forwarded

__getattr__, __dir__ = forwarded(
    __name__,
    {
        "read_saved": "utils.safe_load",
        "check_no_code": "utils.safe_load",
    },
)
