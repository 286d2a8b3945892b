"""Moved to `utils.atomic_files`."""

from paddlelite_callbacks.utils.deprecation import forwarded

__getattr__, __dir__ = forwarded(
    __name__,
    {
        "link_or_copy": "utils.atomic_files",
        "locked": "utils.atomic_files",
        "put_in_place": "utils.atomic_files",
        "check_replaceable": "utils.atomic_files",
        "check_path": "utils.atomic_files",
        "check_writable": "utils.atomic_files",
        "check_appendable": "utils.atomic_files",
        "staged_file": "utils.atomic_files",
        "staged_files": "utils.atomic_files",
        "staged_folder": "utils.atomic_files",
    },
)
