"""Find the image among a backbone's arguments, by position, key or keyword."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.backbone.channels import runs_on

__all__ = ["ImagePlace", "TakesImage", "image_place", "taking_image"]

Place = tuple[Any, ...]

_NAMES = ("image", "images", "img", "imgs", "pixel_values")  # of arguments and keys; "x" may be anything


@dataclass(frozen=True)
class ImagePlace:
    """Position of the image among a backbone's arguments.

    Args:
        place: Position or keyword of the argument, then keys and indices inside it.
        alone: Whether it is the only argument, and positional.
        asked: Key, keyword or position given by the user, if any.
    """

    place: Place
    alone: bool = False
    asked: str | int | None = None

    def of(self, inputs: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
        """Return the image of a call, positional or not.

        Args:
            inputs: Positional arguments.
            keywords: Keyword arguments.

        Raises:
            ValueError: The image is ambiguous.
        """
        found = dict(_tensors(inputs, keywords))
        if self.place in found and getattr(found[self.place], "ndim", 0) == 4:
            return found[self.place]
        return found[image_place(inputs, keywords, asked=self.asked).place]


def image_place(
    inputs: Sequence[Any], keywords: Mapping[str, Any], *, asked: str | int | None = None, name: str = "backbone"
) -> ImagePlace:
    """Find the image ``[N, C, H, W]`` among the arguments of a call.

    It is the only one; else the one under a name such as ``"image"``; else the only one with three channels.
    Floating-point tensors are preferred to integers.

    Args:
        inputs: Positional arguments: tensors, dictionaries, lists.
        keywords: Keyword arguments.
        asked: Key, keyword or position of the image, where given by the user.
        name: Name of the sublayer, for messages.

    Raises:
        ValueError: There is none, or it is ambiguous; the message lists all arguments.
    """
    found, alone = dict(_tensors(inputs, keywords)), len(inputs) == 1 and not keywords and hasattr(inputs[0], "ndim")
    maps = {place: value for place, value in found.items() if getattr(value, "ndim", 0) == 4}
    if asked is not None:
        named = [place for place in maps if place[-1] == asked]
        if len(named) != 1:
            which = "more than one" if named else "none"
            raise ValueError(
                f"The sublayer {name!r} gets {_told(inputs, keywords)}; image={asked!r} is {which} of its images "
                f"{sorted(map(_spelled, maps))}: give the key, keyword or position of one."
            )
        return ImagePlace(named[0], alone, asked)
    floating = {place: value for place, value in maps.items() if "float" in str(value.dtype)}
    candidates = floating or maps
    if len(candidates) > 1:
        named = [place for place in candidates if str(place[-1]).lower() in _NAMES]
        colours = [place for place, value in candidates.items() if int(value.shape[1]) == 3]
        chosen = named if len(named) == 1 else colours
        candidates = {place: candidates[place] for place in chosen} if len(chosen) == 1 else candidates
    if len(candidates) == 1:
        return ImagePlace(next(iter(candidates)), alone)
    more = f"; which of {sorted(map(_spelled, candidates))} is the image? Name it with image=" if candidates else ""
    raise ValueError(f"The sublayer {name!r} must take one image [N, C, H, W], got {_told(inputs, keywords)}{more}.")


class TakesImage(Layer):
    """Wrapper that runs a dict-input network on the image alone.

    It *is* the network: it has its sublayers, parameters and buffers under their names.

    Args:
        network: Network; used, not copied.
        place: Place of the image in the network's input, after any position.
    """

    def __init__(self, network: Layer, place: ImagePlace) -> None:
        super().__init__()
        self._sub_layers, self._parameters, self._buffers = network._sub_layers, network._parameters, network._buffers
        self._non_persistable_buffer_names_set = network._non_persistable_buffer_names_set
        self.training = network.training
        self._network: Layer
        self.__dict__["_network"] = network  # bypass registration as a sublayer
        self._place = place

    def forward(self, x: Tensor) -> Any:
        """Run the network on ``[N, C, H, W]``."""
        self._hand_down()
        inputs, keywords = _arguments(self._place, x)
        return self._network(*inputs, **keywords)

    @paddle.jit.not_to_static
    def _hand_down(self) -> None:
        self._network.training, self._network._sub_layers = self.training, self._sub_layers


def taking_image(network: Layer, x: Tensor, place: ImagePlace) -> Layer:
    """Wrap ``network`` to run on the image alone, where needed.

    Args:
        network: New backbone.
        x: Image batch ``[N, C, H, W]``.
        place: Place of the image among the old backbone's arguments.
    """
    if runs_on(network, x):
        return network
    for way in (place, ImagePlace((0, "image"))):
        wrapped = TakesImage(network, way)
        if way.place != (0,) and runs_on(wrapped, x):
            return wrapped
    return network  # its own error is raised where it is run


@paddle.jit.not_to_static
def _arguments(place: ImagePlace, x: Any) -> tuple[list[Any], dict[str, Any]]:
    first, *inside = place.place
    for key in reversed(inside):
        x = {key: x}
    return ([], {first: x}) if isinstance(first, str) else ([x], {})


def _tensors(inputs: Sequence[Any], keywords: Mapping[str, Any]) -> Iterator[tuple[Place, Any]]:
    """Yield the tensors among the arguments with their positions."""
    waiting: list[tuple[Place, Any]] = [*(((i,), item) for i, item in enumerate(inputs))]
    waiting += [((key,), item) for key, item in keywords.items()]
    while waiting:
        place, value = waiting.pop(0)
        if isinstance(value, Mapping):
            waiting += [((*place, key), item) for key, item in value.items()]
        elif isinstance(value, (list, tuple)):
            waiting += [((*place, i), item) for i, item in enumerate(value)]
        elif hasattr(value, "ndim") and hasattr(value, "dtype"):
            yield place, value


def _spelled(place: Place) -> str:
    return ".".join(map(str, place))


def _told(inputs: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
    """Return the shapes of nested arguments."""

    def shapes(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: shapes(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [shapes(item) for item in value]
        return list(value.shape) if hasattr(value, "shape") else type(value).__name__

    told = [shapes(item) for item in inputs]
    return told if not keywords else {**dict(enumerate(told)), **shapes(keywords)}
