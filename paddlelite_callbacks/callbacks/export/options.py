"""Options of `ExportBenchCallback` on what is exported, and how it is checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddle.static import InputSpec

from paddlelite_callbacks.callbacks.export.arguments import check_input_spec, checked_forms
from paddlelite_callbacks.export.lite import LiteOptions, checked_targets
from paddlelite_callbacks.export.metadata import checked_sidecar_options
from paddlelite_callbacks.export.onnx_export import DEFAULT_OPSET, checked_opset
from paddlelite_callbacks.utils.metric_direction import checked_mode
from paddlelite_callbacks.utils.representation import constructor_repr

__all__ = ["ExportOptions"]


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What `ExportBenchCallback` exports beside the usual files, and how strictly.

    Args:
        forms: further forms to write; ``["pdmodel"]`` writes ``model.pdmodel``, the program in the format of Paddle 2,
            which Paddle Lite and older tools read (with ``model.pdiparams``; of a network trained with
            ``activation_symmetric`` as ``model.int8.pdmodel`` with ``quantize_linear``); ``["lite"]`` Paddle Lite's own
            files, ``model.arm.nb`` and, of such a network, ``model.int8.arm.nb``. Size and gate then count these.
        targets: what the files for Paddle Lite are for, ``"arm"`` and ``"x86"``; quantised ones are for ARM alone.
        opt: Paddle Lite's ``opt``: a Python with ``paddlelite``, or a binary; ``None`` for what ``PADDLE_LITE_OPT``
            names, this Python's, or that on the path.
        onnx_opset: opset of the ONNX files, 13-19.
        fp16: whether to write ``model.fp16.onnx`` too: half the bytes, computed in fp32.
        input_spec: one `InputSpec` per input; ``None`` takes the sizes of the first batch with a free batch size.
            ``None`` in it leaves a size free; checks and timing then run at the sizes of the first batch.
        dynamic_batch: ``False`` fixes the batch size of the files to the timed one.
        sidecar: for ``deploy.json``, any of ``preprocess`` and ``postprocess`` (dictionaries) and ``labels`` (names).
        monitor: metric of the evaluation that decides which epoch was the best, for ``which="best"``; ``None`` for the
            first metric, else the loss.
        mode: ``"max"``, ``"min"``, or ``"auto"``: by the name (smaller for ``loss``, ``err``, ``rmse``, ``nme``, ...).
        preflight: whether a copy of the network is traced and converted at train begin (seconds; with the first batch
            where the sizes of the inputs are not known before), so that what cannot be exported is said before hours
            of training: as an error where nothing could be exported, or not what ``engines``, ``budget``, ``fp16``,
            ``forms`` or ``strict`` ask for; as a warning for any other file. ``False`` trains all the same.
        strict: ``True`` raises `ExportError` when all that is right is written, if a file is missing, or an engine that
            is installed, or was named, differs or cannot run a file.
        report: whether to draw ``report.md``, ``report.html`` and their pictures.

    Raises:
        TypeError: an ``input_spec`` without `InputSpec`, or a switch that is no bool.
        ValueError: an unknown form, target or mode, an ``onnx_opset`` out of range, or a ``sidecar`` that JSON cannot
            hold.

    Example:
        >>> ExportBenchCallback("out", export=ExportOptions(fp16=True, forms=["pdmodel"]))  # doctest: +SKIP
    """

    forms: Sequence[str] = ()
    targets: Sequence[str] = ("arm",)
    opt: str | Path | None = None
    onnx_opset: int = DEFAULT_OPSET
    fp16: bool = False
    input_spec: Sequence[InputSpec] | None = None
    dynamic_batch: bool = True
    sidecar: Mapping[str, Any] | None = None
    monitor: str | None = None
    mode: str = "auto"
    preflight: bool = True
    strict: bool = False
    report: bool = True

    __repr__ = constructor_repr

    @property
    def lite(self) -> LiteOptions | None:
        """Return the options for Paddle Lite; ``None`` where no file for it is asked for."""
        return LiteOptions(targets=self.targets, opt=self.opt) if "lite" in self.forms else None

    def __post_init__(self) -> None:
        check_input_spec(self.input_spec)
        object.__setattr__(self, "forms", checked_forms(self.forms))
        object.__setattr__(self, "targets", checked_targets(self.targets))
        checked_opset(self.onnx_opset)
        if self.opt is not None and not isinstance(self.opt, (str, Path)):
            raise TypeError(
                f"opt must be a path, got {type(self.opt).__name__}: opt='lite/bin/python', or leave it out."
            )
        checked_sidecar_options(self.sidecar)
        if self.monitor is not None and not isinstance(self.monitor, str):
            raise TypeError(f"monitor must be the name of a metric or None, got {self.monitor!r}: monitor='acc'.")
        checked_mode(self.mode)
        for name in ("fp16", "dynamic_batch", "preflight", "strict", "report"):
            if not isinstance(value := getattr(self, name), bool):
                default = type(self).__dataclass_fields__[name].default
                raise TypeError(f"{name} must be True or False, got {value!r}: leave it out for {default}.")
