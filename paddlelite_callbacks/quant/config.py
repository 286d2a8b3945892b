"""Options of PACT quantisation-aware training."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["ACTIVATIONS", "QUANTIZABLE", "PACTConfig"]

_log = logging.getLogger(__name__)

QUANTIZABLE = ("Conv2D", "Linear")
ACTIVATIONS = ("pact", "paddleslim")


@dataclass(frozen=True, kw_only=True)
class PACTConfig:
    """What is quantised, and how finely.

    Args:
        weight_bits: 2-8; weights are quantised per output channel, symmetrically, by their largest magnitude.
        activation_bits: 2-8; one learned clip value ``alpha`` per layer input.
        layer_types: names of layer classes, from ``Conv2D`` and ``Linear``; subclasses are left alone.
        include: globs over ``named_sublayers()`` names; a layer is converted when one matches.
        skip: globs of layers to leave in fp32; each must match a layer.
        alpha_percentile: ``alpha`` starts as this percentile of the absolute input of the first training batch.
        alpha_lr_scale: factor on the optimizer's learning rate for the alphas.
        activation: ``"pact"`` (ours) or ``"paddleslim"``, its ``PACTQuanter`` around Paddle's moving-average
            quanter, kept for comparison (8 bits only; its alpha hardly learns, see README).

    Raises:
        ValueError: a value out of range; the message says which are allowed.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    layer_types: Sequence[str] = QUANTIZABLE
    include: Sequence[str] = ("*",)
    skip: Sequence[str] = ()
    alpha_percentile: float = 99.9
    alpha_lr_scale: float = 1.0
    activation: str = "pact"

    def __post_init__(self) -> None:
        for name in ("weight_bits", "activation_bits"):
            bits = getattr(self, name)
            if not (isinstance(bits, int) and 2 <= bits <= 8):
                raise ValueError(f"{name} must be a whole number in [2, 8], got {bits!r}.")
        for name in ("layer_types", "include", "skip"):
            given = getattr(self, name)
            if isinstance(given, str) or not all(isinstance(item, str) for item in given):
                raise ValueError(f"{name} must be a list of strings, got {given!r}.")
            object.__setattr__(self, name, tuple(given))
        unknown = [name for name in self.layer_types if name not in QUANTIZABLE]
        if unknown or not self.layer_types:
            raise ValueError(f"layer_types must be some of {list(QUANTIZABLE)}, got {list(self.layer_types)}.")
        if not 50 < self.alpha_percentile <= 100:
            raise ValueError(f"alpha_percentile must be in (50, 100], got {self.alpha_percentile}.")
        if not 0 <= self.alpha_lr_scale < float("inf"):
            raise ValueError(f"alpha_lr_scale must be a finite number of at least 0, got {self.alpha_lr_scale}.")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {list(ACTIVATIONS)}, got {self.activation!r}.")
        if self.activation == "paddleslim" and self.activation_bits != 8:
            raise ValueError(
                f"activation='paddleslim' quantises to 8 bits, got activation_bits={self.activation_bits}."
            )

    @classmethod
    def from_guide(cls, mapping: Mapping[str, Any], **changes: Any) -> PACTConfig:
        """Read the guide's (PaddleSlim's) dictionary as it stands, with its ``quantizer`` level or without.

        ``weight_bits``, ``activation_bits``, ``quantizable_layer_type``, ``weight_quantize_type:
        channel_wise_abs_max`` and ``activation_preprocess_type: PACT`` are followed. Keys of which our scheme has no
        need (observer type and rates: the learned alpha is the scale) are logged as having no effect.

        Args:
            mapping: for instance ``{"activation_preprocess_type": "PACT", "weight_bits": 8}``.
            changes: fields that override it.

        Raises:
            ValueError: an unknown key, or a scheme that we do not have.
        """
        given = dict(mapping)
        for level in ("slim", "quantizer", "quantizer_config"):
            if isinstance(given.get(level), Mapping):
                given = dict(given[level])
        _refuse_other_schemes(given)
        idle = sorted(key for key in given if key in _NO_EFFECT)
        if idle:
            _log.info("No effect in PACTConfig, since the learned alpha is the scale: %s.", idle)
        fields = {_FOLLOWED[key]: given[key] for key in given if key in _FOLLOWED}
        return replace(cls(**fields), **changes)


_FOLLOWED = {
    "weight_bits": "weight_bits",
    "activation_bits": "activation_bits",
    "quantizable_layer_type": "layer_types",
}
_SCHEMES = {
    "activation_preprocess_type": ("PACT", None),
    "weight_preprocess_type": (None,),
    "weight_quantize_type": ("channel_wise_abs_max",),
}
_NO_EFFECT = ("activation_quantize_type", "window_size", "moving_rate", "dtype", "fuse_conv_bn", "name")


def _refuse_other_schemes(given: Mapping[str, Any]) -> None:
    known = {*_FOLLOWED, *_SCHEMES, *_NO_EFFECT}
    unknown = sorted(set(given) - known)
    if unknown:
        raise ValueError(f"Unknown quantisation keys {unknown}; known are {sorted(known)}.")
    for key, allowed in _SCHEMES.items():
        if key in given and given[key] not in allowed:
            raise ValueError(
                f"{key} must be one of {list(allowed)}, got {given[key]!r}: no other scheme is built here."
            )
