"""Read the guide's (PaddleSlim's) quantisation dictionary."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

__all__ = ["fields_of_guide"]

_log = logging.getLogger(__name__)

_FOLLOWED = {
    "weight_bits": "weight_bits",
    "activation_bits": "activation_bits",
    "quantizable_layer_type": "layer_types",
    "moving_rate": "observer_momentum",
}
_SCHEMES = {
    "activation_preprocess_type": ("PACT", None),
    "weight_preprocess_type": (None,),
    "weight_quantize_type": ("channel_wise_abs_max",),
}
_NO_EFFECT = ("activation_quantize_type", "window_size", "dtype", "fuse_conv_bn", "name")


def fields_of_guide(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `PACTConfig` that the guide's dictionary sets.

    The ``quantizer`` level is optional. ``weight_bits``, ``activation_bits``, ``quantizable_layer_type``,
    ``moving_rate`` (during calibration), ``weight_quantize_type: channel_wise_abs_max`` and
    ``activation_preprocess_type: PACT`` are used. Keys without effect here (the observer type, since the learned alpha
    is the scale; folding, which the export always does) are logged.

    Args:
        mapping: Dictionary such as ``{"activation_preprocess_type": "PACT", "weight_bits": 8}``.

    Raises:
        TypeError: Not a dictionary.
        ValueError: Unknown key, or an unsupported scheme.
    """
    if not isinstance(mapping, Mapping):
        raise TypeError(
            f"quantization must be a dictionary, got {type(mapping).__name__}: give one, as "
            f"{{'activation_preprocess_type': 'PACT'}}."
        )
    given = dict(mapping)
    for level in ("slim", "quantizer", "quantizer_config"):
        if isinstance(given.get(level), Mapping):
            given = dict(given[level])
    _check_schemes(given)
    idle = sorted(key for key in given if key in _NO_EFFECT)
    if idle:
        _log.info("No effect in PACTConfig, since the learned alpha is the scale: %s.", idle)
    return {_FOLLOWED[key]: given[key] for key in given if key in _FOLLOWED}


def _check_schemes(given: Mapping[str, Any]) -> None:
    known = {*_FOLLOWED, *_SCHEMES, *_NO_EFFECT}
    unknown = sorted(set(given) - known)
    if unknown:
        raise ValueError(f"Unknown keys {unknown} of quantization; available: {sorted(known)}. Leave the others out.")
    for key, allowed in _SCHEMES.items():
        if key in given and given[key] not in allowed:
            raise ValueError(
                f"{key} must be one of {list(allowed)}, got {given[key]!r}: leave it out, no other scheme is supported."
            )
