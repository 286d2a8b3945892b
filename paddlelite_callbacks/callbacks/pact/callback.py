"""Quantisation-aware training with PACT inside ``fit``."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeVar, cast

import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.callbacks.distill.callback import DistillCallback
from paddlelite_callbacks.callbacks.nan_guard.guard import checked_policy
from paddlelite_callbacks.callbacks.pact.accuracy import KeptMetric, keep_metric_
from paddlelite_callbacks.callbacks.pact.diagnosis import Diagnosis, diagnose, metric_of, score_of
from paddlelite_callbacks.callbacks.pact.keep_better import Choice, StartingPoint, better_of
from paddlelite_callbacks.callbacks.session import FitSession, ScopedCallback
from paddlelite_callbacks.hapi import (
    amp_level,
    check_data,
    input_specs,
    normalizes_gradients,
    prepared_optimizer,
    scaled_learning_rate,
    trained_also,
    undecayed,
)
from paddlelite_callbacks.nn.kinds import is_batch_norm
from paddlelite_callbacks.nn.surgery import copy_network
from paddlelite_callbacks.nn.trace import example_inputs, noise
from paddlelite_callbacks.quant.alpha_rate import relative_rate
from paddlelite_callbacks.quant.calibration import stop_counting_
from paddlelite_callbacks.quant.config import AdvancedPACTOptions, PACTConfig
from paddlelite_callbacks.quant.prepare import (
    activation_quantizers,
    convertible_layers,
    prepare_pact_,
    quantized_layers,
    trained_scales,
)
from paddlelite_callbacks.quant.sensitivity import find_skips
from paddlelite_callbacks.quant.switch import refresh_quantizers_, switch_quantizers_
from paddlelite_callbacks.quant.unquantized import Unquantized, unquantized_lines, unquantized_parts
from paddlelite_callbacks.utils.deprecation import Moved, Renamed, old_arguments, old_attributes
from paddlelite_callbacks.utils.distributed import mean_over_ranks
from paddlelite_callbacks.utils.isolation import same_random_streams
from paddlelite_callbacks.utils.metric_direction import checked_mode, falls_with_quality
from paddlelite_callbacks.utils.numbers import check_number
from paddlelite_callbacks.utils.representation import constructor_repr

__all__ = ["PACTQuantCallback"]

F = TypeVar("F", bound=Callable[..., Any])

_log = logging.getLogger(__name__)
_FEW_STEPS = 100  # EfficientNet-Lite0 lost 1.2 points in 62 steps on labels
_RARE = tuple(AdvancedPACTOptions.__dataclass_fields__)
_OFTEN = tuple(name for name in PACTConfig.__dataclass_fields__ if name not in _RARE)


def _config_or_options(function: F) -> F:
    """Check that ``config`` comes without other options, even with default values."""

    @functools.wraps(function)
    def init(self: Any, config: Any = None, **given: Any) -> None:
        if config is not None and (both := sorted({*_OFTEN, "advanced"} & set(given))):
            raise TypeError(f"Give either config or options, got both: config and {both}. Leave one out.")
        function(self, config, **given)

    return cast(F, init)


class PACTQuantCallback(ScopedCallback):
    """Quantisation-aware training with PACT (Choi et al. 2018, arXiv:1805.06085).

    At train begin ``Conv2D``, ``Conv2DTranspose`` and ``Linear`` layers become fake-quantised ones under the same names
    (see `prepare_pact_`) and the new ``alpha`` parameters, which the first batch initialises, are registered with the
    user's own optimizer. The guide's recipe: start from the trained fp32 network, learning rate x0.2-0.5 (done here,
    ``lr_scale``, during ``fit``), epochs x0.25-0.5. To resume: build the network, call `prepare_pact_` with the same
    options, ``paddle.Model``, ``model.load``, and ``fit`` with this callback again: it continues bit for bit in a new
    process. Epochs of the schedule count from that ``fit``: subtract those trained before.

    Kept after ``fit``: the converted layers, and the alphas in the optimizer's parameter list; a second ``fit``
    converts nothing twice. A ``fit`` that ends before its first batch keeps neither.

    The arguments are the frequent options; rare ones are in ``advanced``. A `PACTConfig` has both kinds, for
    `prepare_pact_` and for callers who build it elsewhere.

    Args:
        config: A `PACTConfig` with all options; excludes ``advanced`` and the options from ``weight_bits`` to
            ``freeze_scales_after``.
        weight_bits: Weight bits, 2-8; weights are quantised per output channel, symmetrically.
        activation_bits: Activation bits, 2-8; one learned clip value ``alpha`` per layer input.
        reduce_range: Whether 8-bit weights use half their range, on which no CPU saturates; ``False`` if every target
            has VNNI or is ARM.
        activation_symmetric: Whether activations use the grid of Paddle Lite, TensorRT and NPUs, signed with zero point
            0; ``False`` for x86.
        quantize_outputs: Whether to quantise outputs of convolutions too; ONNX Runtime needs it to compute in int8.
        method: ``"pact"`` (weights scaled by their largest magnitude) or ``"lsq"`` (learned weight steps).
        include: Globs over ``named_sublayers()`` names; matching layers are converted.
        skip: Globs of layers to leave in fp32; each must match a layer.
        lr_scale: Factor on the learning rate or scheduler of your optimizer during ``fit``.
        start_epoch: First quantised epoch of this ``fit``, from 0; earlier ones train in fp32.
        freeze_bn_after: Number of epochs of this ``fit`` after which batch-norm statistics are frozen; ``None`` for
            never.
        freeze_scales_after: Number of epochs after which the alphas are frozen; ``None`` for never.
        advanced: An `AdvancedPACTOptions`: layer types, calibration, learning of the alphas; ``None`` for the defaults.
        self_distill: Whether the float network, copied before the conversion, is the only teacher: its outputs are
            learned (`DistillCallback`) and the labels are not. For few data, where learning the labels loses. Or the
            teacher itself, as for `DistillCallback`, which a resumed training needs.
        keep_better: Whether, with ``eval_data``, the network ends with the weights from before training where these,
            quantised and calibrated on the first batch, have the better metric. Checkpoints keep the trained weights.
        eval_data: ``Dataset`` or ``DataLoader`` for the diagnosis after training: the metric given to ``model.prepare``
            in fp32, fake-quantised, and of the real int8 file. ``None`` for no diagnosis.
        metric_drop: Accepted drop of the int8 (else fake-quantised) metric, as a share of the fp32 one, in [0, 1);
            beyond it the diagnosis names the most sensitive layers and suggests ``skip``.
        put_back: Whether layers are put back to float after training, the fewest that are found, until the real int8
            file keeps ``metric_drop``; needs ``eval_data``. See the attribute ``kept``.
        mode: ``"max"`` or ``"min"``: which metric is better; ``"auto"`` infers it from the name: lower for ``loss``,
            ``err``, ``error``, ``mae``, ``mse``, ``rmse``, ``nme`` and the like.
        on_nan: Policy for a batch whose loss or alphas are NaN or infinite, see `DistillCallback`.

    Attributes:
        config: The `PACTConfig` of all options.
        unquantized: Parts that stay in float, with reasons and shares of the multiply-accumulates; also in log and
            record.
        choice: Metrics of the quantised network before and after the last ``fit`` (``start``, ``end``), and which was
            ``kept``; ``None`` without ``eval_data``.
        kept: Layers that ``put_back`` put back in the last ``fit``, with the metrics of all files that were tried;
            ``None`` without it.
        diagnosis: The `Diagnosis` of the last ``fit``, ready when it has returned; ``None`` without ``eval_data``.

    Raises:
        TypeError: An unknown option, both ``config`` and options, or an argument of another type.
        ValueError: An option out of range; at train begin: nothing to quantise, mixed precision (AMP) is on, a network
            quantised otherwise, a ``start_epoch`` that ``fit`` does not reach.
        NonFiniteLossError: In training, see ``on_nan``.

    Example:
        >>> model.fit(train_data, epochs=5, callbacks=[PACTQuantCallback()])  # doctest: +SKIP
    """

    guards_loss = True
    needs_fp32 = True

    if not TYPE_CHECKING:  # IDEs and help() show only the new names
        __getattr__ = old_attributes(
            evaluate_on="eval_data",
            allowed_drop="metric_drop",
        )

    @old_arguments(
        evaluate_on=Renamed("eval_data"),
        allowed_drop=Renamed("metric_drop"),
        **dict.fromkeys(_RARE, Moved("advanced", lambda: AdvancedPACTOptions)),
    )
    @_config_or_options
    def __init__(
        self,
        config: PACTConfig | None = None,
        *,
        weight_bits: int = 8,
        activation_bits: int = 8,
        reduce_range: bool = True,
        activation_symmetric: bool = False,
        quantize_outputs: bool = False,
        method: str = "pact",
        include: Sequence[str] = ("*",),
        skip: Sequence[str] = (),
        lr_scale: float = 0.5,
        start_epoch: int = 0,
        freeze_bn_after: int | None = None,
        freeze_scales_after: int | None = None,
        advanced: AdvancedPACTOptions | None = None,
        self_distill: Any = False,
        keep_better: bool = True,
        eval_data: Any = None,
        metric_drop: float = 0.03,
        put_back: bool = False,
        mode: str = "auto",
        on_nan: str | None = None,
    ) -> None:
        super().__init__()
        self.on_nan = checked_policy(on_nan)
        if config is not None and not isinstance(config, PACTConfig):
            raise TypeError(
                f"config must be a PACTConfig, got {type(config).__name__}: build one, or call "
                "PACTQuantCallback.from_config({...}) for the guide's dictionary."
            )
        if advanced is not None and not isinstance(advanced, AdvancedPACTOptions):
            raise TypeError(
                f"advanced must be an AdvancedPACTOptions, got {type(advanced).__name__}: "
                "advanced=AdvancedPACTOptions(alpha_percentile=100), or leave it out."
            )
        if not isinstance(keep_better, bool):
            raise ValueError(f"keep_better must be True or False, got {keep_better!r}: leave it out for True.")
        words, remedy = "a share of the fp32 metric in [0, 1)", "leave it out for 0.03"
        check_number("metric_drop", metric_drop, lambda drop: 0 <= drop < 1, words, remedy=remedy)
        if not isinstance(put_back, bool):
            raise ValueError(f"put_back must be True or False, got {put_back!r}: leave it out for False.")
        if put_back and eval_data is None:
            raise ValueError(
                "put_back=True needs data to measure the int8 file on, got eval_data=None: give eval_data."
            )
        if eval_data is not None:
            check_data("eval_data", eval_data)
        self.config = config or PACTConfig(
            weight_bits=weight_bits,
            activation_bits=activation_bits,
            reduce_range=reduce_range,
            activation_symmetric=activation_symmetric,
            quantize_outputs=quantize_outputs,
            method=method,
            include=include,
            skip=skip,
            lr_scale=lr_scale,
            start_epoch=start_epoch,
            freeze_bn_after=freeze_bn_after,
            freeze_scales_after=freeze_scales_after,
            **vars(advanced or AdvancedPACTOptions()),
        )
        self.eval_data, self.metric_drop, self.mode = eval_data, metric_drop, checked_mode(mode)
        self.self_distill, self.keep_better, self.put_back = self_distill, keep_better, put_back
        self.kept: KeptMetric | None = None
        self.diagnosis: Diagnosis | None = None
        self.choice: Choice | None = None
        self._start = StartingPoint()
        self._float_network: Layer | None = None
        self._distill: DistillCallback | None = None
        self._trained, self._named_idle, self._epoch = False, False, 0
        self._inputs: list[Tensor] | None = None
        self.unquantized: tuple[Unquantized, ...] = ()

    def __repr__(self) -> str:
        """Return the constructor call with all options that are not defaults."""
        rare = AdvancedPACTOptions(**{name: getattr(self.config, name) for name in _RARE})
        often = {name: getattr(self.config, name) for name in _OFTEN}
        return constructor_repr(
            self, {**often, "config": None, "advanced": None if rare == AdvancedPACTOptions() else rare}
        )

    @classmethod
    def from_config(cls, mapping: Mapping[str, Any], **changes: Any) -> PACTQuantCallback:
        """Build from the guide's dictionary, see `fields_of_guide`.

        ``changes`` are fields that override it.
        """
        return cls(PACTConfig.from_guide(mapping, **changes))

    def set_params(self, params: dict[str, Any]) -> None:
        """Receive hapi's parameters of this ``fit`` (called by hapi)."""
        super().set_params(params)
        if self._distill is not None:
            self._distill.set_params(params)

    def joined(self, session: FitSession) -> None:
        """Add the distillation from the float network to the session."""
        self._distill = None
        teacher = self.self_distill
        if teacher is False:
            return
        if teacher is True:
            if not quantized_layers(self.model.network):
                self._float_network = copy_network(self.model.network, keep_hook=lambda hook: True)
            teacher = self._float_network
        if teacher is not None:
            self._distill = DistillCallback(teacher, task_weight=0.0, on_nan=self.on_nan)
            self._distill.join(session, getattr(self, "params", None) or {})

    def _check_teacher(self) -> None:
        if self.self_distill is not False and self._distill is None:
            raise ValueError(
                f"self_distill=True copies the float network, but {type(self.model.network).__name__} is quantised "
                "already: give the float network, self_distill=float_network."
            )
        others = [one for one in self.session.members if isinstance(one, DistillCallback) and one is not self._distill]
        if self._distill is not None and others:
            raise ValueError(
                "self_distill makes the float network the only teacher, but there is a DistillCallback too: leave one "
                "of the two out."
            )
        steps, epochs = (self.params or {}).get("steps"), (self.params or {}).get("epochs")
        if self._distill is None and not others and steps and epochs and steps * epochs < _FEW_STEPS:
            _log.warning(
                "%d batches are few to learn from labels with quantised layers (fewer than %d): give "
                "self_distill=True, which learns from the float network, or take ptq_int8, which needs no training.",
                steps * epochs,
                _FEW_STEPS,
            )

    def check(self) -> None:
        """Validate mixed precision, convertible layers and ``start_epoch``."""
        super().check()
        self._check_teacher()
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
        """Return random inputs in the network's input shapes, if these are known."""
        with same_random_streams():
            specs = input_specs(self.model, self.session.data)
        return None if specs is None else noise([([2, *shape[1:]], dtype) for shape, dtype in specs])

    def convert(self, scope: ExitStack) -> None:
        """Convert layers and register their alphas with the optimizer."""
        network, optimizer = self.model.network, prepared_optimizer(self.model)
        self._trained, self._named_idle, self._epoch = False, False, 0
        self.diagnosis = self.choice = self.kept = None
        undo = prepare_pact_(network, self.config, inputs=self._inputs)
        scope.callback(lambda: None if self._trained else undo.close())
        scope.callback(stop_counting_, network)
        alphas = trained_scales(network)
        scope.enter_context(trained_also(optimizer, alphas, keep=lambda: self._trained))
        scope.enter_context(scaled_learning_rate(optimizer, self.config.lr_scale))
        self._scale_alpha_rates(optimizer, scope)
        if paddle.distributed.get_world_size() > 1:
            self._reduce_gradients(alphas, scope)
        refresh_quantizers_(network)
        if self.config.start_epoch > 0:
            switch_quantizers_(network, False)
            scope.callback(switch_quantizers_, network, True)

    def attach(self, scope: ExitStack) -> None:
        """Start the schedule of batch-norm statistics and scales."""
        network = self.model.network
        self.session.guard.probe(trained_scales(network))
        self._start = StartingPoint()
        if self.eval_data is not None and self.keep_better:
            self._start.attach(network, scope)
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
        if self.config.start_epoch and epoch >= self.config.start_epoch:  # a resumed loop may begin after it
            switch_quantizers_(self.model.network, True)
        self._freeze_scales()

    def after_batch(self, updated: bool) -> None:
        """Warn after the first quantised batch about converted layers that did not run."""
        first, self._trained = not self._trained, True
        if self.config.start_epoch > self._epoch or not (first or self._epoch == self.config.start_epoch > 0):
            return
        if not first and self._named_idle:
            return
        self._named_idle = True
        quantizers = activation_quantizers(self.model.network)
        idle = [name.rpartition(".")[0] for name, quantizer in quantizers.items() if not quantizer.calibrated]
        if idle:
            _log.warning("Converted but not run in the first batch, so not quantised: %s.", idle)

    def after_skipped(self, updated: bool) -> None:
        """Ignore a skipped batch, unless the optimizer took a step."""
        if updated:
            self.after_batch(updated)

    def finish(self) -> None:
        """Diagnose the drop of the metric, if there is ``eval_data``."""
        self.notes()

    def notes(self) -> tuple[str, ...]:
        """Return the report's notes: the diagnosis, made on first use."""
        left = unquantized_lines(self.unquantized) if self._trained else ()
        if self.eval_data is None or not self._trained:
            return left
        if self.choice is None and self._start.state is not None:
            self.choice = self._chosen(self._start.state)
            self._start = StartingPoint()
        if self.put_back and self.kept is None:
            drop, mode = self.metric_drop, self.mode
            self.kept = keep_metric_(self.model, self.eval_data, metric_drop=drop, mode=mode, verbose=0)
        if self.diagnosis is None:
            self.diagnosis = diagnose(self.model, self.eval_data, metric_drop=self.metric_drop, mode=self.mode)
            if self.diagnosis.too_much:
                _log.warning("%s", " ".join(self.diagnosis.lines()))
        choice = () if self.choice is None else (self.choice.line(),)
        kept = () if self.kept is None else self.kept.lines()
        return (*left, *choice, *kept, *self.diagnosis.lines())

    def _chosen(self, start: dict[str, Any]) -> Choice:
        """Leave the better of the weights before and after training in the network."""

        def is_better(value: float, other: float, name: str) -> bool:
            return value < other if falls_with_quality(name, self.mode) else value > other

        choice = better_of(self.model.network, start, lambda: metric_of(self.model, self.eval_data), is_better)
        if self._session is not None:
            self._session.candidates.append(({choice.metric: choice.start}, start))
        if choice.kept == "start":
            _log.warning("%s", choice.line())
        return choice

    @old_arguments(budget=Renamed("metric_drop"))
    def find_skips(self, metric_drop: float, *, most: int = 5) -> list[str]:
        """Return layers to leave in fp32 (``skip``) for a drop within ``metric_drop``.

        Args:
            metric_drop: Accepted drop, as a share of the fp32 metric, for instance 0.01; ``mode`` sets its direction.
            most: Maximum number of layers.

        Raises:
            RuntimeError: There is no ``eval_data``, or no ``fit`` has run.
        """
        if self.eval_data is None or not self._trained:
            raise RuntimeError(
                f"find_skips needs PACTQuantCallback(eval_data=...) and a fit that has run; eval_data is "
                f"{type(self.eval_data).__name__}. Give the data, and call model.fit first."
            )
        network = self.model.network
        return find_skips(
            network, lambda: score_of(self.model, self.eval_data, self.mode), metric_drop=metric_drop, most=most
        )

    def _scale_alpha_rates(self, optimizer: paddle.optimizer.Optimizer, scope: ExitStack) -> None:
        """Scale the rates of activations' alphas to their size, for Adam and its kin."""
        alphas = [quantizer.alpha for quantizer in activation_quantizers(self.model.network).values()]
        alphas = [alpha for alpha in alphas if not alpha.stop_gradient]
        if normalizes_gradients(optimizer):
            scope.enter_context(undecayed(optimizer, alphas))
            for alpha in alphas:
                scope.enter_context(relative_rate(alpha, self.config.alpha_lr_scale))

    def _reduce_gradients(self, alphas: Sequence[Tensor], scope: ExitStack) -> None:
        """Average the alphas' gradients over ranks; hapi's ``DataParallel`` ignores them.

        LSQ divides the gradient of an activation's step by the square root of the number of values in the batch, and
        each process sees only its share of the batch.
        """
        by_batch = {id(quantizer.alpha) for quantizer in activation_quantizers(self.model.network).values()}
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
