"""Moved to `benchmark.options`, `benchmark.load`, `benchmark.timing`."""

from paddlelite_callbacks.utils.deprecation import forwarded

__getattr__, __dir__ = forwarded(
    __name__,
    {
        "BenchOptions": "benchmark.options",
        "LoadedFiles": "benchmark.load",
        "Timing": "benchmark.timing",
        "latency_row": "benchmark.options",
        "load_files": "benchmark.load",
        "repeated_rows": "benchmark.options",
        "time_files": "benchmark.timing",
    },
)
