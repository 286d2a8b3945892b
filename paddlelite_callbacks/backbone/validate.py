"""Validate networks and options of a swap, and run a network on zeros."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.backbone.image import ImagePlace, image_place
from paddlelite_callbacks.backbone.registry import source_of
from paddlelite_callbacks.backbone.strides import Stride, checked_stride
from paddlelite_callbacks.backbone.weights import is_url, local_weights
from paddlelite_callbacks.hapi import in_use_by
from paddlelite_callbacks.nn.surgery import find_sublayer, same_modes
from paddlelite_callbacks.utils.numbers import check_whole

__all__ = ["Rebuild", "check_options", "check_swappable", "own_layer", "run_on_zeros", "seen_at", "zeros_of"]


def check_swappable(network: Any) -> None:
    """Check that ``network`` is a plain network, not yet in use.

    Raises:
        TypeError: It is not; says what to do instead.
    """
    if isinstance(network, paddle.Model):
        raise TypeError(
            "network must be a paddle.nn.Layer, got a paddle.Model: swap before paddle.Model is made. Call "
            "swap(network) first."
        )
    if isinstance(network, paddle.DataParallel):
        raise TypeError("network must not be in a paddle.DataParallel yet: call swap(network) before wrapping it.")
    if not isinstance(network, Layer):
        raise TypeError(
            f"network must be a paddle.nn.Layer, got {type(network).__name__}: build the network first, then call the "
            "swap on it."
        )


def seen_at(
    network: Layer, at: str, input_spec: Sequence[Any], *, image: str | int | None = None
) -> tuple[Tensor, ImagePlace, Any]:
    """Run ``network`` on zeros and return input and output of its sublayer ``at``.

    Args:
        network: Network; run once.
        at: Name of the sublayer.
        input_spec: One per input, or dictionaries and lists of them; sizes besides the batch are numbers.
        image: Key, keyword or position of the image, where given by the user.

    Raises:
        ValueError: There is no such sublayer, it does not run, the image among its arguments is ambiguous, or an
            optimizer or ``DataParallel`` already holds its parameters.
    """
    layer = find_sublayer(network, at)
    holder = in_use_by(layer.parameters())
    if holder is not None:
        raise ValueError(
            f"The parameters of {at!r} are already in use by {holder}: the new backbone would never be trained. Swap "
            "first, then make the optimizer, paddle.Model and DataParallel."
        )
    seen: list[tuple[Any, Any, Any]] = []
    hook = layer.register_forward_post_hook(lambda _, x, k, y: seen.append((x, k, y)), with_kwargs=True)
    try:
        run_on_zeros(network, input_spec)
    finally:
        hook.remove()
    if not seen:
        raise ValueError(f"The sublayer {at!r} did not run when the network did: name one that does.")
    inputs, keywords, output = seen[0]
    place = image_place(inputs, keywords, asked=image, name=at)
    return place.of(inputs, keywords), place, output


def run_on_zeros(network: Layer, input_spec: Sequence[Any]) -> Any:
    """Run ``network`` in eval mode on one image of zeros.

    Raises:
        ValueError: A size in ``input_spec`` is dynamic.
    """
    inputs = zeros_of(input_spec)
    with same_modes(network), paddle.no_grad():
        network.eval()
        return network(*inputs)


def zeros_of(input_spec: Sequence[Any]) -> list[Any]:
    """Return zeros for ``input_spec``, batch 1; ones for vectors (scale factors).

    Args:
        input_spec: One ``InputSpec`` per input, or dictionaries and lists of them.

    Raises:
        ValueError: A size is dynamic.
        TypeError: It holds something else than ``InputSpec``.
    """
    return [_zeros(spec) for spec in input_spec]


def _zeros(spec: Any) -> Any:
    if isinstance(spec, Mapping):
        return {key: _zeros(item) for key, item in spec.items()}
    if isinstance(spec, (list, tuple)):
        return [_zeros(item) for item in spec]
    if not hasattr(spec, "shape") or not hasattr(spec, "dtype"):
        raise TypeError(f"input_spec holds a {type(spec).__name__}: give paddle.static.InputSpec([None, 3, 224, 224]).")
    if any(size in (None, -1) for size in list(spec.shape)[1:]):
        raise ValueError(
            f"input_spec has dynamic sizes besides the batch, got {list(spec.shape)}: sizes are measured. Give "
            "numbers: [None, 3, 224, 224]."
        )
    vector = len(spec.shape) < 3 and "float" in str(spec.dtype)
    return (paddle.ones if vector else paddle.zeros)([1, *list(spec.shape)[1:]], dtype=spec.dtype)


Rebuild = Callable[[Layer, list[int]], "Layer | None"]


def check_options(
    at: str | None,
    taps: Sequence[str | Stride] | None,
    adapt: str,
    rebuild: Rebuild | None,
    freeze_stages: int,
    image: str | int | None,
) -> None:
    """Validate the options of `BackboneSwap`.

    Args:
        at: Sublayer to replace, or ``None``.
        taps: Names or strides, which may be pairs.
        adapt: ``"project"`` or ``"rebuild"``.
        rebuild: Function for ``"rebuild"``.
        freeze_stages: Number of stages to freeze.
        image: Key, keyword or position of the image.

    Raises:
        TypeError: ``taps`` is not a list, or ``image`` not a key, keyword or position.
        ValueError: A value out of range; says what is allowed.
    """
    if isinstance(taps, (str, int)):
        raise TypeError(f"taps must be a list, got {taps!r}: write taps=[{taps!r}].")
    for tap in taps or ():
        if not isinstance(tap, str):
            checked_stride(tap)
    if image is not None and type(image) not in (str, int):
        raise TypeError(
            f"image must be the key, keyword or position of the image, got {image!r}: give 'image' or 0, or leave "
            "it out."
        )
    if at is None and (taps is not None or adapt != "project"):
        raise ValueError(
            f"taps and adapt need at='...', as a whole classifier returns no maps, got taps={taps!r}, "
            f"adapt={adapt!r}. Name the backbone with at, or leave them out."
        )
    if adapt not in ("project", "rebuild") or (adapt == "rebuild") != (rebuild is not None):
        raise ValueError(
            f"adapt must be 'project', or 'rebuild' with rebuild=function(network, channels), got adapt={adapt!r}, "
            f"rebuild={rebuild!r}: leave both out for 'project'."
        )
    check_whole("freeze_stages", freeze_stages, 0, remedy="leave it out to freeze none")


def own_layer(backbone: str | Layer, pretrained: bool | str | Path, options: Mapping[str, Any]) -> Layer | None:
    """Return ``backbone`` if it is a network; validate it if it is a name.

    Args:
        backbone: Name, or a network.
        pretrained: See `BackboneSwap`.
        options: Options of the factory.

    Raises:
        TypeError: It is neither.
        ValueError: Unknown name or file, or options that need a name.
    """
    if isinstance(backbone, str):
        source_of(backbone)
        if isinstance(pretrained, (str, Path)) and not is_url(pretrained):
            local_weights(pretrained)
        return None
    if not isinstance(backbone, Layer) or isinstance(backbone, paddle.DataParallel):
        raise TypeError(
            f"backbone must be a name or a paddle.nn.Layer, got {type(backbone).__name__}: see list_backbones()."
        )
    if options or pretrained is True:
        raise ValueError("options and pretrained=True need a name, got a layer: build your own layer with them.")
    return backbone
