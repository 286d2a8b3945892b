"""Distil a teacher into the network inside ``fit``: callback and checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paddle
from paddle.nn import Layer

from paddlelite_callbacks.callbacks.distill.checkpoint import (
    check_same_options,
    check_same_teacher,
    load_state,
    save_state,
    save_state_beside,
)
from paddlelite_callbacks.callbacks.distill.mutual import MutualSource
from paddlelite_callbacks.callbacks.distill.step import BridgeTrainer, DistillStep, Position
from paddlelite_callbacks.callbacks.distill.teachers import (
    CacheSource,
    EMASource,
    FrozenSource,
    Source,
    check_cache_options,
    layers_to_tap,
)
from paddlelite_callbacks.callbacks.nan_guard.guard import checked_policy
from paddlelite_callbacks.callbacks.session import ScopedCallback
from paddlelite_callbacks.distill.cache import CachedTeacher
from paddlelite_callbacks.distill.ema import EMATeacher
from paddlelite_callbacks.distill.forward import TeacherInputs, checked_inputs, checked_modes
from paddlelite_callbacks.distill.identity import function_names
from paddlelite_callbacks.distill.losses.registry import spec_of
from paddlelite_callbacks.distill.mutual import MutualPeer
from paddlelite_callbacks.distill.objective import Objective
from paddlelite_callbacks.distill.resolve import (
    Features,
    Loss,
    feature_terms,
    normalised,
    objective_for,
    output_terms,
)
from paddlelite_callbacks.distill.schedules import Weight, checked_weight
from paddlelite_callbacks.distill.terms import FeatureTerm, OutputTerm
from paddlelite_callbacks.hapi import alongside_checkpoints, input_specs, task_loss_of
from paddlelite_callbacks.nn.dry_run import InputSpecs, seen_on_zeros
from paddlelite_callbacks.utils.deprecation import Folded, old_arguments, old_attributes
from paddlelite_callbacks.utils.isolation import same_random_streams
from paddlelite_callbacks.utils.representation import Verbatim, constructor_repr

__all__ = ["DistillCallback", "check_fit", "source_of"]

_log = logging.getLogger(__name__)
_TERMS = "resize_of_terms"  # key in a checkpoint: its "resize" describes the terms, not only the argument


def _with_outputs(loss: Any, old: dict[str, Any], given: Mapping[str, Any]) -> Any:
    """Move the old arguments ``output`` and ``resize`` into the terms of ``loss``."""
    said = {name: value for name, value in old.items() if value is not None}
    if not said or (loss is None and given.get("features") is not None):
        return loss
    if loss is None:
        return OutputTerm(**said)
    if isinstance(loss, Mapping):
        return [OutputTerm(name, weight, **said) for name, weight in loss.items()]
    entries = list(loss) if isinstance(loss, (list, tuple)) else [loss]
    if entries and all(isinstance(entry, OutputTerm) for entry in entries):
        raise TypeError(
            f"DistillCallback was given {' and '.join(f'{name}=' for name in old)} and loss= of OutputTerm: these are "
            "old and new spellings. Give OutputTerm alone, with what it compares."
        )
    return [entry if isinstance(entry, OutputTerm) else OutputTerm(entry, **said) for entry in entries]


def _with_feature_loss(features: Any, old: dict[str, Any], given: Mapping[str, Any]) -> Any:
    """Move the old argument ``feature_loss`` into the terms of ``features``."""
    loss = old["feature_loss"]
    spec_of(loss)
    if isinstance(features, Mapping):
        return [FeatureTerm(student, teacher, loss=loss) for student, teacher in features.items()]
    terms = list(features) if isinstance(features, (list, tuple)) else [features]
    if terms and all(isinstance(term, FeatureTerm) for term in terms):
        raise TypeError(
            "DistillCallback was given feature_loss= and features= of FeatureTerm: these are old and new spellings. "
            "Give FeatureTerm alone, with its loss."
        )
    return features


def _of_terms(terms: Any, name: str) -> Any:
    """Return the first value that the terms have for ``name``."""
    entries = terms if isinstance(terms, (list, tuple)) else [terms]
    found = (getattr(term, name, None) for term in entries if isinstance(term, (OutputTerm, FeatureTerm)))
    return next((value for value in found if value is not None), None)


def _resize_of(terms: Sequence[OutputTerm] | None) -> str | None:
    """Return how the terms resize the teacher's outputs; one word if all agree."""
    ways = sorted({term.resize for term in terms or () if term.resize is not None})
    return ", ".join(ways) or None


