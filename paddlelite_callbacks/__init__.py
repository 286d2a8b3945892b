"""Callbacks that make any vision model trained with ``paddle.Model`` small and fast, and prove it.

The names below are imported when first used: importing the package itself loads neither Paddle nor anything else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from paddlelite_callbacks._version import __version__

if TYPE_CHECKING:
    from paddlelite_callbacks.backbone.catalogue import list_backbones
    from paddlelite_callbacks.backbone.swap import BackboneSwap
    from paddlelite_callbacks.callbacks.distill import DistillCallback
    from paddlelite_callbacks.callbacks.export_bench import ExportBenchCallback
    from paddlelite_callbacks.callbacks.pact_quant import PACTQuantCallback
    from paddlelite_callbacks.distill.cache import cache_teacher
    from paddlelite_callbacks.distill.ema import EMATeacher
    from paddlelite_callbacks.distill.mutual import MutualPeer
    from paddlelite_callbacks.distill.terms import FeatureTerm, OutputTerm
    from paddlelite_callbacks.errors import MissingDependencyError, NonFiniteLossError
    from paddlelite_callbacks.quant.checkpoint import load_pact_
    from paddlelite_callbacks.quant.config import PACTConfig
    from paddlelite_callbacks.quant.prepare import prepare_pact_
    from paddlelite_callbacks.quant.ptq import ptq_int8
    from paddlelite_callbacks.report.gate import Budget, GateError

__all__ = [
    "BackboneSwap",
    "Budget",
    "DistillCallback",
    "EMATeacher",
    "ExportBenchCallback",
    "FeatureTerm",
    "GateError",
    "MissingDependencyError",
    "MutualPeer",
    "NonFiniteLossError",
    "OutputTerm",
    "PACTConfig",
    "PACTQuantCallback",
    "__version__",
    "cache_teacher",
    "list_backbones",
    "load_pact_",
    "prepare_pact_",
    "ptq_int8",
]

_HOMES = {
    "BackboneSwap": "backbone.swap",
    "Budget": "report.gate",
    "DistillCallback": "callbacks.distill",
    "EMATeacher": "distill.ema",
    "ExportBenchCallback": "callbacks.export_bench",
    "FeatureTerm": "distill.terms",
    "GateError": "report.gate",
    "MissingDependencyError": "errors",
    "MutualPeer": "distill.mutual",
    "NonFiniteLossError": "errors",
    "OutputTerm": "distill.terms",
    "PACTConfig": "quant.config",
    "PACTQuantCallback": "callbacks.pact_quant",
    "cache_teacher": "distill.cache",
    "list_backbones": "backbone.catalogue",
    "load_pact_": "quant.checkpoint",
    "prepare_pact_": "quant.prepare",
    "ptq_int8": "quant.ptq",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; the public names are {__all__}")
    try:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    except AttributeError as error:  # Python would take it for "there is no such name" and hide what is wrong
        raise ImportError(f"{__name__}.{name} cannot be imported: {error}") from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
