"""Load checkpoints of PACT networks; quantised layers are found by their keys."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle.nn import Layer

from paddlelite_callbacks.errors import near_names
from paddlelite_callbacks.quant.bias_correction import add_bias_
from paddlelite_callbacks.quant.config import PACTConfig
from paddlelite_callbacks.quant.prepare import prepare_pact_, quantized_layers
from paddlelite_callbacks.quant.quantizers import activation_settings, read_grid, weight_settings
from paddlelite_callbacks.quant.switch import refresh_quantizers_
from paddlelite_callbacks.utils.safe_load import read_saved

__all__ = ["load_pact_", "quantized_in"]

_log = logging.getLogger(__name__)
_INPUT, _OUTPUT, _WEIGHT = ".activation_quanter.", ".output_quanter.", ".weight_quanter."


def load_pact_(
    network: Layer, checkpoint: str | Path | Mapping[str, Any], *, weight_bits: int | None = None
) -> PACTConfig:
    """Quantise ``network`` like ``checkpoint``, and load it.

    For export, evaluation or training of a network that was trained with `PACTQuantCallback`: the options are read from
    the checkpoint. One of a version that did not save the weight grid is taken for the full range
    (``reduce_range=False``) and, unless ``weight_bits`` is given, for 8 bits. A file is loaded without executing code,
    see `read_saved`. After an error ``network`` is unchanged.

    Args:
        network: Network as it was before PACT; changed in place.
        checkpoint: A ``.pdparams`` file, its prefix (``"checkpoints/3"``), or a ``state_dict``.
        weight_bits: Bits of the weights in training, 2-8; ``None`` for those of the checkpoint.

    Returns:
        The training options, without schedules and learning rates.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is truncated or would run code, has no quantised layer, is of another network, or was
            trained with other bits than ``weight_bits``.

    Example:
        >>> network = resnet18(num_classes=10)  # doctest: +SKIP
        >>> load_pact_(network, "checkpoints/final")  # doctest: +SKIP
        >>> ExportBenchCallback("out").export(network, images)  # doctest: +SKIP
    """
    state, where = _state_of(checkpoint)
    layers = quantized_in(state)
    if not layers:
        raise ValueError(
            f"{where} has no layer quantised with PACT: load it with network.set_state_dict, or model.load."
        )
    known = [name for name, _ in network.named_sublayers()]
    mine = [name for name in layers if name in known]  # the keys hold all names of a shared layer
    if not mine:
        raise ValueError(
            f"{where} is of another network: {type(network).__name__} has no layer {layers[0]!r}; near names: "
            f"{near_names(layers[0], known)}. Build the network that was trained."
        )
    grids, options = _weight_grids(state), _options(state, where)
    bits, reduce_range = _weight_options(grids, weight_bits, where)
    config = PACTConfig(include=mine, weight_bits=bits, reduce_range=reduce_range, **options)
    outputs = [name for name in _names(state, _OUTPUT) if name in known]
    undo = prepare_pact_(network, config, outputs=outputs)
    try:
        own = {key: value for key, value in network.state_dict().items() if key.endswith(f"{_WEIGHT}grid")}
        state = {**(own if not grids else {}), **state}
        _add_biases_(network, state)
        _check_fit(network, state, where)
        network.set_state_dict(_as_in(network, state))
        refresh_quantizers_(network)
    except BaseException:
        undo.close()
        raise
    return config


def quantized_in(state: Mapping[str, Any]) -> list[str]:
    """Return the names of quantised layers in ``state``; empty for fp32.

    Args:
        state: A ``state_dict``.
    """
    return _names(state, _INPUT)


def _names(state: Mapping[str, Any], quantizer: str) -> list[str]:
    return list(dict.fromkeys(key.partition(quantizer)[0] for key in state if quantizer in key))


def _state_of(checkpoint: Any) -> tuple[Mapping[str, Any], str]:
    if isinstance(checkpoint, Mapping):
        return checkpoint, "The state_dict"
    if not isinstance(checkpoint, (str, Path)):
        raise TypeError(
            f"checkpoint must be a path or a state_dict, got {type(checkpoint).__name__}: call load_pact_(network, "
            "'checkpoints/final')."
        )
    path = Path(checkpoint)
    if not path.is_file():
        path = path.with_name(f"{path.name}.pdparams")
    state = read_saved(path)
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a state_dict: give a .pdparams file.")
    return state, str(path)


def _options(state: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not any(key.endswith(f"{_INPUT}grid") for key in state):
        return {"activation": "paddleslim"}
    options: dict[str, Any] = {"quantize_outputs": any(_OUTPUT in key for key in state)}
    options["method"] = "lsq" if any(key.endswith(f"{_WEIGHT}alpha") for key in state) else "pact"
    grids = {key: read_grid(state[key]) for key in state if key.endswith((f"{_INPUT}grid", f"{_OUTPUT}grid"))}
    found = {_one(activation_settings(*grid)): key for key, grid in grids.items() if any(grid)}  # zeros: uncalibrated
    if len(found) > 1 or None in found:
        raise ValueError(
            f"{where} holds activation grids of different settings: "
            f"{ {key: list(grids[key]) for key in found.values()} }. Give a checkpoint of one PACT training."
        )
    for setting in found:
        options["activation_bits"], options["activation_symmetric"] = setting
    return options


def _weight_grids(state: Mapping[str, Any]) -> dict[str, float]:
    """Return the highest integer of each weight by key."""
    return {key: read_grid(state[key])[1] for key in state if key.endswith(f"{_WEIGHT}grid")}


def _weight_options(grids: Mapping[str, float], asked: int | None, where: str) -> tuple[int, bool]:
    """Return bits and ``reduce_range`` of the weights."""
    if not grids:
        bits = 8 if asked is None else asked
        if bits == 8:
            _log.warning(
                "%s does not contain its weight grid: assuming 8 bits on the full range (reduce_range=False), as "
                "earlier versions trained. On a CPU without VNNI its int8 files may give other outputs.",
                where,
            )
        return bits, bits != 8
    found = {_one(weight_settings(high)): key for key, high in grids.items()}
    if len(found) > 1 or None in found:
        raise ValueError(
            f"{where} holds weight grids of different settings: they end at "
            f"{ {key: grids[key] for key in found.values()} }. Give a checkpoint of one PACT training."
        )
    bits, reduce_range = next(setting for setting in found if setting is not None)
    if asked not in (None, bits):
        raise ValueError(f"{where} was trained with weight_bits={bits}, got weight_bits={asked}: leave it out.")
    return bits, reduce_range


def _one(settings: list[Any]) -> Any:
    return settings[0] if settings else None


def _as_in(network: Layer, state: Mapping[str, Any]) -> dict[str, Any]:
    """Cast floating-point values of ``state`` to the network's types."""
    types = {key: value.dtype for key, value in network.state_dict().items()}
    tensors = {key: paddle.to_tensor(value) for key, value in state.items() if key in types}
    return {key: value.astype(types[key]) if value.is_floating_point() else value for key, value in tensors.items()}


def _add_biases_(network: Layer, state: Mapping[str, Any]) -> None:
    """Add the biases that bias correction gave to layers without one."""
    for name, layer in quantized_layers(network).items():
        value = state.get(f"{name}.bias")
        if layer.bias is None and value is not None:
            add_bias_(layer, np.zeros(list(value.shape), "float32"))


def _check_fit(network: Layer, state: Mapping[str, Any], where: str) -> None:
    wanted = {key: list(value.shape) for key, value in network.state_dict().items()}
    given = {key: list(value.shape) for key, value in state.items() if hasattr(value, "shape")}
    wrong = sorted(wanted.keys() ^ given.keys()) or sorted(key for key in wanted if wanted[key] != given[key])
    if wrong:
        key = wrong[0]
        raise ValueError(
            f"{where} is of another network: {len(wrong)} keys or shapes differ, the first is {key!r}, "
            f"{wanted.get(key, 'missing')} in {type(network).__name__} and {given.get(key, 'missing')} in the "
            "checkpoint. Build the network that was trained."
        )
