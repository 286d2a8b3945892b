"""`PACTQuantCallback`: quantisation-aware training inside ``fit``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.callbacks.base import ScopedCallback
from paddlelite_callbacks.callbacks.nan_guard.guard import checked_policy
from paddlelite_callbacks.callbacks.pact.diagnosis import Diagnosis, diagnose, score_of
from paddlelite_callbacks.hapi import (
    amp_level,
    check_data,
    input_specs,
    prepared_optimizer,
    scaled_learning_rate,
    trained_also,
)
from paddlelite_callbacks.nn.kinds import is_batch_norm
from paddlelite_callbacks.nn.trace import example_inputs, noise
from paddlelite_callbacks.quant.calibration import stop_counting_
from paddlelite_callbacks.quant.config import PACTConfig, pact_config
from paddlelite_callbacks.quant.prepare import activation_quanters, convertible_layers, prepare_pact_, trained_scales
from paddlelite_callbacks.quant.sensitivity import find_skips
from paddlelite_callbacks.quant.switch import refresh_quantisers_, switch_quantisers_
from paddlelite_callbacks.quant.unquantized import Unquantized, unquantized_lines, unquantized_parts
from paddlelite_callbacks.utils.distributed import mean_over_ranks
from paddlelite_callbacks.utils.isolation import same_random_streams
from paddlelite_callbacks.utils.metric_direction import checked_mode

__all__ = ["PACTQuantCallback"]

_log = logging.getLogger(__name__)


class PACTQuantCallback(ScopedCallback):
    """Quantisation-aware training with PACT (Choi et al. 2018, arXiv:1805.06085).

    At train begin ``Conv2D``, ``Conv2DTranspose`` and ``Linear`` layers become fake-quantised ones under the same
    names (see `prepare_pact_`) and the user's own optimizer is told of the new ``alpha`` parameters, which the first
    batch initialises. The guide's recipe: start from the trained fp32 network, learning rate x0.2-0.5 (done here,
    ``lr_scale``, for the time of ``fit``), epochs x0.25-0.5. To resume: build the network, call `prepare_pact_` with
    the same options, ``paddle.Model``, ``model.load``, and ``fit`` with this callback again: in a new process that goes
    on bit for bit. Epochs of the schedule count from that ``fit``: give what is left of them.

    What outlives ``fit``: the converted layers, and the alphas in the optimizer's parameter list; after a second
    ``fit`` nothing is converted twice. A ``fit`` that ends before its first batch was trained leaves neither.

    Args:
        config: a `PACTConfig`, for callers who have one; excludes ``options``.
        evaluate_on: a ``Dataset`` or ``DataLoader`` for the diagnosis after training: the metric given to
            ``model.prepare`` in fp32, fake-quantised, and of the real int8 file. ``None`` for no diagnosis.
        on_nan: what to do with a batch whose loss, or whose alphas, are NaN or infinite, see `DistillCallback`.
        allowed_drop: of the int8 (else fake-quantised) metric, as a share of the fp32 one; beyond it the diagnosis
            names the layers that cost most and suggests ``skip``.
        mode: ``"max"`` or ``"min"``: which metric is better; ``"auto"`` goes by its name: the smaller for ``loss``,
            ``err``, ``error``, ``mae``, ``mse``, ``rmse``, ``nme`` and the like.
        options: the fields of `PACTConfig`, for instance ``skip=["fc"]`` or ``weight_bits=4``.

    Attributes:
        unquantized: what stays in float, why, and its share of the multiply-accumulates; in the log and the record.
        diagnosis: the `Diagnosis` of the last ``fit``, ready when it has returned; ``None`` without ``evaluate_on``.

    Raises:
        TypeError: an unknown option, or both ``config`` and options.
        ValueError: an option out of range; at train begin: nothing to quantise, mixed precision (AMP) is on, a
            network quantised otherwise, a ``start_epoch`` that ``fit`` does not reach.
        NonFiniteLossError: in training: see ``on_nan``.

    Example:
        >>> model.fit(train_data, epochs=5, callbacks=[PACTQuantCallback()])  # doctest: +SKIP
    """

    guards_loss = True

    def __init__(
        self,
        config: PACTConfig | None = None,
        *,
        evaluate_on: Any = None,
        allowed_drop: float = 0.03,
        mode: str = "auto",
        on_nan: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.on_nan = checked_policy(on_nan)
        if config is not None and options:
            raise TypeError(f"Give either config or options, got both: config and {sorted(options)}. Leave one out.")
        if config is not None and not isinstance(config, PACTConfig):
            raise TypeError(
                f"config must be a PACTConfig, got {type(config).__name__}; for the guide's dictionary use "
                "PACTQuantCallback.from_config({...})."
            )
        if not isinstance(allowed_drop, (int, float)) or not 0 <= allowed_drop < 1:
            raise ValueError(
                f"allowed_drop is a share of the fp32 metric in [0, 1), got {allowed_drop!r}: leave it out for 0.03."
            )
        if evaluate_on is not None:
            check_data("evaluate_on", evaluate_on)
        self.config = config or pact_config(**options)
        self.evaluate_on, self.allowed_drop, self.mode = evaluate_on, allowed_drop, checked_mode(mode)
        self.diagnosis: Diagnosis | None = None
        self._trained, self._named_idle, self._epoch = False, False, 0
        self._inputs: list[Tensor] | None = None
        self.unquantized: tuple[Unquantized, ...] = ()

    @classmethod
    def from_config(cls, mapping: Mapping[str, Any], **changes: Any) -> PACTQuantCallback:
        """Build from the guide's dictionary, see `fields_of_guide`.

        ``changes`` are fields that override it.
        """
        return cls(PACTConfig.from_guide(mapping, **changes))

    def check(self) -> None:
        """Validate mixed precision, convertible layers and ``start_epoch``."""
        super().check()
        if amp_level(self.model) != "O0":
            raise ValueError(
                f"model.prepare was given amp level {amp_level(self.model)}: fake quantisation needs fp32 to be exact. "
                "Call model.prepare without amp_configs for the quantisation-aware fit."
            )
        layers = convertible_layers(self.model.network, self.config)
        self._inputs = self._noise()
        inputs = example_inputs(self.model.network) if self._inputs is None else self._inputs
        self.unquantized = tuple(unquantized_parts(self.model.network, self.config, list(layers), inputs))
        for line in unquantized_lines(self.unquantized):
            _log.warning("%s", line)
        epochs = (self.params or {}).get("epochs")
        if epochs is not None and self.config.start_epoch >= epochs:
            raise ValueError(
                f"start_epoch={self.config.start_epoch} is never reached in {epochs} epochs (they count from 0): "
                "train longer, or start earlier."
            )
        if epochs is not None and self.config.fp32_epochs and epochs > self.config.fp32_epochs / 2:
            _log.warning(
                "%d epochs of quantisation-aware training after %d in fp32: a quarter to a half of them is enough.",
                epochs,
                self.config.fp32_epochs,
            )

    def _noise(self) -> list[Tensor] | None:
        """Return noise in the shape of the inputs, where it is known."""
        with same_random_streams():
            specs = input_specs(self.model, self.session.data)
        return None if specs is None else noise([([2, *shape[1:]], dtype) for shape, dtype in specs])

    def convert(self, scope: ExitStack) -> None:
        """Convert layers and register their alphas with the optimizer."""
        network, optimizer = self.model.network, prepared_optimizer(self.model)
        self._trained, self._named_idle, self._epoch, self.diagnosis = False, False, 0, None
        undo = prepare_pact_(network, self.config, inputs=self._inputs)
        scope.callback(lambda: None if self._trained else undo.close())
        scope.callback(stop_counting_, network)
        alphas = trained_scales(network)
        scope.enter_context(trained_also(optimizer, alphas, keep=lambda: self._trained))
        scope.enter_context(scaled_learning_rate(optimizer, self.config.lr_scale))
        if paddle.distributed.get_world_size() > 1:
            self._reduce_gradients(alphas, scope)
        refresh_quantisers_(network)
        if self.config.start_epoch > 0:
            switch_quantisers_(network, False)
            scope.callback(switch_quantisers_, network, True)

    def attach(self, scope: ExitStack) -> None:
        """Start the schedule of batch-norm statistics and scales."""
        network = self.model.network
        self.session.guard.probe(trained_scales(network))
        if self.config.freeze_bn_after is not None:
            scope.callback(_follow_mode, network)
            scope.callback(network.register_forward_pre_hook(self._hold_statistics).remove)
        if self.config.freeze_scales_after is not None:
            for alpha in trained_scales(network):
                scope.callback(setattr, alpha, "stop_gradient", alpha.stop_gradient)
            self._freeze_scales()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Advance the schedule (called by hapi)."""
        super().on_epoch_begin(epoch, logs)
        self._epoch = epoch
        if self.config.start_epoch and epoch == self.config.start_epoch:
            switch_quantisers_(self.model.network, True)
        self._freeze_scales()

    def after_batch(self, updated: bool) -> None:
        """After the first quantised batch, name converted layers that did not run."""
        first, self._trained = not self._trained, True
        if self.config.start_epoch > self._epoch or not (first or self._epoch == self.config.start_epoch > 0):
            return
        if not first and self._named_idle:
            return
        self._named_idle = True
        quanters = activation_quanters(self.model.network)
        idle = [name.rpartition(".")[0] for name, quanter in quanters.items() if not quanter.calibrated]
        if idle:
            _log.warning("Converted but not run in the first batch, so not quantised: %s.", idle)

    def after_skipped(self, updated: bool) -> None:
        """Do nothing: a skipped batch is no first batch."""
        if updated:
            self.after_batch(updated)

    def finish(self) -> None:
        """Diagnose the metric's drop, if evaluation data were given."""
        self.notes()

    def notes(self) -> tuple[str, ...]:
        """Return the report's notes: the diagnosis, made on first use."""
        left = unquantized_lines(self.unquantized) if self._trained else ()
        if self.evaluate_on is None or not self._trained:
            return left
        if self.diagnosis is None:
            self.diagnosis = diagnose(self.model, self.evaluate_on, allowed_drop=self.allowed_drop, mode=self.mode)
            if self.diagnosis.too_much:
                _log.warning("%s", " ".join(self.diagnosis.lines()))
        return (*left, *self.diagnosis.lines())

    def find_skips(self, budget: float, *, most: int = 5) -> list[str]:
        """Return layers to leave in fp32 (``skip``) for a drop of at most ``budget``.

        Args:
            budget: share of the fp32 metric, for instance 0.01; which metric is better goes by ``mode``.
            most: layers to name at most.

        Raises:
            RuntimeError: there is no ``evaluate_on``, or no ``fit`` has run.
        """
        if self.evaluate_on is None or not self._trained:
            raise RuntimeError(
                f"find_skips needs PACTQuantCallback(evaluate_on=...) and a fit that has run; evaluate_on is "
                f"{type(self.evaluate_on).__name__}. Give the data, and call model.fit first."
            )
        network = self.model.network
        return find_skips(network, lambda: score_of(self.model, self.evaluate_on, self.mode), budget=budget, most=most)

    def _reduce_gradients(self, alphas: Sequence[Tensor], scope: ExitStack) -> None:
        """Average the alphas' gradients over ranks; hapi's ``DataParallel`` ignores them.

        LSQ divides the gradient of an activation's step by the root of the number of values in the batch, of which
        each process sees its share.
        """
        by_batch = {id(quanter.alpha) for quanter in activation_quanters(self.model.network).values()}
        root = paddle.distributed.get_world_size() ** 0.5

        def mean_by_root(grad: Tensor) -> Tensor:
            return mean_over_ranks(grad) / root

        for alpha in alphas:
            shared = self.config.method == "lsq" and id(alpha) in by_batch
            scope.callback(alpha.register_hook(mean_by_root if shared else mean_over_ranks).remove)

    def _hold_statistics(self, network: Layer, inputs: tuple[Tensor, ...]) -> None:
        if network.training and self._epoch >= (self.config.freeze_bn_after or 0):
            for layer in network.sublayers():
                if is_batch_norm(layer):
                    layer.training = False

    def _freeze_scales(self) -> None:
        limit = self.config.freeze_scales_after
        if limit is not None and self._epoch >= limit:
            for alpha in trained_scales(self.model.network):
                alpha.stop_gradient = True


def _follow_mode(network: Layer) -> None:
    for layer in network.sublayers():
        if is_batch_norm(layer):
            layer.training = network.training
