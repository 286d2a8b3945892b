"""Cut a network after its last used map, and return its maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import paddle
from paddle import Tensor
from paddle.nn import BatchNorm2D, Conv2D, Layer, LayerDict, Sequential

from paddlelite_callbacks.backbone.features import OUTPUT
from paddlelite_callbacks.backbone.image import ImagePlace
from paddlelite_callbacks.backbone.structure import maps_of, pack
from paddlelite_callbacks.nn.dtypes import default_dtype, parameter_dtype

__all__ = ["ArgumentTrunk", "Trunk"]


class _EnoughError(Exception):
    """Ends a forward pass after the last tapped map."""


class Trunk(Layer):
    """Run a network up to its last tapped map and return the tapped maps.

    The trunk *is* the network: it has its sublayers, parameters and buffers, so names in ``named_sublayers()`` and keys
    in ``state_dict`` are the network's own (``conv1.conv.weight``), and a layer replaced here is replaced there. Only
    projections, where channels had to be fitted, are added, as ``project.<i>``.

    Maps are collected by hooks that exist only during ``forward``: a copy, a quantised layer under an old name and an
    export do not see them. Any ``forward`` works, since it is left at the last map, not rewritten.

    Args:
        network: Network; used, not copied. Do not run it by itself any more.
        taps: Maps to return, see `find_taps`; ``name``, ``name:i`` for one of several, or ``output`` for the network's
            own.
        structure: Structure of the output, see `structure_of`.
    """

    def __init__(self, network: Layer, taps: Sequence[str], *, structure: Any = list) -> None:
        super().__init__()
        self._sub_layers = dict(network._sub_layers)
        self._parameters, self._buffers = network._parameters, network._buffers
        self._non_persistable_buffer_names_set = network._non_persistable_buffer_names_set
        self.training = network.training
        self._network: Layer
        self.__dict__["_network"] = network  # bypass registration as a sublayer
        self._taps, self._structure = list(taps), structure
        self._key = ""  # name of the projections
        self._still: list[str] = []  # names of layers kept in eval mode

    @property
    def taps(self) -> list[str]:
        """Return the names of the maps in order."""
        return list(self._taps)

    def fit_channels(self, channels: Sequence[tuple[int, int]]) -> None:
        """Add 1x1 projections with batch norm where channels differ.

        Args:
            channels: Per map, channels of the tap and wanted channels.
        """
        dtype = next((parameter_dtype(one) for one in self.parameters() if one.is_floating_point()), "float32")
        with default_dtype(dtype):
            fitted = {str(i): _projection(*pair) for i, pair in enumerate(channels) if pair[0] != pair[1]}
        if fitted:
            self._key = "project"
            while self._key in self._sub_layers:  # of a trunk inside this one
                self._key += "_"
            self.add_sublayer(self._key, LayerDict(fitted))

    def hold_still(self, names: Sequence[str]) -> None:
        """Keep the named layers in eval mode."""
        self._still = [*self._still, *(name for name in names if name not in self._still)]

    def forward(self, x: Tensor) -> Any:
        """Return the tapped maps for ``[N, 3, H, W]``."""
        return self._packed(x)

    def _packed(self, x: Tensor) -> Any:
        maps = self.maps(x)
        projections = self._sub_layers[self._key] if self._key else {}
        tapped = []
        for i, tap in enumerate(self._taps):
            tapped.append(projections[str(i)](maps[tap]) if str(i) in projections else maps[tap])
        return pack(tapped, self._structure)

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        """Return the tapped maps by name, without projections."""
        maps: dict[str, Tensor] = {}
        self._hand_down()
        with _collected(self, self._taps, maps):
            output = self._network(x)
            maps.update(_own_output(output))
        return maps

    @paddle.jit.not_to_static
    def _hand_down(self) -> None:
        """Apply the trunk's mode and layers to the network."""
        self._network.training = self.training
        self._network._sub_layers = {key: layer for key, layer in self._sub_layers.items() if key != self._key}
        for name in self._still:
            _below(self, name).training = False


class ArgumentTrunk(Trunk):
    """Trunk for a backbone with dict, keyword or several inputs.

    Args:
        network: See `Trunk`.
        taps: See `Trunk`.
        place: Place of the image among the arguments.
        structure: See `Trunk`.
    """

    def __init__(self, network: Layer, taps: Sequence[str], place: ImagePlace, *, structure: Any = list) -> None:
        super().__init__(network, taps, structure=structure)
        self._place = place

    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        """Find the image among the arguments and return the tapped maps."""
        return self._packed(_image_of(self._place, inputs, keywords))


@paddle.jit.not_to_static
def _image_of(place: ImagePlace, inputs: Any, keywords: Any) -> Any:
    return place.of(inputs, keywords)


@paddle.jit.not_to_static
def _own_output(output: Any) -> dict[str, Tensor]:
    return {f"{OUTPUT}{suffix}": value for suffix, value in maps_of(output).items()}


def _projection(have: int, want: int) -> Layer:
    return Sequential(Conv2D(have, want, 1, bias_attr=False), BatchNorm2D(want))


@paddle.jit.not_to_static  # plain Python also during a trace
@contextmanager
def _collected(network: Layer, taps: Sequence[str], maps: dict[str, Tensor]) -> Iterator[None]:
    """Collect the maps of ``taps``, and leave the block once complete."""
    awaited = set(taps)

    def keep(name: str) -> Any:
        def hook(layer: Layer, inputs: Any, output: Any) -> None:
            for suffix, value in maps_of(output).items():
                if f"{name}{suffix}" in awaited:
                    maps[f"{name}{suffix}"] = value
            if awaited <= maps.keys():
                raise _EnoughError

        return hook

    names = {tap.partition(":")[0] for tap in taps} - {OUTPUT}
    hooks = [_below(network, name).register_forward_post_hook(keep(name)) for name in names]
    try:
        yield
    except _EnoughError:
        pass
    finally:
        for hook in hooks:
            hook.remove()


def _below(network: Layer, name: str) -> Layer:
    """Return sublayer ``name`` without listing all; keys may contain dots."""
    if name in network._sub_layers:
        return network._sub_layers[name]
    for key, child in network._sub_layers.items():
        if child is not None and name.startswith(f"{key}."):
            with suppress(KeyError):
                return _below(child, name[len(key) + 1 :])
    raise KeyError(name)
