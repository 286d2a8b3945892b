"""Callbacks that make vision models of Paddle small and fast, and prove it.

Features and their names:

- a lighter network in place of a heavy one, before training: `BackboneSwap`, `list_backbones`;
- a teacher in ``model.fit``: `DistillCallback`, with `OutputTerm` and `FeatureTerm` for more than one loss,
  `MutualPeer` and `EMATeacher` where there is no teacher, `cache_teacher` to run it only once;
- int8: `PACTQuantCallback`, with `AdvancedPACTOptions` or a `PACTConfig`; `prepare_pact_` before a checkpoint of a
  quantised network is loaded; `ptq_int8` without training;
- an installation and a machine that fit: `doctor`; depthwise networks trained faster on a CPU: `compiled_depthwise`;
- files that are checked and timed: `ExportBenchCallback`, with `ExportOptions`, `BenchOptions`, and a `Budget` to
  keep;
- the same callbacks in a training loop of your own: `training_loop`;
- a ready file in int8, without network and training: `quantize`;
- all of it in one call: `lighten`;
- errors: `NonFiniteLossError`, `GateError`, `ExportError`, `MissingDependencyError`.

The command line does the rest: ``python -m paddlelite_callbacks --help``. Beside these: `schedules` for weights that
change in training, `LOSSES` and `AttentionFeatureLoss` to compare with, `export_forms` to write the files of a network,
and `read_saved` to read a file of ``paddle.save`` without running what is in it. What is returned or used by these, and
can be imported from here too: `Backbone`, `render_table`, `SwapSummary`, `LoadReport`, `Finding`, `Lightened`,
`Quantized`, `Projection`, `Diagnosis`, `Record`, `Verdict`, `fields_of_guide`, `output_places`,
`ChannelWeightQuantizer`, `PACTActivationQuantizer`.

The names are imported when first used: importing the package itself loads neither Paddle nor anything else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from paddlelite_callbacks._version import __version__

if TYPE_CHECKING:
    from paddlelite_callbacks.backbone.catalogue import Backbone as Backbone
    from paddlelite_callbacks.backbone.catalogue import list_backbones
    from paddlelite_callbacks.backbone.catalogue import render_table as render_table
    from paddlelite_callbacks.backbone.comparison import SwapSummary as SwapSummary
    from paddlelite_callbacks.backbone.swap import BackboneSwap
    from paddlelite_callbacks.backbone.weights import LoadReport as LoadReport
    from paddlelite_callbacks.benchmark.doctor import Finding as Finding
    from paddlelite_callbacks.benchmark.doctor import doctor
    from paddlelite_callbacks.benchmark.options import BenchOptions
    from paddlelite_callbacks.callbacks.distill.callback import DistillCallback
    from paddlelite_callbacks.callbacks.export.callback import ExportBenchCallback
    from paddlelite_callbacks.callbacks.export.options import ExportOptions
    from paddlelite_callbacks.callbacks.pact.callback import PACTQuantCallback
    from paddlelite_callbacks.callbacks.pact.diagnosis import Diagnosis as Diagnosis
    from paddlelite_callbacks.callbacks.training_loop import training_loop
    from paddlelite_callbacks.distill import schedules
    from paddlelite_callbacks.distill.cache import cache_teacher
    from paddlelite_callbacks.distill.ema import EMATeacher
    from paddlelite_callbacks.distill.losses.afd import AttentionFeatureLoss
    from paddlelite_callbacks.distill.losses.features import Projection as Projection
    from paddlelite_callbacks.distill.losses.registry import LOSSES
    from paddlelite_callbacks.distill.mutual import MutualPeer
    from paddlelite_callbacks.distill.terms import FeatureTerm, OutputTerm
    from paddlelite_callbacks.errors import ExportError, MissingDependencyError, NonFiniteLossError
    from paddlelite_callbacks.export.variants import export_forms
    from paddlelite_callbacks.quant.checkpoint import load_pact_
    from paddlelite_callbacks.quant.config import AdvancedPACTOptions, PACTConfig
    from paddlelite_callbacks.quant.guide import fields_of_guide as fields_of_guide
    from paddlelite_callbacks.quant.output_quantizers import output_places as output_places
    from paddlelite_callbacks.quant.prepare import prepare_pact_
    from paddlelite_callbacks.quant.ptq import ptq_int8
    from paddlelite_callbacks.quant.quantizers import ChannelWeightQuantizer as ChannelWeightQuantizer
    from paddlelite_callbacks.quant.quantizers import PACTActivationQuantizer as PACTActivationQuantizer
    from paddlelite_callbacks.recipes.lighten import Lightened as Lightened
    from paddlelite_callbacks.recipes.lighten import lighten
    from paddlelite_callbacks.recipes.quantize import Quantized as Quantized
    from paddlelite_callbacks.recipes.quantize import quantize
    from paddlelite_callbacks.report.comparison import Comparison as Comparison
    from paddlelite_callbacks.report.comparison import compare_folders
    from paddlelite_callbacks.report.gate import Budget, GateError
    from paddlelite_callbacks.report.gate import Verdict as Verdict
    from paddlelite_callbacks.report.record import Record as Record
    from paddlelite_callbacks.report.write import write_report
    from paddlelite_callbacks.utils.safe_load import read_saved
    from paddlelite_callbacks.workarounds.depthwise_training import compiled_depthwise

__all__ = [
    "LOSSES",
    "AdvancedPACTOptions",
    "AttentionFeatureLoss",
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
    "compare_folders",
    "compiled_depthwise",
    "doctor",
    "export_forms",
    "lighten",
    "list_backbones",
    "load_pact_",
    "prepare_pact_",
    "ptq_int8",
    "quantize",
    "read_saved",
    "schedules",
    "training_loop",
    "write_report",
]

_HOMES = {
    "AdvancedPACTOptions": "quant.config",
    "AttentionFeatureLoss": "distill.losses.afd",
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
    "LOSSES": "distill.losses.registry",
    "MissingDependencyError": "errors",
    "MutualPeer": "distill.mutual",
    "NonFiniteLossError": "errors",
    "OutputTerm": "distill.terms",
    "PACTConfig": "quant.config",
    "PACTQuantCallback": "callbacks.pact.callback",
    "cache_teacher": "distill.cache",
    "compare_folders": "report.comparison",
    "compiled_depthwise": "workarounds.depthwise_training",
    "doctor": "benchmark.doctor",
    "export_forms": "export.variants",
    "lighten": "recipes.lighten",
    "list_backbones": "backbone.catalogue",
    "load_pact_": "quant.checkpoint",
    "prepare_pact_": "quant.prepare",
    "ptq_int8": "quant.ptq",
    "quantize": "recipes.quantize",
    "read_saved": "utils.safe_load",
    "schedules": "distill",
    "training_loop": "callbacks.training_loop",
    "write_report": "report.write",
    # returned or used by these
    "Backbone": "backbone.catalogue",
    "ChannelWeightQuantizer": "quant.quantizers",
    "Comparison": "report.comparison",
    "Diagnosis": "callbacks.pact.diagnosis",
    "Finding": "benchmark.doctor",
    "Lightened": "recipes.lighten",
    "LoadReport": "backbone.weights",
    "PACTActivationQuantizer": "quant.quantizers",
    "Projection": "distill.losses.features",
    "Quantized": "recipes.quantize",
    "Record": "report.record",
    "SwapSummary": "backbone.comparison",
    "Verdict": "report.gate",
    "fields_of_guide": "quant.guide",
    "output_places": "quant.output_quantizers",
    "render_table": "backbone.catalogue",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; the public names are {__all__}")
    home = f"{__name__}.{_HOMES[name]}"
    try:
        is_module = name == "schedules"
        value = importlib.import_module(f"{home}.{name}") if is_module else getattr(importlib.import_module(home), name)
    except AttributeError as error:  # Python would take it for "there is no such name" and hide what is wrong
        raise ImportError(f"{__name__}.{name} cannot be imported: {error}") from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
