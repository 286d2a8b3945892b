"""Options of `ExportBenchCallback` from one flat dictionary, as tests share and change them."""

from __future__ import annotations

from typing import Any

from paddlelite_callbacks import BenchOptions, ExportOptions

FILES = frozenset(ExportOptions.__dataclass_fields__)
TIMING = frozenset(BenchOptions.__dataclass_fields__) - {"engines"}


def grouped(**options: Any) -> dict[str, Any]:
    """Return the callback's arguments: fields of `ExportOptions` and `BenchOptions` in their groups."""
    files = {name: options.pop(name) for name in FILES & options.keys()}
    timing = {name: options.pop(name) for name in TIMING & options.keys()}
    groups = {"export": ExportOptions(**files)} if files else {}
    return {**options, **groups, **({"benchmark": BenchOptions(**timing)} if timing else {})}