def _comparable(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's options that can be compared with the current ones.

    Older checkpoints describe only the argument ``resize``, and nothing of the terms.
    """
    older = _TERMS not in saved and saved.get("resize") is None
    return {name: value for name, value in saved.items() if name != _TERMS and not (older and name == "resize")}


class DistillCallback(ScopedCallback):
    """Distil a teacher's knowledge into the network (Hinton 2015, arXiv:1503.02531).

    Each training batch minimises ``task_weight * task_loss + weight * distill_loss``. A frozen teacher runs once per
    batch, on the student's inputs, under ``no_grad`` and the student's ``auto_cast``; it is in eval mode with
    ``stop_gradient`` on all parameters during ``fit``, and its flags are restored afterwards. No ``state_dict``,
    optimizer or checkpoint of the student contains it. ``evaluate`` and ``predict`` do not change. ``task_loss``,
    ``distill_loss``, the single terms if there are several (``distill_kl``, ...), and scheduled weights
    (``distill_weight``, ``task_weight``) are in ``logs`` and on the progress bar. All changes are undone after ``fit``.

    Args:
        teacher: Teacher: a network; a ``paddle.Model`` with one; ``("file.pdparams", network)`` with the layer or a
            function that builds it; the prefix of a program of ``paddle.jit.save``; a ``.pdparams`` file alone for a
            network like the student; a list of these; a `MutualPeer`, an `EMATeacher`, or the result of
            `cache_teacher`.
        loss: Loss on outputs: a name of `LOSSES`; a callable ``(student, teacher) -> scalar``, also a trainable
            ``Layer``; an `OutputTerm`; a list of these; a mapping of names to weights. ``None`` chooses by the task
            loss: ``kl`` for ``CrossEntropyLoss``; ``bce`` for ``BCEWithLogitsLoss``; ``mse`` for ``MSELoss``,
            ``L1Loss`` and ``SmoothL1Loss``; none where there are ``features``. The term selects outputs and resizes
            maps: ``OutputTerm("kl", output="logits", resize="bilinear")``. See
            ``help(paddlelite_callbacks.distill.losses.registry)`` for what each loss compares, and its shapes.
        features: Layers to compare: ``{"student's layer": "teacher's layer"}``, names as in ``named_sublayers()`` or
            globs, or a list of `FeatureTerm` for another loss than ``fitnet``. Different channels and sizes are bridged
            by projections that the user's optimizer trains during ``fit``.
        temperature: Temperature of tempered losses, unless an `OutputTerm` has its own; ``None`` for each one's default
            (``kl`` 4, ``jsdiv`` 1).
        weight: Weight of the distillation loss, at least 0; a number, a schedule of `schedules` or a function ``(epoch,
            epochs) -> weight``; with 0 the result is bit for bit that of plain training.
        task_weight: Weight of the loss given to ``model.prepare``, likewise.
        teacher_weights: Weights of several teachers; ``None`` for equal ones.
        combine: With several teachers, ``"mean"`` compares with the weighted mean of their outputs, ``"each"`` sums the
            weighted losses to each.
        teacher_mode: ``"eval"``; ``"train"`` uses the teacher's training outputs (auxiliary heads, DB's three maps,
            losses inside ``forward``), still with norms, dropout and buffers frozen. With several teachers one for all,
            or a list. Not for a `MutualPeer`, which trains.
        teacher_inputs: Function of the student's inputs that returns the teacher's: a tensor or dictionary for one
            input, a tuple for several (``lambda x: F.interpolate(x, scale_factor=2)``). It gets one argument per input,
            and the batch's labels if it has a parameter ``labels``; runs under ``no_grad`` and the student's
            ``auto_cast``. With several teachers one for all, or a list. Not for a `MutualPeer`.
        on_nan: Policy for a batch whose loss is NaN or infinite: ``"raise"`` stops with a `NonFiniteLossError` that
            names batch, term and cause, with the weights from before it; ``"skip"`` skips it and counts it in ``logs``
            as ``skipped_batches``; ``"ignore"`` does nothing. ``None``: ``"raise"`` unless another callback differs.
        resume: Prefix of a hapi checkpoint (``"checkpoints/3"``) to resume from: loads projections, average, peer and
            the position in the schedules from ``.pddistill`` beside it; ``teacher_mode``, ``teacher_inputs`` and the
            terms' ``resize`` must be those of the checkpoint. See `load`.

    Raises:
        TypeError: An argument of another type.
        ValueError: A weight or temperature out of range, an unknown loss. At train begin: unknown layer names, a
            teacher that shares parameters with the student, a task loss for which ``loss=None`` cannot choose, and
            outputs that cannot be compared, if the inputs' sizes are known (``InputSpec``, an earlier batch, or the
            data set's first sample); else in the first batch, before any weight is changed.
        FileNotFoundError: The checkpoint of ``resume`` does not exist.
        NonFiniteLossError: In training, see ``on_nan``.

    Example:
        >>> model.fit(train_data, epochs=10, callbacks=[DistillCallback(teacher)])  # doctest: +SKIP
    """

    guards_loss = True

    if not TYPE_CHECKING:  # IDEs and help() show only the new names
        __getattr__ = old_attributes(
            output=("loss", lambda callback: _of_terms(callback.loss, "output")),
            resize=("loss", lambda callback: _of_terms(callback.loss, "resize")),
            feature_loss=("features", lambda callback: _of_terms(callback.features, "loss") or "fitnet"),
        )

    @old_arguments(
        output=Folded("loss", _with_outputs, "loss=OutputTerm(..., {})"),
        resize=Folded("loss", _with_outputs, "loss=OutputTerm(..., {})"),
        feature_loss=Folded("features", _with_feature_loss, "features=[FeatureTerm(..., {})]", field="loss"),
    )
    def __init__(
        self,
        teacher: Any,
        *,
        loss: Loss = None,
        temperature: float | None = None,
        weight: Weight = 1.0,
        task_weight: Weight = 1.0,
        features: Features = None,
        teacher_weights: Sequence[float] | None = None,
        combine: str = "mean",
        teacher_mode: str | Sequence[str] = "eval",
        teacher_inputs: TeacherInputs | Sequence[TeacherInputs | None] | None = None,
        on_nan: str | None = None,
        resume: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.on_nan = checked_policy(on_nan)
        self.weight, self.task_weight = checked_weight("weight", weight), checked_weight("task_weight", task_weight)
        self.loss, self.temperature, self.features = loss, temperature, features
        self.teacher_mode, self.teacher_inputs, self.teacher_weights = teacher_mode, teacher_inputs, teacher_weights
        self._outputs = output_terms(loss, temperature=temperature)
        self._features = feature_terms(features)
        if combine not in ("mean", "each"):
            raise ValueError(f"combine must be 'mean' or 'each', got {combine!r}: leave it out for 'mean'.")
        self.combine = combine
        self._source, count = source_of(teacher, mode=teacher_mode, inputs=teacher_inputs)
        self._shares = normalised(teacher_weights, count)
        self._objective: Objective | None = None
        self._bridges, self._position = BridgeTrainer(), Position()
        self._loaded: dict[str, Any] | None = None
        if resume is not None:
            self.load(resume)

    def __repr__(self) -> str:
        """Return the constructor call with all options that are not defaults."""
        return constructor_repr(self, {"teacher": Verbatim(self._source.described()), "resume": None})

    @property
    def teacher(self) -> Layer | None:
        """Return the (first) teacher network; ``None`` before it is loaded."""
        return next(iter(self._source.networks), None)

    @property
    def bridges(self) -> Layer:
        """Return the trainable projections and losses; empty before the first batch."""
        return self.objective.bridges

    @property
    def objective(self) -> Objective:
        """Return the objective, with its terms resolved against the networks.

        Raises:
            RuntimeError: No training has begun.
        """
        if self._objective is None:
            raise RuntimeError("The distillation objective exists from train begin on: call model.fit first.")
        return self._objective

    def check(self) -> None:
        """Load the teacher, resolve the terms, and check that they fit."""
        super().check()
        task_loss = task_loss_of(self.model)
        networks = self._source.settle(self.model)
        if self._features and not self._source.taps_features:
            raise ValueError(
                f"features need a frozen teacher, a {type(self._source).__name__.removesuffix('Source')} has only "
                "outputs. Leave features out, or pass the network itself as teacher."
            )
        objective = objective_for(
            self._outputs,
            self._features,
            temperature=self.temperature,
            task_loss=task_loss,
            student=self.model.network,
            teachers=networks,
            weights=self._shares,
            each=self.combine == "each",
        )
        if self._objective is not None:  # an earlier fit trained these
            objective.bridges = self._objective.bridges
        self._objective = objective
        check_fit(self.model, self.objective, self._source, self.session.data if self._session else None)
        self._take_up_state()

    def attach(self, scope: ExitStack) -> None:
        """Register hooks, wrap the loss and declare the metrics."""
        self._position.begin(self.params)
        if self._position.steps is None and any(callable(weight) for weight in (self.weight, self.task_weight)):
            _log.warning(
                "The training data has no length: in the first epoch the schedules of weight and task_weight are "
                "constant, from the second on they change with each batch, by the length of the epoch before. Give "
                "a loader with __len__ to change them from the start."
            )
        step = DistillStep(
            source=self._source,
            objective=self.objective,
            bridges=self._bridges,
            position=self._position,
            weight=self.weight,
            task_weight=self.task_weight,
            session=self.session,
        )
        step.attach(self.model, scope)
        if self._has_state():
            self.session.late.enter_context(
                alongside_checkpoints(self.model, lambda path: save_state_beside(self.state_dict(), path))
            )

    @property
    def follows_epochs(self) -> bool:  # type: ignore[override]
        """Return whether a weight is scheduled."""
        terms = [] if self._objective is None else self._objective.terms.values()
        return any(callable(weight) for weight in (self.weight, self.task_weight, *(term.weight for term in terms)))

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the schedules to this epoch (called by hapi)."""
        super().on_epoch_begin(epoch, logs)
        self._position.at_epoch(epoch)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the schedules to the next epoch (called by hapi)."""
        self._position.at_epoch(epoch + 1)
        super().on_epoch_end(epoch, logs)

    def on_eval_end(self, logs: dict[str, Any] | None = None) -> None:
        """Add the peer's metrics to ``logs`` (called by hapi)."""
        if logs is None or self._session is None:
            return
        for name, value in self._source.after_evaluation(logs).items():
            logs[name] = value
            self.session.late.callback(logs.pop, name, None)  # hapi shares this dictionary among all models

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Finish the teacher source, then undo the edits (called by hapi)."""
        self._source.end(self.model)
        super().on_train_end(logs)

    def save(self, path: str | Path) -> None:
        """Write ``path.pddistill`` atomically.

        ``fit`` does so beside each of hapi's checkpoints.

        It holds the projections with their optimizer state, the average or the peer, and the schedules' position.
        """
        save_state(self.state_dict(), path)

    def load(self, path: str | Path) -> None:
        """Load the result of `save` at the next train begin.

        ``model.load(path)`` loads the network.

        Raises:
            FileNotFoundError: There is no ``path.pddistill``.
            ValueError: It is truncated, or belongs to other weights than ``path.pdparams``.
        """
        self.set_state_dict(load_state(path))

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs beside hapi's checkpoint."""
        return {
            "position": self._position.epoch,
            "bridges": {} if self._objective is None else self._bridges.state_dict(self._objective),
            "source": self._source.state_dict(),
            "options": self._teacher_options(),
        }

    def _teacher_options(self) -> dict[str, Any]:
        """Return the teacher options that a checkpoint must agree with."""
        return {
            "teacher_mode": self.teacher_mode if isinstance(self.teacher_mode, str) else list(self.teacher_mode),
            "teacher_inputs": function_names(self.teacher_inputs),
            "resize": _resize_of(self._outputs),
            _TERMS: True,
        }

    def set_state_dict(self, state: dict[str, Any]) -> None:
        """Load the result of `state_dict` at the next train begin."""
        self._loaded = dict(state)

    def _take_up_state(self) -> None:
        state, self._loaded = self._loaded, None
        self._position.offset = 0.0 if state is None else float(state["position"])
        if state is not None:
            kind = type(self._source).__name__.removesuffix("Source")
            check_same_options(_comparable(state.get("options", {})), self._teacher_options())
            check_same_teacher(state["source"], self._source.state_keys, kind)
            self._source.set_state_dict(state["source"], self.model)
            self._bridges.take_up(state["bridges"])

    def _has_state(self) -> bool:
        weights = [self.weight, self.task_weight, *(term.weight for term in self.objective.terms.values())]
        return self._source.has_state or bool(self._features) or any(callable(weight) for weight in weights)


