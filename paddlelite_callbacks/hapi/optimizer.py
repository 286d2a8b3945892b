"""Access an optimizer's parameters, state and learning rate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.hapi.attribute import instance_attribute

__all__ = [
    "check_optimizer_parameters",
    "normalizes_gradients",
    "optimizer_state_of",
    "rate_scheduler_of",
    "scaled_learning_rate",
    "set_optimizer_state_of",
    "trained_also",
    "undecayed",
]

_NORMALIZING = ("Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSProp")


def rate_scheduler_of(optimizer: paddle.optimizer.Optimizer) -> paddle.optimizer.lr.LRScheduler | None:
    """Return the learning rate scheduler of ``optimizer``, if any."""
    rate = optimizer._learning_rate
    return rate if isinstance(rate, paddle.optimizer.lr.LRScheduler) else None


def normalizes_gradients(optimizer: paddle.optimizer.Optimizer) -> bool:
    """Whether steps do not depend on the size of gradients: Adam and its kin.

    Args:
        optimizer: Optimizer of any kind.
    """
    kinds = tuple(kind for name in _NORMALIZING if (kind := getattr(paddle.optimizer, name, None)) is not None)
    return isinstance(optimizer, kinds)


@contextmanager
def undecayed(optimizer: paddle.optimizer.Optimizer, parameters: Sequence[Tensor]) -> Iterator[None]:
    """Exempt ``parameters`` from AdamW's weight decay inside the block.

    Args:
        optimizer: Optimizer; others than AdamW are not changed.
        parameters: Parameters that it trains.
    """
    if not hasattr(optimizer, "_apply_decay_param_fun"):
        yield
        return
    names, also = {parameter.name for parameter in parameters}, optimizer._apply_decay_param_fun

    def decays(name: str) -> bool:
        return name not in names and (also is None or also(name))

    with instance_attribute(optimizer, "_apply_decay_param_fun", decays):
        yield


def check_optimizer_parameters(optimizer: paddle.optimizer.Optimizer, network: Layer, whose: str) -> None:
    """Check that an optimizer trains parameters of ``network``.

    Args:
        optimizer: Optimizer with or without parameter groups.
        network: Network to train; may be frozen in part or completely.
        whose: Subject of the message.

    Raises:
        ValueError: It holds none of the trainable parameters.
    """
    wanted = [parameter for parameter in network.parameters() if parameter.trainable]
    known = {id(parameter) for parameter in _parameters_of(optimizer)}
    if wanted and not any(id(parameter) in known for parameter in wanted):
        raise ValueError(
            f"{whose} ({type(optimizer).__name__}, {len(known)} parameters) holds none of the {len(wanted)} "
            f"trainable parameters of {type(network).__name__}, so nothing would be trained: make it with "
            "parameters=network.parameters(), after the last change of the network's layers."
        )


def optimizer_state_of(
    optimizer: paddle.optimizer.Optimizer, parameters: Mapping[str, Tensor]
) -> dict[str, dict[str, Tensor]]:
    """Return copies of the accumulators of given parameters, by the caller's names.

    ``optimizer.state_dict()`` is keyed by automatic parameter names, which differ between processes.

    Args:
        optimizer: Optimizer of the parameters.
        parameters: Parameters by names that are stable across processes.
    """
    by_name = {parameter.name: key for key, parameter in parameters.items()}
    state: dict[str, dict[str, Tensor]] = {}
    for accumulator, held in optimizer._accumulators.items():
        for name, value in held.items():
            if name in by_name:
                state.setdefault(by_name[name], {})[accumulator] = value.detach().clone()
    for name, value in optimizer._master_weights.items():
        if name in by_name:
            state.setdefault(by_name[name], {})["master_weight"] = value.detach().clone()
    return state


def set_optimizer_state_of(
    optimizer: paddle.optimizer.Optimizer, parameters: Mapping[str, Tensor], state: Mapping[str, Mapping[str, Any]]
) -> None:
    """Load accumulators that `optimizer_state_of` returned.

    Args:
        optimizer: Optimizer of the same class as then.
        parameters: Parameters by the same names as then.
        state: Result of `optimizer_state_of`.
    """
    chosen = {key: parameter for key, parameter in parameters.items() if key in state}
    _create_accumulators(optimizer, list(chosen.values()))
    for key, parameter in chosen.items():
        for accumulator, value in state[key].items():
            is_master = accumulator == "master_weight"
            held = optimizer._master_weights if is_master else optimizer._accumulators.get(accumulator, {})
            if parameter.name in held:
                held[parameter.name].set_value(value)


def _create_accumulators(optimizer: paddle.optimizer.Optimizer, parameters: Sequence[Tensor]) -> None:
    """Create the accumulators of ``parameters``.

    A loaded state is kept in the optimizer until then, and rejects parameters that are missing in it.
    """
    waiting, optimizer._accumulators_holder = optimizer._accumulators_holder, {}
    try:
        block = paddle.static.default_main_program().global_block()
        optimizer._create_accumulators(block, list(parameters))
    finally:
        optimizer._accumulators_holder = waiting
    names = {parameter.name for parameter in parameters}
    for held in optimizer._accumulators.values():
        for name in names & set(held):
            value = waiting.get(held[name].name)
            if value is not None and list(value.shape) == list(held[name].shape):
                held[name].set_value(waiting.pop(held[name].name))


def _drop_accumulators(optimizer: paddle.optimizer.Optimizer, parameters: Sequence[Tensor]) -> None:
    for parameter in parameters:
        for held in optimizer._accumulators.values():
            held.pop(parameter.name, None)
        optimizer._master_weights.pop(parameter.name, None)
        optimizer._already_create_accumulator.discard(parameter.name)


@contextmanager
def trained_also(
    optimizer: paddle.optimizer.Optimizer, parameters: Sequence[Tensor], *, keep: Callable[[], bool]
) -> Iterator[None]:
    """Register ``parameters`` with ``optimizer``; other accumulators are kept.

    When removed, they leave no accumulators behind, so that later checkpoints hold none.

    Args:
        optimizer: Optimizer; one with parameter groups gets a new group for them.
        parameters: Parameters to register, unless known.
        keep: Called at the end of the block; ``False`` removes the registered ones.

    Raises:
        ValueError: A fused optimizer (``use_multi_tensor=True``) that has taken steps cannot be extended.
    """
    known = optimizer._parameter_list
    if known is None:
        raise ValueError(
            f"The optimizer {type(optimizer).__name__} has no parameter list: pass parameters=network.parameters()."
        )
    held = {id(parameter) for parameter in _parameters_of(optimizer)}
    added = [parameter for parameter in parameters if id(parameter) not in held]
    if added and getattr(optimizer, "_use_multi_tensor", False) and optimizer._accumulators:
        raise ValueError(
            f"{type(optimizer).__name__}(use_multi_tensor=True) has already taken steps and cannot take new "
            "parameters: make a new optimizer, or leave use_multi_tensor off."
        )
    taken_out = _extended(optimizer, added)
    if added and optimizer._accumulators_holder:  # a loaded state, which rejects unknown parameters
        _create_accumulators(optimizer, added)
    try:
        yield
    finally:
        if not keep():
            taken_out()
            _drop_accumulators(optimizer, added)


def _parameters_of(optimizer: paddle.optimizer.Optimizer) -> list[Tensor]:
    groups = optimizer._parameter_list or []
    return [one for group in groups for one in (group["params"] if isinstance(group, dict) else [group])]


def _extended(optimizer: paddle.optimizer.Optimizer, added: Sequence[Tensor]) -> Callable[[], None]:
    """Add parameters to the optimizer's list or as a new group; return the undo."""
    known = optimizer._parameter_list
    if not added or not isinstance(next(iter(known), None), dict):
        known.extend(added)
        gone = {id(parameter) for parameter in added}

        def remove() -> None:
            known[:] = [parameter for parameter in known if id(parameter) not in gone]

        return remove
    rates = [dict(parameter.optimize_attr) for parameter in added]
    usual = {"weight_decay": getattr(optimizer, "regularization", None), "grad_clip": optimizer._grad_clip}
    fresh = {**usual, **optimizer._default_dict, "params": list(added)}
    optimizer._add_param_group(fresh)  # sets every rate to that of the group
    for parameter, rate in zip(added, rates, strict=True):
        parameter.optimize_attr.update(rate)
    group = optimizer._param_groups[-1]
    known.append(group)
    per_group = getattr(optimizer, "_param_dict", {}).values()
    for tensors in per_group:
        tensors.append([])

    def remove_group() -> None:
        for groups in (known, optimizer._param_groups):
            groups[:] = [one for one in groups if one is not group]
        for tensors in per_group:
            tensors.pop()

    return remove_group


