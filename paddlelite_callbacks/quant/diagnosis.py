"""Moved to `callbacks.pact.diagnosis`."""

from paddlelite_callbacks.utils.deprecation import forwarded

__getattr__, __dir__ = forwarded(
    __name__,
    {
        "Diagnosis": "callbacks.pact.diagnosis",
        "diagnose": "callbacks.pact.diagnosis",
        "metric_of": "callbacks.pact.diagnosis",
        "score_of": "callbacks.pact.diagnosis",
    },
)
