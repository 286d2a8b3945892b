"""Moved to `benchmark.engines`, `utils.error_text`."""

from paddlelite_callbacks.utils.deprecation import forwarded

__getattr__, __dir__ = forwarded(
    __name__,
    {
        "ENGINES": "benchmark.engines",
        "Engine": "benchmark.engines",
        "EngineError": "benchmark.engines",
        "OnnxRuntime": "benchmark.engines",
        "OpenVino": "benchmark.engines",
        "PaddleInference": "benchmark.engines",
        "in_batches": "benchmark.engines",
        "missing_reason": "benchmark.engines",
        "reason": "utils.error_text",
    },
)
