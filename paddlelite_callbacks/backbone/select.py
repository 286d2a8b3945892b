"""Select maps of the new backbone for those of the old one."""

from __future__ import annotations

from collections.abc import Sequence

import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.backbone.features import OUTPUT, Tap, find_taps, tap_spelling
from paddlelite_callbacks.backbone.strides import Stride, checked_stride, stride_between
from paddlelite_callbacks.backbone.structure import maps_of
from paddlelite_callbacks.backbone.trunk import Trunk
from paddlelite_callbacks.errors import near_names
from paddlelite_callbacks.nn.surgery import same_modes
from paddlelite_callbacks.utils.error_text import reason

__all__ = ["chosen_taps", "maps_at", "taps_of"]

_PROBE = 224


def taps_of(network: Layer, x: Tensor, *, end: str | None = None) -> list[Tap]:
    """Return the taps of ``network``, searched at 224x224 where ``x`` is too small.

    Args:
        network: Network; run once.
        x: Image batch ``[N, C, H, W]``.
        end: Name of the last layer of its trunk, if known.

    Raises:
        ValueError: It has none, or it cannot be run.
    """
    sides = [int(side) for side in x.shape[2:]]
    probes = [x]
    if min(sides) < 2 * 64 or any(side % 32 for side in sides):
        probes.insert(0, paddle.zeros([1, x.shape[1], _PROBE, _PROBE], dtype=x.dtype))
    problem = "no layer of its trunk returns a map of a stride 1, 2, 4, ... 64 along each axis"
    for probe in probes:
        try:
            if taps := find_taps(network, probe, end=end):
                return taps
        except Exception as error:  # the size or the channels do not suit this network
            problem = f"it cannot be run on {list(probe.shape)}: {reason(error)}"
    raise ValueError(f"{type(network).__name__} cannot be used as a backbone: {problem}. Choose another network.")


def chosen_taps(
    name: str,
    network: Layer,
    taps: Sequence[Tap],
    wanted: Sequence[Tensor],
    x: Tensor,
    asked: Sequence[str | Stride] | None,
    *,
    end: str | None = None,
) -> list[str]:
    """Select a tap for each map of ``wanted``.

    Args:
        name: Name of the new backbone, for messages.
        network: New backbone.
        taps: Its taps.
        wanted: Maps of the old backbone.
        x: Input of both, ``[N, C, H, W]``.
        asked: Names or strides, one per map; ``None`` takes the default tap of each map's size.
        end: Name of the last layer of its trunk, if known.

    Raises:
        ValueError: Unknown name, stride or size; the message lists the available ones.
    """
    defaults = [tap for tap in taps if tap.default]
    if asked is None:
        sizes = _sizes(maps_at(network, [tap.name for tap in defaults], x))
        if any(_size(old) not in sizes.values() for old in wanted):
            sizes = {**_own_sizes(network, x, end), **sizes}
        return [_of_size(name, defaults, sizes, _size(old), x) for old in wanted]
    if len(asked) != len(wanted):
        one = (
            f" One stride (height, width) is written [{tuple(asked)}]." if len(asked) == 2 and len(wanted) == 1 else ""
        )
        raise ValueError(f"The old backbone returns {len(wanted)} maps, so give {len(wanted)} taps, got {asked}.{one}")
    names = [_named(name, network, taps, tap) for tap in asked]
    sizes = _sizes(maps_at(network, names, x))
    for tap, old in zip(names, wanted, strict=True):
        if sizes[tap] != _size(old):
            raise ValueError(
                f"Tap {tap!r} of {name} returns {sizes[tap]} (height, width) for an input {list(x.shape)}, the old "
                f"map is {_size(old)}. Choose among its maps by stride: {_by_stride(defaults)}."
            )
    return names


def _own_sizes(network: Layer, x: Tensor, end: str | None) -> dict[str, list[int]]:
    """Return sizes that only ``x`` gives, such as of an adaptive pool."""
    with same_modes(network), paddle.no_grad():
        network.eval()
        own = {f"{OUTPUT}{suffix}": value for suffix, value in maps_of(network(x)).items()}
    seen = [tap.name for tap in find_taps(network, x, end=end) if tap.default and tap.name not in own]
    return {**_sizes(maps_at(network, seen, x) if seen else {}), **_sizes(own)}


def maps_at(network: Layer, names: Sequence[str], x: Tensor) -> dict[str, Tensor]:
    """Run ``network`` as far as needed and return the named maps.

    Args:
        network: Network; run once, in eval mode.
        names: Names of its sublayers.
        x: Image batch ``[N, C, H, W]``.
    """
    with same_modes(network), paddle.no_grad():
        trunk = Trunk(network, names)
        trunk.eval()
        return trunk.maps(x)


def _named(name: str, network: Layer, taps: Sequence[Tap], asked: str | Stride) -> str:
    defaults = [tap for tap in taps if tap.default]
    if not isinstance(asked, str):
        stride = checked_stride(asked)
        fitting = [tap.name for tap in defaults if tap.stride == stride]
        if not fitting:
            raise ValueError(
                f"{name} has no map of stride {stride}. Choose among its maps by stride: {_by_stride(defaults)}."
            )
        return fitting[-1]
    spelled = tap_spelling(asked)
    known = [tap.name for tap in taps]
    spelled = {tap_spelling(tap).rstrip("."): tap for tap in known}.get(spelled.rstrip("."), spelled)
    if spelled in known or spelled.partition(":")[0] in dict(network.named_sublayers()):
        return spelled
    raise ValueError(f"{name} has no tap {asked!r}; near names: {near_names(spelled, known)}. Choose among {known}.")


def _of_size(name: str, defaults: Sequence[Tap], sizes: dict[str, list[int]], size: list[int], x: Tensor) -> str:
    fitting = [tap for tap, found in sizes.items() if found == size]
    if not fitting:
        stride = stride_between(x.shape[2:], size)
        what = f"size {size} for an input {list(x.shape)}"
        odd = any(int(side) % 32 for side in x.shape[2:])
        raise ValueError(
            f"{name} has no map of {what if stride is None else f'stride {stride} ({what})'}; its maps by stride"
            f"{_pairs(stride, defaults)}: {_by_stride(defaults)}. Choose another backbone, or change strides with "
            "options=... or the network."
            + (" Use input sides divisible by 32 to avoid rounding differences." if odd else "")
        )
    return fitting[-1]


def _pairs(stride: Stride | None, defaults: Sequence[Tap]) -> str:
    strides = [stride, *(tap.stride for tap in defaults)]
    return " (height, width)" if any(isinstance(one, tuple) for one in strides) else ""


def _by_stride(defaults: Sequence[Tap]) -> dict[Stride, str]:
    return {tap.stride: tap.name for tap in defaults}


def _size(value: Tensor) -> list[int]:
    return [int(side) for side in value.shape[2:]]


def _sizes(maps: dict[str, Tensor]) -> dict[str, list[int]]:
    return {tap: _size(value) for tap, value in maps.items()}
