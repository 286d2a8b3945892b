"""Swap a heavy backbone for a light one."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.backbone.channels import check_input_channels
from paddlelite_callbacks.backbone.classifier import fit_head_, number_of_classes
from paddlelite_callbacks.backbone.comparison import SwapSummary, compare
from paddlelite_callbacks.backbone.descriptions import describe_
from paddlelite_callbacks.backbone.freeze import freeze_stages_
from paddlelite_callbacks.backbone.image import image_place, taking_image
from paddlelite_callbacks.backbone.registry import build, spelled_name, trunk_end, weights_file, weights_url
from paddlelite_callbacks.backbone.select import chosen_taps, taps_of
from paddlelite_callbacks.backbone.strides import Stride
from paddlelite_callbacks.backbone.structure import structure_of, unpack
from paddlelite_callbacks.backbone.truncate import cut_
from paddlelite_callbacks.backbone.trunk import ArgumentTrunk, Trunk
from paddlelite_callbacks.backbone.validate import (
    Rebuild,
    check_options,
    check_swappable,
    own_layer,
    run_on_zeros,
    seen_at,
    zeros_of,
)
from paddlelite_callbacks.backbone.weights import LoadReport, load_weights, local_weights
from paddlelite_callbacks.nn.surgery import (
    find_sublayer,
    freeze_norm_,
    replace_sublayer,
    same_modes,
    whole_again_after_an_error,
)
from paddlelite_callbacks.utils.representation import constructor_repr

__all__ = ["BackboneSwap"]

_log = logging.getLogger(__name__)


class BackboneSwap:
    """Swap a heavy backbone for a light one, before ``paddle.Model`` is made.

    With ``at=None`` a whole classifier is swapped: the call returns a new light classifier with a head for the same
    number of classes; the given network is not changed. With ``at="backbone"`` the sublayer of that name is replaced in
    place: the old one is run once to find the sizes, channels and structure (tensor, list, tuple, dict) of its maps;
    maps of the new one with the same strides are chosen, channels are fitted by 1x1 convolutions with batch norm only
    where they differ, and layers after the last used map are removed. The rest of the network keeps its weights. Keys
    of ``state_dict`` below ``at`` are the new network's own; projections are ``project.<i>``.

    A backbone that is called with a dictionary (``backbone({"image": x})``), several inputs or keywords is still called
    so; the new one is run on the image alone. Attributes with which the old one describes its maps (``out_shape``,
    ``out_channels``, ``feat_channels``) are set on the new one, too.

    The guide's choices: ``PPLCNet_x2_5`` (~30 MB), ``MobileNetV3_large_x1_0`` (~20 MB),
    ``MobileNetV3_small_x1_0`` (~10 MB). `list_backbones` shows all.

    Args:
        backbone: Name in `list_backbones`, in any case, or a network of your own, which is copied.
        at: Name of the sublayer to replace, as in ``named_sublayers()``; ``None`` for a whole classifier.
        taps: Maps to use, by name (``"blocks3"``, ``"blocks[2]"``) or stride (``16``, or ``(32, 1)`` for height and
            width); ``None`` takes the last map of each stride that the old backbone returned.
        pretrained: ``True`` for ImageNet weights of the network's package (cached where its own loader does); or a path
            or address of a ``.pdparams`` file.
        sha256: Expected checksum of the weights file.
        strict: ``False`` accepts a weights file that fits only in part.
        adapt: ``"project"`` fits channels as above; ``"rebuild"`` calls ``rebuild`` instead.
        rebuild: ``rebuild(network, channels)`` gets the network with the new backbone in place and its channels per
            map, and makes the rest fit.
        freeze_norm: Whether to freeze all norm layers of the new backbone, also after ``network.train()``.
        freeze_stages: Number of stages to freeze; stage 1 ends with the first map (mostly stride 2), 0 freezes nothing.
        stop_grad: Whether frozen layers get ``stop_gradient``; ``False`` freezes only batch-norm statistics.
        options: Further arguments of the network's factory, for instance ``{"stride_list": [1, 2, 2, 2, 1]}``, or
            ``{"stride_list": [2, [2, 1], [2, 1], [2, 1], [2, 1]]}`` for lines of text.
        image: Key, keyword or position of the image among the arguments of the old backbone; ``None`` finds it: the
            only map ``[N, C, H, W]``, else the one named ``"image"`` or alike, else the only one with three channels.

    Attributes:
        report: Result of loading a weights file, a `LoadReport`; ``None`` without one.

    Raises:
        TypeError: An argument of another type.
        ValueError: A name or value out of range.

    Example:
        >>> light = BackboneSwap("MobileNetV3_small_x1_0")(paddle.vision.models.resnet50())  # doctest: +SKIP
    """

    def __init__(
        self,
        backbone: str | Layer,
        *,
        at: str | None = None,
        taps: Sequence[str | Stride] | None = None,
        pretrained: bool | str | Path = False,
        sha256: str | None = None,
        strict: bool = True,
        adapt: str = "project",
        rebuild: Rebuild | None = None,
        freeze_norm: bool = False,
        freeze_stages: int = 0,
        stop_grad: bool = True,
        options: Mapping[str, Any] | None = None,
        image: str | int | None = None,
    ) -> None:
        check_options(at, taps, adapt, rebuild, freeze_stages, image)
        self.name = spelled_name(backbone) if isinstance(backbone, str) else type(backbone).__name__
        self.at, self.taps, self.image = at, None if taps is None else list(taps), image
        self.pretrained, self.sha256, self.strict = pretrained, sha256, strict
        self.rebuild, self.options = rebuild, dict(options or {})
        self.freeze_norm, self.freeze_stages, self.stop_grad = freeze_norm, freeze_stages, stop_grad
        self.report: LoadReport | None = None
        self._layer = own_layer(self.name if isinstance(backbone, str) else backbone, pretrained, self.options)
        self._done: tuple[Layer, Layer, Layer | None] | None = None
        self._inputs: list[Any] = []
        self._new_inputs: list[Any] | None = None  # where the new network takes others

    def __repr__(self) -> str:
        """Return the constructor call with all options that are not defaults."""
        given = {"backbone": self.name, "options": self.options or None}
        return constructor_repr(self, given)

    def __call__(self, network: Layer, input_spec: Sequence[Any] | None = None) -> Layer:
        """Swap the backbone; after an error ``network`` is unchanged.

        Args:
            network: A classifier (``at=None``), or a network with the sublayer ``at``.
            input_spec: One `InputSpec` per input of ``network``, the batch may be ``None``, or dictionaries of them as
                ``paddle.jit.to_static`` takes them (``[{"image": InputSpec(...)}]``); needed with ``at``, and for a
                classifier whose last ``Linear`` does not give its number of classes.

        Returns:
            A new network with ``at=None``, otherwise ``network``, changed.

        Raises:
            TypeError: ``network`` is not a ``paddle.nn.Layer``, or already in a ``paddle.Model`` or ``DataParallel``.
            ValueError: Names, taps, sizes or weights that do not fit, with the available ones; or an optimizer already
                trains what would be replaced.
            RuntimeError: The weights cannot be downloaded.
            MissingDependencyError: The package that builds the network is not installed.
        """
        check_swappable(network)
        weights = self._weights_file()
        if self.at is None:
            return self._swap_whole(network, input_spec, weights)
        if input_spec is None:
            raise ValueError(
                f"Swapping inside a network (at={self.at!r}) runs it once: give input_spec=[InputSpec(...)]."
            )
        return self._swap_inside(network, self.at, input_spec, weights)

    def summary(self, *, engine: str = "paddle", threads: int = 1, warmup: int = 5, repeats: int = 30) -> SwapSummary:
        """Export and time both networks, and return the comparison.

        Args:
            engine: Name of an engine, see `BenchOptions`.
            threads: Number of CPU threads of the engine.
            warmup: Number of uncounted rounds.
            repeats: Number of counted rounds.

        Raises:
            RuntimeError: Nothing has been swapped yet.
        """
        if self._done is None:
            raise RuntimeError("summary() compares a swap that has been made: call swap(network, ...) first.")
        old, new, place = self._done
        timing: dict[str, Any] = {"engine": engine, "threads": threads, "warmup": warmup, "repeats": repeats}
        given: dict[str, Any] = {"inputs": self._inputs, "new_inputs": self._new_inputs}
        return compare(old, new, at=self.at, old_layer=place, **given, **timing)

    def _made(self, classes: int) -> Layer:
        if self._layer is not None:
            return copy.deepcopy(self._layer)
        return build(self.name, num_classes=classes, options=self.options)

    def _swap_whole(self, network: Layer, input_spec: Sequence[Any] | None, weights: Path | None) -> Layer:
        classes = number_of_classes(network, input_spec)
        inputs = [paddle.zeros([1, 3, 224, 224], dtype="float32")] if input_spec is None else zeros_of(input_spec)
        x = self._image_of(inputs)
        new = self._made(classes)
        check_input_channels(self.name, new, x, instead_of=network if input_spec is None else None)
        fit_head_(new, classes, x)
        if weights is not None:
            self.report = load_weights(new, weights, strict=self.strict, num_classes=classes, name=self.name)
            _log.info("%s", self.report)
        self._freeze(new, x)
        self._done, self._inputs, self._new_inputs = (network, new, None), inputs, [x]
        return new

    def _image_of(self, inputs: Sequence[Any]) -> Tensor:
        """Return the image among ``inputs``, or the first of them."""
        flat: list[Tensor] = paddle.utils.flatten(list(inputs))
        if not any(value.ndim == 4 for value in flat):
            return flat[0]
        return image_place(inputs, {}, asked=self.image, name="network").of(inputs, {})

    def _swap_inside(self, network: Layer, at: str, input_spec: Sequence[Any], weights: Path | None) -> Layer:
        x, place, old_output = seen_at(network, at, input_spec, image=self.image)
        wanted = unpack(old_output)
        new = taking_image(self._made(1000), x, place)
        check_input_channels(self.name, new, x)
        taps = taps_of(new, x, end=self._end())
        names = chosen_taps(self.name, new, taps, wanted, x, self.taps, end=self._end())
        kind = structure_of(old_output)
        trunk = Trunk(new, names, structure=kind) if place.alone else ArgumentTrunk(new, names, place, structure=kind)
        known, still = list(new.state_dict()), self._freeze(new, x)
        cut_(trunk, x)
        if weights is not None:
            self.report = load_weights(trunk, weights, strict=self.strict, behind_the_cut=known, name=self.name)
            _log.info("%s", self.report)
        trunk.hold_still([name for name, _ in trunk.named_sublayers() if name in still])
        channels = self._fit_channels(trunk, wanted, x)
        describe_(trunk, find_sublayer(network, at), channels, projected=self.rebuild is None)
        whole = None if self.rebuild is None else copy.deepcopy(network)
        with whole_again_after_an_error(network):
            old = replace_sublayer(network, at, trunk)
            result = self._rebuilt(network, channels)
            run_on_zeros(result, input_spec)
        self._done = (network, result, old) if whole is None else (whole, result, None)
        self._inputs = zeros_of(input_spec)
        _log.info("%s replaces %r; taps %s, channels (have, want) %s.", self.name, at, trunk.taps, channels)
        return result

    def _fit_channels(self, trunk: Trunk, wanted: Sequence[Tensor], x: Tensor) -> list[tuple[int, int]]:
        with same_modes(trunk), paddle.no_grad():
            trunk.eval()
            maps = trunk.maps(x)
        channels = [(int(maps[tap].shape[1]), int(old.shape[1])) for tap, old in zip(trunk.taps, wanted, strict=True)]
        if self.rebuild is None:
            trunk.fit_channels(channels)
        return channels

    def _rebuilt(self, network: Layer, channels: Sequence[tuple[int, int]]) -> Layer:
        result = None if self.rebuild is None else self.rebuild(network, [have for have, _ in channels])
        return network if result is None else result

    def _freeze(self, new: Layer, x: Tensor) -> set[str]:
        """Freeze as configured; return the layers to keep in eval mode."""
        if self.freeze_norm:
            freeze_norm_(new, stop_grad=self.stop_grad)
        if not self.freeze_stages:
            return set()
        if not self.pretrained and self._layer is None:
            _log.warning("freeze_stages=%d freezes random weights: give pretrained=...", self.freeze_stages)
        taps = taps_of(new, x, end=self._end())
        return set(freeze_stages_(new, taps, x, stages=self.freeze_stages, stop_grad=self.stop_grad))

    def _end(self) -> str | None:
        return trunk_end(self.name) if self._layer is None else None

    def _weights_file(self) -> Path | None:
        """Fetch the weights before anything is changed."""
        if not self.pretrained:
            return None
        if self.pretrained is not True:
            return local_weights(self.pretrained, sha256=self.sha256)
        url = weights_url(self.name)
        if url is None:
            raise ValueError(f"There are no weights for {self.name}: give a path, an address, or pretrained=False.")
        return local_weights(url, sha256=self.sha256, cached=weights_file(self.name, url))