def source_of(teacher: Any, *, mode: Any = "eval", inputs: Any = None) -> tuple[Source, int]:
    """Resolve the ``teacher`` argument to a source and its number of teachers.

    Args:
        teacher: Argument of `DistillCallback`.
        mode: Its ``teacher_mode``.
        inputs: Its ``teacher_inputs``.

    Raises:
        TypeError: ``teacher`` has another type, or ``inputs`` is not a function.
        ValueError: An empty list, or options that this kind of teacher does not have.
        FileNotFoundError: A path that does not exist.
    """
    if isinstance(teacher, MutualPeer):
        _check_peer_options(mode, inputs)
        return MutualSource(teacher), 1
    if isinstance(teacher, CachedTeacher):
        (one,), (function,) = checked_modes(mode, 1), checked_inputs(inputs, 1)
        check_cache_options(teacher, one, function)
        return CacheSource(teacher), 1
    if isinstance(teacher, EMATeacher):
        (one,), (function,) = checked_modes(mode, 1), checked_inputs(inputs, 1)
        return EMASource(teacher, mode=one, inputs=function), 1
    is_checkpoint = isinstance(teacher, tuple) and len(teacher) == 2 and isinstance(teacher[0], (str, Path))
    teachers = list(teacher) if isinstance(teacher, (list, tuple)) and not is_checkpoint else [teacher]
    if not teachers:
        raise ValueError("teacher is an empty list, []: give at least one network, or leave the callback out.")
    modes, functions = checked_modes(mode, len(teachers)), checked_inputs(inputs, len(teachers))
    return FrozenSource(teachers, modes=modes, inputs=functions), len(teachers)


