"""`PACTQuantCallback`: the shell around quantisation-aware training."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import paddle
from paddle import Tensor

from paddlelite_callbacks.callbacks.base import ScopedCallback
from paddlelite_callbacks.hapi import amp_level, prepared_optimizer, trained_also
from paddlelite_callbacks.quant.config import PACTConfig
from paddlelite_callbacks.quant.fake_quant import PACTActivationQuanter
from paddlelite_callbacks.quant.prepare import convertible_layers, prepare_pact_, quantized_layers, trained_scales

__all__ = ["PACTQuantCallback"]

_log = logging.getLogger(__name__)


class PACTQuantCallback(ScopedCallback):
    """Quantisation-aware training with PACT (Choi et al. 2018, arXiv:1805.06085).

    At train begin ``Conv2D`` and ``Linear`` layers become fake-quantised ones under the same names (see
    `prepare_pact_`) and the user's own optimizer is told of the new ``alpha`` parameters, which the first batch
    initialises. The guide's recipe: start from the trained fp32 network, learning rate x0.2-0.5, epochs x0.25-0.5.

    What outlives ``fit``: the converted layers, and the alphas in the optimizer's parameter list; after a second
    ``fit`` nothing is converted twice. A ``fit`` that ends before its first batch was trained leaves neither.

    Args:
        config: a `PACTConfig`, for callers who have one; excludes ``options``.
        options: the fields of `PACTConfig`, for instance ``skip=["fc"]`` or ``weight_bits=4``.

    Raises:
        TypeError: an unknown option, or both ``config`` and options.
        ValueError: an option out of range; at train begin: nothing to quantise, mixed precision (AMP) is on.

    Example:
        >>> model.fit(train_data, epochs=5, callbacks=[PACTQuantCallback()])  # doctest: +SKIP
    """

    def __init__(self, config: PACTConfig | None = None, **options: Any) -> None:
        super().__init__()
        if config is not None and options:
            raise TypeError(f"Give either config or options, got both: config and {sorted(options)}.")
        if config is not None and not isinstance(config, PACTConfig):
            raise TypeError(
                f"config must be a PACTConfig, got {type(config).__name__}; for the guide's dictionary use "
                "PACTQuantCallback.from_config({...})."
            )
        self.config = config or PACTConfig(**options)
        self._trained = False

    @classmethod
    def from_config(cls, mapping: Mapping[str, Any]) -> PACTQuantCallback:
        """Take the guide's dictionary as it stands, see `PACTConfig.from_guide`."""
        return cls(PACTConfig.from_guide(mapping))

    def check(self) -> None:
        """Refuse mixed precision and networks without a layer to convert."""
        super().check()
        if amp_level(self.model) != "O0":
            raise ValueError(
                f"model.prepare was given amp level {amp_level(self.model)}: fake quantisation needs fp32 to be exact. "
                "Call model.prepare without amp_configs for the quantisation-aware fit."
            )
        convertible_layers(self.model.network, self.config)

    def convert(self, scope: ExitStack) -> None:
        """Convert the layers and let the optimizer train their alphas."""
        network, self._trained = self.model.network, False
        undo = prepare_pact_(network, self.config)
        scope.callback(lambda: None if self._trained else undo.close())
        alphas = trained_scales(network)
        scope.enter_context(trained_also(prepared_optimizer(self.model), alphas, keep=lambda: self._trained))
        if paddle.distributed.get_world_size() > 1:
            for alpha in alphas:  # made after hapi's DataParallel, which therefore does not reduce their gradients
                scope.callback(alpha.register_hook(_mean_over_ranks).remove)
        for quanter in self._quanters().values():
            quanter.refresh()

    def after_batch(self, updated: bool) -> None:
        """Behind the first batch: name the layers that were converted but did not run."""
        if self._trained:
            return
        self._trained = True
        idle = [name for name, quanter in self._quanters().items() if not quanter.calibrated]
        if idle:
            _log.warning("Converted but not run in the first batch, so not quantised: %s.", idle)

    def _quanters(self) -> dict[str, PACTActivationQuanter]:
        layers = quantized_layers(self.model.network)
        return {
            name: layer.activation_quanter
            for name, layer in layers.items()
            if isinstance(layer.activation_quanter, PACTActivationQuanter)
        }


def _mean_over_ranks(grad: Tensor) -> Tensor:
    paddle.distributed.all_reduce(grad)
    return grad / paddle.distributed.get_world_size()
