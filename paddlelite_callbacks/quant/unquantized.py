"""List what quantisation leaves in float, with reasons and shares of the MACs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from paddle import Tensor, nn
from paddle.nn import Layer

from paddlelite_callbacks.nn.kinds import QUANTIZABLE, computes_as, is_quantized, kind_of
from paddlelite_callbacks.nn.surgery import copy_network, matches_any, unwrapped
from paddlelite_callbacks.nn.trace import trace
from paddlelite_callbacks.quant.config import PACTConfig

__all__ = ["Unquantized", "unquantized_lines", "unquantized_parts"]

_log = logging.getLogger(__name__)
_NAMED = 12  # parts in one line


@dataclass(frozen=True)
class Unquantized:
    """Part of a network that stays in float.

    Args:
        name: Name of the layer; that of the network's class for operations in its ``forward``.
        reason: Reason for staying in float.
        share: Share of the network's multiply-accumulates, 0-1; ``None`` where unknown.
    """

    name: str
    reason: str
    share: float | None

    def __str__(self) -> str:
        return f"{self.name} ({self.reason}{'' if self.share is None else f', {100 * self.share:.1f} %'})"


def unquantized_parts(
    network: Layer, config: PACTConfig, quantized: Sequence[str], inputs: Sequence[Tensor] | None
) -> list[Unquantized]:
    """Return the parts that stay in float, largest share first.

    Args:
        network: Network before or after the conversion; not changed.
        config: Options of the conversion.
        quantized: Names of the converted layers.
        inputs: Inputs to run a copy on; ``None`` where unknown: layers are then listed without shares.
    """
    layers = dict(network.named_sublayers())
    done = {*quantized, *(name for name, layer in layers.items() if is_quantized(layer))}
    if inputs is not None and unwrapped(network) is network:
        try:
            products = trace(copy_network(network), inputs).products
        except Exception as error:
            _log.debug("No shares, %s does not run on random inputs: %s", type(network).__name__, error)
        else:
            total = sum(product.macs for product in products) or 1
            counted: dict[tuple[str, str], int] = {}
            for product in products:
                owner = next((name for name in product.within if kind_of(layers[name]) or name in done), None)
                if owner in done:
                    continue
                inner = product.within[-1] if product.within else ""
                name = owner or inner or type(network).__name__
                reason = _why(owner, layers[owner], config) if owner else f"its forward computes {product.operation}"
                counted[name, reason] = counted.get((name, reason), 0) + product.macs
            found = [Unquantized(name, reason, macs / total) for (name, reason), macs in counted.items()]
            return sorted(found, key=lambda part: -(part.share or 0.0))
    inside = {f"{name}." for name, layer in layers.items() if kind_of(layer)}
    return [
        Unquantized(name, _why(name, layer, config), None)
        for name, layer in layers.items()
        if kind_of(layer) and name not in done and not name.startswith(tuple(inside))
    ]


def unquantized_lines(parts: Sequence[Unquantized]) -> tuple[str, ...]:
    """Return a sentence on the parts that stay in float, if any."""
    if not parts:
        return ()
    shares = [part.share for part in parts]
    whole = "" if None in shares else f", {100 * sum(share or 0.0 for share in shares):.1f} % of the MACs"
    more = f" and {len(parts) - _NAMED} more" if len(parts) > _NAMED else ""
    return (f"Not quantised{whole}: {', '.join(str(part) for part in parts[:_NAMED])}{more}.",)


def _why(name: str, layer: Layer, config: PACTConfig) -> str:
    kind = computes_as(layer, *QUANTIZABLE)
    if not isinstance(layer, QUANTIZABLE):
        return f"{kind_of(layer)}: PACT converts Conv2D, Conv2DTranspose and Linear"
    if kind is None:
        return f"{type(layer).__name__} is a subclass of {kind_of(layer)} with a forward of its own"
    if not isinstance(layer, tuple(getattr(nn, item) for item in config.layer_types)):
        return "not in layer_types"
    if matches_any(name, config.skip):
        return "in skip"
    return "not in include" if not matches_any(name, config.include) else "never converted"