def _check_peer_options(mode: Any, inputs: Any) -> None:
    given = [
        name for name, value in (("teacher_mode", mode != "eval"), ("teacher_inputs", inputs is not None)) if value
    ]
    if given:
        raise ValueError(
            f"{' and '.join(given)}: a MutualPeer trains on the student's own inputs, in train mode. Leave it out, "
            "or give a frozen network as teacher."
        )


def check_fit(model: paddle.Model, objective: Objective, source: Source, data: Any) -> None:
    """Check that ``objective`` can compare the networks, if input sizes are known.

    Args:
        model: Model with the student.
        objective: Objective with the names of outputs and features.
        source: Source of the teachers.
        data: Loader of the training data, if known.

    Raises:
        ValueError: It cannot; the message has the terms and both shapes.
    """
    with same_random_streams():
        specs = input_specs(model, data)
    if specs is None:
        return
    try:
        _refuse(model, objective, source, specs, hooks=False)
    except ValueError:
        _refuse(model, objective, source, specs, hooks=True)  # a user's forward hook may change the outputs


def _refuse(model: paddle.Model, objective: Objective, source: Source, specs: InputSpecs, *, hooks: bool) -> None:
    mine, theirs = layers_to_tap(objective, len(objective.teacher_weights))
    student = seen_on_zeros(model.network, specs, mine, training=True, hooks=hooks)
    teachers = source.seen_on_zeros(specs, theirs, hooks)
    if student is not None and teachers is not None:
        objective.check_fit(student, teachers)
