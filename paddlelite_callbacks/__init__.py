"""Callbacks that make any vision model trained with ``paddle.Model`` small and fast, and prove it.

What is wanted, and the name for it:

- a lighter network in place of a heavy one, before training: `BackboneSwap`, `list_backbones`;
- a teacher in ``model.fit``: `DistillCallback`, with `OutputTerm` and `FeatureTerm` for more than one loss,
  `MutualPeer` and `EMATeacher` where there is no teacher, `cache_teacher` to run it only once;
- int8: `PACTQuantCallback`, with `AdvancedPACTOptions` or a `PACTConfig`; `prepare_pact_` before a checkpoint of a
  quantised network is loaded; `ptq_int8` without training;
- an installation and a machine that fit: `doctor`;
- files that are checked and timed: `ExportBenchCallback`, with `ExportOptions`, `BenchOptions`, and a `Budget` to
  keep;
- the same callbacks in a training loop of your own: `training_loop`;
- errors: `NonFiniteLossError`, `GateError`, `ExportError`, `MissingDependencyError`.

The command line does the rest: ``python -m paddlelite_callbacks --help``. What the help texts mention beside these
lives in modules of the package: ``backbone.catalogue.Backbone``, ``backbone.catalogue.render_table``,
``backbone.comparison.SwapSummary``, ``backbone.weights.LoadReport``, ``benchmark.doctor.Finding``,
``export.variants.export_forms``, ``distill.losses.afd.AttentionFeatureLoss``, ``distill.losses.registry.LOSSES``,
``distill.losses.features.Projection``,
``callbacks.pact.diagnosis.Diagnosis``, ``quant.guide.fields_of_guide``, ``quant.output_quantizers.output_places``,
``quant.quantizers.ChannelWeightQuantizer``, ``quant.quantizers.PACTActivationQuantizer``, ``report.record.Record``,
``report.gate.Verdict``, ``utils.safe_load.read_saved``.

The names are imported when first used: importing the package itself loads neither Paddle nor anything else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from paddlelite_callbacks._version import __version__

if TYPE_CHECKING:
    from paddlelite_callbacks.backbone.catalogue import list_backbones
    from paddlelite_callbacks.backbone.swap import BackboneSwap
    from paddlelite_callbacks.benchmark.doctor import doctor
    from paddlelite_callbacks.benchmark.options import BenchOptions
    from paddlelite_callbacks.callbacks.distill.callback import DistillCallback
    from paddlelite_callbacks.callbacks.export.callback import ExportBenchCallback
    from paddlelite_callbacks.callbacks.export.options import ExportOptions
    from paddlelite_callbacks.callbacks.pact.callback import PACTQuantCallback
    from paddlelite_callbacks.callbacks.training_loop import training_loop
    from paddlelite_callbacks.distill.cache import cache_teacher
    from paddlelite_callbacks.distill.ema import EMATeacher
    from paddlelite_callbacks.distill.mutual import MutualPeer
    from paddlelite_callbacks.distill.terms import FeatureTerm, OutputTerm
    from paddlelite_callbacks.errors import ExportError, MissingDependencyError, NonFiniteLossError
    from paddlelite_callbacks.quant.checkpoint import load_pact_
    from paddlelite_callbacks.quant.config import AdvancedPACTOptions, PACTConfig
    from paddlelite_callbacks.quant.prepare import prepare_pact_
    from paddlelite_callbacks.quant.ptq import ptq_int8
    from paddlelite_callbacks.report.gate import Budget, GateError

__all__ = [
    "AdvancedPACTOptions",
    "BackboneSwap",
    "BenchOptions",
    "Budget",
    "DistillCallback",
    "EMATeacher",
    "ExportBenchCallback",
    "ExportError",
    "ExportOptions",
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
    "doctor",
    "list_backbones",
    "load_pact_",
    "prepare_pact_",
    "ptq_int8",
    "training_loop",
]

_HOMES = {
    "AdvancedPACTOptions": "quant.config",
    "BackboneSwap": "backbone.swap",
    "BenchOptions": "benchmark.options",
    "Budget": "report.gate",
    "DistillCallback": "callbacks.distill.callback",
    "EMATeacher": "distill.ema",
    "ExportBenchCallback": "callbacks.export.callback",
    "ExportError": "errors",
    "ExportOptions": "callbacks.export.options",
    "FeatureTerm": "distill.terms",
    "GateError": "report.gate",
    "MissingDependencyError": "errors",
    "MutualPeer": "distill.mutual",
    "NonFiniteLossError": "errors",
    "OutputTerm": "distill.terms",
    "PACTConfig": "quant.config",
    "PACTQuantCallback": "callbacks.pact.callback",
    "cache_teacher": "distill.cache",
    "doctor": "benchmark.doctor",
    "list_backbones": "backbone.catalogue",
    "load_pact_": "quant.checkpoint",
    "prepare_pact_": "quant.prepare",
    "ptq_int8": "quant.ptq",
    "training_loop": "callbacks.training_loop",
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