class _ScaledSchedule(paddle.optimizer.lr.LRScheduler):
    """Proxy of the user's scheduler with a scaled learning rate."""

    def __init__(self, schedule: paddle.optimizer.lr.LRScheduler, factor: float) -> None:
        self.__dict__.update(schedule=schedule, factor=factor)  # the parent's __init__ would take a step

    def __call__(self) -> float:
        return self.factor * self.schedule()

    def __getattribute__(self, name: str) -> Any:
        if name in ("__dict__", "__class__", "schedule", "factor"):
            return object.__getattribute__(self, name)
        return getattr(object.__getattribute__(self, "schedule"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.schedule, name, value)


@contextmanager
def scaled_learning_rate(optimizer: paddle.optimizer.Optimizer, factor: float) -> Iterator[None]:
    """Scale the optimizer's learning rate inside the block.

    A scheduler continues to step as before, and is saved unscaled. A rate set with ``set_lr`` inside the block is
    divided by ``factor`` at its end.
    """
    before = optimizer._learning_rate
    if factor == 1:
        yield
        return
    scheduled = isinstance(before, paddle.optimizer.lr.LRScheduler)
    if scheduled:
        optimizer._learning_rate = _ScaledSchedule(before, factor)
    else:
        optimizer.set_lr(before * factor)
        scaled = optimizer._learning_rate
    try:
        yield
    finally:
        if scheduled:
            optimizer._learning_rate = before
        else:
            optimizer.set_lr(before if optimizer._learning_rate == scaled else optimizer.get_lr() / factor)
