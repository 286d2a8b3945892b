"""Options of `ExportBenchCallback`: exported files and checks."""

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
    """Options of `ExportBenchCallback` for the exported files and their checks.

    Args:
        forms: Additional file formats. ``["pdmodel"]`` writes ``model.pdmodel``, the program in the format of Paddle 2,
            for Paddle Lite and older tools (with ``model.pdiparams``; for a network trained with
            ``activation_symmetric`` as ``model.int8.pdmodel`` with ``quantize_linear``). ``["lite"]`` writes Paddle
            Lite's own files, ``model.arm.nb`` and, for such a network, ``model.int8.arm.nb``; size and gate then count
            these.
        targets: Targets of the Paddle Lite files, ``"arm"`` and ``"x86"``; quantised files are written for ARM only.
        opt: ``opt`` tool of Paddle Lite: a Python with ``paddlelite``, or a binary; ``None`` looks in
            ``PADDLE_LITE_OPT``, then this Python, then the path.
        onnx_opset: Opset of the ONNX files, 13-19.
        fp16: Whether to write ``model.fp16.onnx`` too: half the bytes, computed in fp32.
        input_spec: One `InputSpec` per input; ``None`` takes the sizes of the first batch with a dynamic batch size. A
            size of ``None`` is dynamic; checks and timing then run at the sizes of the first batch.
        dynamic_batch: Whether the batch size of the files is dynamic; ``False`` fixes it to the timed one.
        sidecar: Contents for ``deploy.json``: any of ``preprocess`` and ``postprocess`` (dictionaries) and ``labels``
            (names).
        monitor: Evaluation metric that selects the best epoch for ``which="best"``; ``None`` for the first metric, or
            the loss if there is none.
        mode: ``"max"``, ``"min"``, or ``"auto"``: by the name (lower for ``loss``, ``err``, ``rmse``, ``nme``, ...).
        preflight: Whether to trace and convert a copy of the network at train begin (takes seconds; with the first
            batch if the input sizes are not known earlier), to find export failures before training. It raises if
            nothing could be exported, or not what ``engines``, ``budget``, ``fp16``, ``forms`` or ``strict`` require,
            and warns about any other file.
        strict: Whether to raise `ExportError`, after all correct files are written, if a file is missing, or differs
            or cannot run on an engine that is installed or was named.
        report: Whether to write ``report.md``, ``report.html`` and their pictures.

    Raises:
        TypeError: An ``input_spec`` without `InputSpec`, or a switch that is not a bool.
        ValueError: An unknown form, target or mode, an ``onnx_opset`` out of range, or a ``sidecar`` that cannot be
            stored as JSON.

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
        """Return the options for Paddle Lite; ``None`` if no such file is requested."""
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
