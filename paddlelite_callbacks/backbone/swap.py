"""`BackboneSwap`: a light backbone in the place of a heavy one."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import paddle
from paddle import Tensor
from paddle.nn import Layer
from paddle.static import InputSpec

from paddlelite_callbacks.backbone.catalogue import build_classifier, trunk_sections
from paddlelite_callbacks.backbone.trunk import Trunk, structure_of, unpack
from paddlelite_callbacks.surgery import find_sublayer, replace_sublayer, same_modes

__all__ = ["BackboneSwap"]

_log = logging.getLogger(__name__)


class BackboneSwap:
    """Swap a heavy backbone for a light one of paddleclas, before ``paddle.Model`` is made.

    With ``at=None`` a whole classifier is swapped: the call returns a new light classifier with a head for the same
    number of classes; the given network is left alone. With ``at="backbone"`` the sublayer of that name is replaced
    in place: the old one is run once to learn the sizes, channels and structure of its maps; taps of the new one with
    the same sizes are chosen, channels fitted by 1x1 convolutions with batch norm only where they differ, and what
    lies behind the last tap is dropped. The rest of the network keeps its weights.

    The guide's choices: ``PPLCNet_x2_5`` (~30 MB), ``MobileNetV3_large_x1_0`` (~20 MB),
    ``MobileNetV3_small_x1_0`` (~10 MB).

    Args:
        name: a network of ``paddleclas.ppcls.arch.backbone``; with ``at``, one of the PPLCNet or MobileNetV3 family.
        at: name of the sublayer to replace, as in ``named_sublayers()``; ``None`` for a whole classifier.
        taps: names of the maps to use, for instance ``["blocks3", "blocks4"]``; ``None`` chooses by size.
        pretrained: ``True`` downloads paddleclas's ImageNet weights, a path loads a ``.pdparams`` file.
        options: further arguments of the paddleclas factory, for instance ``{"stride_list": [1, 2, 2, 2, 1]}``.

    Example:
        >>> light = BackboneSwap("MobileNetV3_small_x1_0")(paddle.vision.models.resnet50())  # doctest: +SKIP
    """

    def __init__(
        self,
        name: str,
        *,
        at: str | None = None,
        taps: Sequence[str] | None = None,
        pretrained: bool | str | Path = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if at is None and taps is not None:
            raise ValueError("taps go with at='...': a whole classifier has no maps to hand on.")
        self.name, self.at, self.taps = name, at, None if taps is None else list(taps)
        self.pretrained, self.options = pretrained, dict(options or {})
        self._sections = None if at is None else trunk_sections(name)

    def __call__(self, network: Layer, *, input_spec: Sequence[InputSpec] | None = None) -> Layer:
        """Swap.

        Args:
            network: a classifier (``at=None``), or a network with the sublayer ``at``.
            input_spec: one `InputSpec` per input of ``network``, the batch may be ``None``; needed with ``at``, and
                for a classifier whose number of classes its last ``Linear`` does not tell.

        Returns:
            A new network with ``at=None``, otherwise ``network``, changed.

        Raises:
            TypeError: ``network`` is no ``paddle.nn.Layer``.
            ValueError: names, taps, sizes or weights that do not fit; the message says which would.
        """
        if isinstance(network, paddle.Model):
            raise TypeError("Swap before paddle.Model is made: BackboneSwap takes the network, got a paddle.Model.")
        if not isinstance(network, Layer):
            raise TypeError(f"network must be a paddle.nn.Layer, got {type(network).__name__}.")
        if self.at is None:
            return self._build(_number_of_classes(network, input_spec))
        return self._swap_inside(network, self.at, input_spec)

    def _build(self, num_classes: int) -> Layer:
        return build_classifier(self.name, num_classes=num_classes, pretrained=self.pretrained, options=self.options)

    def _swap_inside(self, network: Layer, at: str, input_spec: Sequence[InputSpec] | None) -> Layer:
        if input_spec is None:
            raise ValueError(f"Swapping inside a network (at={at!r}) runs it once: give input_spec=[InputSpec(...)].")
        x, old_output = _seen_at(network, at, input_spec)
        trunk = Trunk(self._build(1000), self._sections or ())
        with same_modes(trunk), paddle.no_grad():
            trunk.eval()
            maps = trunk.maps(x)
        wanted = unpack(old_output)
        taps = self._chosen_taps(maps, wanted, list(x.shape))
        channels = [(maps[tap].shape[1], old.shape[1]) for tap, old in zip(taps, wanted, strict=True)]
        trunk.use(taps, structure=structure_of(old_output), channels=channels)
        replace_sublayer(network, at, trunk)
        _log.info("%s now stands at %r; taps %s, channels (have, want) %s.", self.name, at, taps, channels)
        return network

    def _chosen_taps(self, maps: dict[str, Tensor], wanted: list[Tensor], x_shape: list[int]) -> list[str]:
        if self.taps is None:
            return [_tap_of_size(self.name, maps, list(old.shape[2:]), x_shape) for old in wanted]
        unknown = [tap for tap in self.taps if tap not in maps]
        if unknown or len(self.taps) != len(wanted):
            raise ValueError(
                f"The old backbone gives {len(wanted)} maps; taps {self.taps} must be as many of {list(maps)}."
            )
        for tap, old in zip(self.taps, wanted, strict=True):
            if list(maps[tap].shape[2:]) != list(old.shape[2:]):
                raise ValueError(
                    f"Tap {tap!r} of {self.name} gives {list(maps[tap].shape[2:])} for an input {x_shape}, the old "
                    f"map is {list(old.shape[2:])}. Sizes there are: {_sizes(maps)}."
                )
        return list(self.taps)


def _tap_of_size(name: str, maps: dict[str, Tensor], size: list[int], x_shape: list[int]) -> str:
    fitting = [tap for tap, value in maps.items() if list(value.shape[2:]) == size]
    if not fitting:
        strides = sorted({x_shape[2] // value.shape[2] for value in maps.values()})
        raise ValueError(
            f"{name} has no map of size {size} (stride {x_shape[2] // max(size[0], 1)}) for an input {x_shape}; its "
            f"strides are {strides}, its taps {_sizes(maps)}. Change strides with options=..., or the network."
        )
    return fitting[-1]  # the deepest of that size has seen most


def _sizes(maps: dict[str, Tensor]) -> dict[str, list[int]]:
    return {tap: list(value.shape[2:]) for tap, value in maps.items()}


def _seen_at(network: Layer, at: str, input_spec: Sequence[InputSpec]) -> tuple[Tensor, Any]:
    """Run ``network`` once on zeros; return what its sublayer ``at`` was given and what it gave."""
    seen: list[tuple[Any, Any]] = []
    hook = find_sublayer(network, at).register_forward_post_hook(lambda _, x, y: seen.append((x, y)))
    try:
        _run_on_zeros(network, input_spec)
    finally:
        hook.remove()
    if not seen:
        raise ValueError(f"The sublayer {at!r} did not run when the network did: name the one that does.")
    inputs, output = seen[0]
    if len(inputs) != 1 or inputs[0].ndim != 4:
        raise ValueError(f"The sublayer {at!r} must take one image [N, C, H, W]; it took {len(inputs)} inputs.")
    return inputs[0], output


def _number_of_classes(network: Layer, input_spec: Sequence[InputSpec] | None) -> int:
    if input_spec is not None:
        output = _run_on_zeros(network, input_spec)
        if isinstance(output, Tensor) and output.ndim == 2:
            return int(output.shape[1])
        raise ValueError(
            f"A classifier gives [N, classes]; {type(network).__name__} gives "
            f"{list(output.shape) if isinstance(output, Tensor) else type(output).__name__}. For a network of another "
            "kind name its backbone: BackboneSwap(name, at='backbone')."
        )
    linears = [layer for layer in network.sublayers(include_self=True) if isinstance(layer, paddle.nn.Linear)]
    if not linears:
        raise ValueError(
            f"{type(network).__name__} has no Linear to tell its number of classes: give input_spec=[...]."
        )
    return int(linears[-1].weight.shape[1])


def _run_on_zeros(network: Layer, input_spec: Sequence[InputSpec]) -> Any:
    for spec in input_spec:
        if any(size in (None, -1) for size in list(spec.shape)[1:]):
            raise ValueError(f"input_spec {list(spec.shape)}: only the batch may be None here, sizes are measured.")
    inputs = [paddle.zeros([1, *list(spec.shape)[1:]], dtype=spec.dtype) for spec in input_spec]
    with same_modes(network), paddle.no_grad():
        network.eval()
        return network(*inputs)
