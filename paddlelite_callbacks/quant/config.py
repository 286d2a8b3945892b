"""Define options of quantisation-aware training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from paddlelite_callbacks.utils.numbers import check_number, check_whole
from paddlelite_callbacks.utils.representation import constructor_repr

__all__ = ["ACTIVATIONS", "CALIBRATIONS", "METHODS", "QUANTIZABLE", "AdvancedPACTOptions", "PACTConfig", "ptq_defaults"]

QUANTIZABLE = ("Conv2D", "Conv2DTranspose", "Linear")
ACTIVATIONS = ("pact", "paddleslim")
METHODS = ("pact", "lsq")
CALIBRATIONS = ("min_max", "percentile", "mse", "kl")
_PERCENTILE = 99.9
_FEW_BITS = 4  # from here down KL mostly keeps more than MSE without training; training starts better from MSE


@dataclass(frozen=True, kw_only=True)
class PACTConfig:
    """Options of quantisation-aware training: layers, grids, schedule.

    The placement of quantizers decides which engine computes in int8. Inputs and weights of converted layers always
    have them, and OpenVINO needs no more (PP-LCNet_x2_5: 0.42 of the best fp32 time, ResNet50 0.37). ONNX Runtime
    computes a convolution in int8 only if its output is quantised too, and is two times slower than fp32 otherwise;
    ``quantize_outputs`` trains that (PP-LCNet_x2_5 0.82, ResNet50 0.45 in ONNX Runtime), for one more rounding per
    layer. README has the measurements.

    Args:
        weight_bits: Weight bits, 2-8; weights are quantised per output channel, symmetrically.
        reduce_range: Whether 8-bit weights use half their range, integers up to 64 instead of 127, so that no CPU can
            saturate: those without VNNI (AVX2 alone, AMD Zen 2 and 3, Intel before Ice Lake) add two products in 16
            bits, and compute other outputs from a file on the full range. ``False`` for targets with VNNI or ARM. No
            effect below 8 bits.
        activation_bits: Activation bits, 2-8; one learned clip value ``alpha`` per layer input.
        activation_symmetric: Whether activations are signed integers with zero point 0 on a symmetric grid, ``[-127,
            127]`` for 8 bits, even if never negative. Paddle Lite, TensorRT and NPUs support no other grid, so networks
            for them must be trained on it. ``False`` uses all ``2^bits`` values, as ONNX Runtime and OpenVINO on x86
            support.
        layer_types: Names of layer classes, from ``Conv2D``, ``Conv2DTranspose`` and ``Linear``; their subclasses with
            the same ``forward`` count.
        include: Globs over ``named_sublayers()`` names; matching layers are converted.
        skip: Globs of layers to leave in fp32; each must match a layer.
        quantize_outputs: Whether to quantise outputs of convolutions, after their batch normalisation, too.
        method: ``"pact"`` (weights scaled by their largest magnitude) or ``"lsq"`` (learned weight steps).
        activation: ``"pact"`` (this package's) or ``"paddleslim"``, its ``PACTQuanter`` around Paddle's moving-average
            quantizer, for comparison (8 bits only; its alpha hardly learns, see README).
        calibration: Initial ``alpha`` from the input of the first training batches: ``"min_max"`` (the largest
            magnitude), ``"percentile"``, ``"mse"`` (the smallest squared error of quantisation) or ``"kl"`` (the
            entropy calibration of TensorRT). ``None`` for ``"percentile"`` with ``alpha_percentile``, else ``"mse"``;
            `ptq_int8` and `quantize` take ``"kl"`` up to 4 bits.
        alpha_percentile: Percentile of the absolute input for ``"percentile"``, in (50, 100]; ``None`` for 99.9.
        calibration_batches: Number of batches; with more than one, ``alpha`` is a moving average of percentiles, and
            by the other methods of the values of all batches.
        observer_momentum: Momentum of that average, in [0, 1).
        alpha_lr_scale: Factor on the learning rate of the alphas. With optimizers that normalise gradients (Adam and
            its kin) `PACTQuantCallback` sets it in units of each alpha: 1 moves an alpha in a step by about 10 learning
            rates of its value, as weights of 0.1 move; with others it is a factor on the optimizer's rate.
        alpha_decay: L2 penalty on the alphas instead of the optimizer's own ``weight_decay``, which applies otherwise
            (as in the paper); that of ``AdamW`` does not apply to activations' alphas in `PACTQuantCallback`.
        lr_scale: Factor on the learning rate or scheduler of the user's optimizer during ``fit``; the guide advises
            0.2-0.5. 1 has no effect.
        start_epoch: First quantised epoch of this ``fit``, from 0; earlier ones train in fp32.
        freeze_bn_after: Number of epochs of this ``fit`` after which batch-norm statistics are frozen; ``None`` for
            never.
        freeze_scales_after: Number of epochs after which the alphas are frozen; ``None`` for never.
        fp32_epochs: Epochs of the fp32 training; a hint is logged if ``fit`` runs more than half of them, which is more
            than the recipe needs.

    Raises:
        ValueError: A value out of range; the message lists the allowed ones.

    Example:
        >>> config = PACTConfig(weight_bits=4, skip=["head.*"], freeze_bn_after=2)
        >>> PACTQuantCallback(config)  # or the same options without it  # doctest: +SKIP
    """

    weight_bits: int = 8
    reduce_range: bool = True
    activation_bits: int = 8
    activation_symmetric: bool = False
    layer_types: Sequence[str] = QUANTIZABLE
    include: Sequence[str] = ("*",)
    skip: Sequence[str] = ()
    quantize_outputs: bool = False
    method: str = "pact"
    activation: str = "pact"
    calibration: str | None = None
    alpha_percentile: float | None = None
    calibration_batches: int = 1
    observer_momentum: float = 0.9
    alpha_lr_scale: float = 1.0
    alpha_decay: float | None = None
    lr_scale: float = 0.5
    start_epoch: int = 0
    freeze_bn_after: int | None = None
    freeze_scales_after: int | None = None
    fp32_epochs: int | None = None

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        for name in ("layer_types", "include", "skip"):
            given = getattr(self, name)
            if isinstance(given, str) or not all(isinstance(item, str) for item in given):
                raise ValueError(f"{name} must be a list of strings, got {given!r}: write {name}=[...].")
            object.__setattr__(self, name, tuple(given))
        unknown = [name for name in self.layer_types if name not in QUANTIZABLE]
        if unknown or not self.layer_types:
            raise ValueError(
                f"layer_types must be some of {list(QUANTIZABLE)}, got {list(self.layer_types)}: leave it out for all."
            )
        self._check_numbers()
        self._check_choices()

    def _check_numbers(self) -> None:
        for name in ("weight_bits", "activation_bits"):
            self._check_whole(name, 2, 8)
        self._check_whole("calibration_batches", 1)
        self._check_whole("start_epoch", 0)
        for name in ("freeze_bn_after", "freeze_scales_after"):
            if getattr(self, name) is not None:
                self._check_whole(name, 0)
        if self.fp32_epochs is not None:
            self._check_whole("fp32_epochs", 1)
        if self.alpha_percentile is not None:
            self._check("alpha_percentile", lambda value: 50 < value <= 100, "in (50, 100]")
        self._check("observer_momentum", lambda value: 0 <= value < 1, "in [0, 1)")
        self._check("alpha_lr_scale", lambda value: 0 <= value < math.inf, "a finite number of at least 0")
        if self.alpha_decay is not None:
            self._check("alpha_decay", lambda value: 0 <= value < math.inf, "a finite number of at least 0, or None")
        self._check("lr_scale", lambda value: 0 < value < math.inf, "a finite number above 0")

    def _check_whole(self, name: str, least: int, most: int | None = None) -> None:
        check_whole(name, getattr(self, name), least, most, remedy=_default(name))

    def _check(self, name: str, allowed: Callable[[float], bool], words: str) -> None:
        check_number(name, getattr(self, name), allowed, words, remedy=_default(name))

    def _check_choices(self) -> None:
        if not isinstance(self.reduce_range, bool):
            raise ValueError(
                f"reduce_range must be True or False, got {self.reduce_range!r}: leave it out, unless every target "
                "has VNNI or is ARM."
            )
        if not isinstance(self.quantize_outputs, bool):
            raise ValueError(
                f"quantize_outputs must be True or False, got {self.quantize_outputs!r}: use True for ONNX Runtime."
            )
        if not isinstance(self.activation_symmetric, bool):
            raise ValueError(
                f"activation_symmetric must be True or False, got {self.activation_symmetric!r}: use True for "
                "Paddle Lite, TensorRT and NPUs."
            )
        for name, allowed in (("activation", ACTIVATIONS), ("method", METHODS)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {list(allowed)}, got {getattr(self, name)!r}: {_default(name)}."
                )
        if self.calibration not in (None, *CALIBRATIONS):
            raise ValueError(
                f"calibration must be one of {list(CALIBRATIONS)}, got {self.calibration!r}: leave it out for "
                "the default."
            )
        if self.alpha_percentile is not None and self.calibration not in (None, "percentile"):
            raise ValueError(
                f"alpha_percentile={self.alpha_percentile} needs calibration='percentile', got {self.calibration!r}: "
                "leave one of the two out."
            )
        if self.activation == "pact":
            return
        if self.activation_bits != 8:
            raise ValueError(
                f"activation='paddleslim' needs activation_bits=8, got activation_bits={self.activation_bits}: "
                "leave one of the two out."
            )
        ours = {
            "method": "pact",
            "quantize_outputs": False,
            "start_epoch": 0,
            "calibration_batches": 1,
            "activation_symmetric": False,
        }
        for name, only in ours.items():
            if getattr(self, name) != only:
                raise ValueError(
                    f"activation='paddleslim' needs {name}={only!r}, got {getattr(self, name)!r}: leave one out."
                )

    @property
    def resolved_calibration(self) -> tuple[str, float]:
        """Calibration method and percentile in effect."""
        chosen = self.calibration or ("mse" if self.alpha_percentile is None else "percentile")
        return chosen, _PERCENTILE if self.alpha_percentile is None else self.alpha_percentile

    @classmethod
    def from_guide(cls, mapping: Mapping[str, Any], **changes: Any) -> PACTConfig:
        """Build a config from the guide's (PaddleSlim's) dictionary.

        Args:
            mapping: Dictionary such as ``{"activation_preprocess_type": "PACT", "weight_bits": 8}``.
            changes: Fields that override it.

        Raises:
            ValueError: Unknown key, or an unsupported scheme.
        """
        from paddlelite_callbacks.quant.guide import fields_of_guide

        return cls(**{**fields_of_guide(mapping), **changes})


def ptq_defaults(config: PACTConfig) -> PACTConfig:
    """Return ``config`` with the default calibration of `ptq_int8`.

    That is ``"kl"`` up to 4 bits of the activations: no training can move the ranges of ``"mse"`` afterwards.

    Args:
        config: Options; a calibration or percentile in them is kept.
    """
    if config.calibration is None and config.alpha_percentile is None and config.activation_bits <= _FEW_BITS:
        return replace(config, calibration="kl")
    return config


@dataclass(frozen=True, kw_only=True)
class AdvancedPACTOptions:
    """Options of `PACTQuantCallback` that are rarely changed.

    They are the fields of `PACTConfig` that are not arguments of the callback.

    Args:
        layer_types: See `PACTConfig`; the same holds for all.
        activation: ``"pact"`` or ``"paddleslim"``.
        calibration: Initial ``alpha``: ``"min_max"``, ``"percentile"``, ``"mse"`` or ``"kl"``; ``None`` for
            ``"percentile"`` with ``alpha_percentile``, else ``"mse"``.
        alpha_percentile: Percentile of the absolute input, in (50, 100]; ``None`` for 99.9.
        calibration_batches: Number of calibration batches, at least 1.
        observer_momentum: Momentum of their moving average, in [0, 1).
        alpha_lr_scale: Factor on the learning rate of the alphas, at least 0; with Adam and its kin in units of each
            alpha's value, see `PACTConfig`.
        alpha_decay: L2 penalty on the alphas; ``None`` for the optimizer's own.
        fp32_epochs: Epochs of the fp32 training; a hint is logged if ``fit`` runs more than half of them.

    Raises:
        ValueError: A value out of range; the message lists the allowed ones.

    Example:
        >>> PACTQuantCallback(advanced=AdvancedPACTOptions(alpha_percentile=100))  # doctest: +SKIP
    """

    layer_types: Sequence[str] = QUANTIZABLE
    activation: str = "pact"
    calibration: str | None = None
    alpha_percentile: float | None = None
    calibration_batches: int = 1
    observer_momentum: float = 0.9
    alpha_lr_scale: float = 1.0
    alpha_decay: float | None = None
    fp32_epochs: int | None = None

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        PACTConfig(**vars(self))


def _default(name: str) -> str:
    """Describe the default of an option."""
    return f"leave it out for {PACTConfig.__dataclass_fields__[name].default!r}"
