"""Run the callbacks of this package in your own training loop."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import paddle
from paddle import Tensor
from paddle.nn import Layer
from paddle.static import InputSpec

from paddlelite_callbacks.callbacks.session import FitSession, ScopedCallback
from paddlelite_callbacks.hapi import (
    LoopModel,
    SkipBatch,
    input_count,
    instance_attribute,
    metrics_of,
    prepared_optimizer,
    task_loss_of,
    unknown_loss,
)
from paddlelite_callbacks.nn.nested import listed, summed
from paddlelite_callbacks.nn.surgery import unwrapped
from paddlelite_callbacks.utils.numbers import check_whole, is_whole
from paddlelite_callbacks.utils.signals import uninterrupted
from paddlelite_callbacks.workarounds.data_loader import known_length

__all__ = ["TrainingLoop", "training_loop"]

_open: weakref.WeakSet[Layer] = weakref.WeakSet()  # networks in a `training_loop`


def training_loop(
    network: Layer,
    optimizer: paddle.optimizer.Optimizer,
    callbacks: ScopedCallback | Sequence[ScopedCallback],
    *,
    epochs: int | None = None,
    steps: int | None = None,
    scaler: paddle.amp.GradScaler | None = None,
    loss: Any = None,
    metrics: Any = None,
    data: Any = None,
    inputs: Sequence[InputSpec] | None = None,
) -> TrainingLoop:
    """Use callbacks of this package in a loop that is not ``paddle.Model.fit``.

    Inside the ``with`` block, pass each batch's loss through ``loop.loss``; forward pass, ``backward`` and the
    optimizer's step do not change, and the weights equal those of ``fit`` on the same batches bit for bit. A callback's
    temporary changes are undone however the block is left: at its end, by ``break``, ``return``, an exception or
    Ctrl-C. After an exception the final steps of training (export, diagnosis) do not run.

    Args:
        network: Network to train, called once per batch; may be inside a ``paddle.DataParallel``.
        optimizer: Optimizer of the network, with or without parameter groups.
        callbacks: One or several of `DistillCallback`, `PACTQuantCallback`, `ExportBenchCallback`.
        epochs: Number of epochs of the whole training, for schedules; ``None`` for one (a loop over iterations).
        steps: Batches per epoch, for schedules; ``None`` takes the length of ``data``, or counts them in the first
            epoch.
        scaler: ``paddle.amp.GradScaler`` for mixed-precision training.
        loss: Task loss, a function of the network's outputs and the labels. `MutualPeer` and ``eval_data`` need it;
            `DistillCallback` chooses its own ``loss`` by it if that is ``None``.
        metrics: ``paddle.metric.Metric``, or a list of them, to compute on the callbacks' ``eval_data``.
        data: Loader of the training data; gives the input sizes before the first batch.
        inputs: `InputSpec` for each input of the network; gives their sizes too, needed if there are several inputs.

    Raises:
        TypeError: An argument of another type.
        ValueError: A network that is already in a `training_loop`; see the callbacks for the others.

    Example:
        >>> with training_loop(network, optimizer, [DistillCallback(teacher, loss="kl")]) as loop:  # doctest: +SKIP
        ...     for images, labels in loader:
        ...         loss = loop.loss(criterion(network(images), labels))
        ...         loss.backward()
        ...         optimizer.step()
        ...         optimizer.clear_grad()
    """
    _check_types(network, optimizer, scaler)
    members = [callbacks] if isinstance(callbacks, paddle.callbacks.Callback) else callbacks
    if not isinstance(members, (list, tuple)):
        raise TypeError(
            f"callbacks must be a list of callbacks, got {type(callbacks).__name__}: [DistillCallback(...)]."
        )
    for member in members:
        if not isinstance(member, ScopedCallback):
            raise TypeError(
                "callbacks must be of this package (DistillCallback, PACTQuantCallback, ExportBenchCallback), got "
                f"{type(member).__name__}: call other callbacks from your own loop."
            )
    for name, number in (("epochs", epochs), ("steps", steps)):
        if number is not None:
            check_whole(name, number, 1, remedy="leave it out if not known")
    options = {"loss": loss, "metrics": metrics, "scaler": scaler, "inputs": inputs}
    model = LoopModel(unwrapped(network), optimizer, **options)
    return TrainingLoop(model, members, epochs=epochs, steps=steps or known_length(data), data=data)


class TrainingLoop:
    """Run callbacks in the user's own loop; created by `training_loop`.

    Args:
        model: Network and optimizer.
        callbacks: Callbacks to run.
        epochs: Total number of epochs, if known.
        steps: Batches per epoch, if known.
        data: Loader of the training data, if known.

    Attributes:
        skipped: Whether the latest batch was skipped (``on_nan="skip"``).
    """

    def __init__(
        self, model: LoopModel, callbacks: Sequence[ScopedCallback], *, epochs: int | None, steps: int | None, data: Any
    ) -> None:
        self._model, self._callbacks, self._data = model, list(callbacks), data
        self._epochs, self._steps = epochs, steps
        self._session: FitSession | None = None
        self._labels: list[Any] = []
        self._ran = self._given = self.skipped = self._waiting = False
        self._epoch, self._trained = 0, False
        self._logs: dict[str, Any] = {}
        self._last: dict[str, float] = {}

    def __enter__(self) -> TrainingLoop:
        """Check, convert and attach the callbacks."""
        network = self._model.network
        if self._session is not None:
            raise RuntimeError("This training_loop was entered before: make a new one for each training.")
        if network in _open:
            raise ValueError(
                f"{type(network).__name__} is in a training_loop already: give all callbacks to one, or leave the "
                "first."
            )
        self._check_callbacks()
        session = self._session = FitSession(self._model)
        session.data, session.logs = self._data, self._logs
        params: dict[str, Any] = {"epochs": self._epochs, "steps": self._steps, "metrics": [], "own_loop": True}
        try:
            _open.add(network)
            for callback in self._callbacks:
                callback.join(session, params)
            session.start(params)
            with uninterrupted():
                session.late.callback(network.register_forward_pre_hook(self._before_forward).remove)
                session.late.callback(network.register_forward_post_hook(self._after_forward).remove)
                self._wrap("step")
                self._wrap("minimize")
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Undo the edits; without an exception, let the callbacks finish."""
        session = self._in_training()
        try:
            if kind is None:
                self._end_epoch()
                self._last = session.figures()
                for callback in self._callbacks:
                    callback.on_train_end()
                self._leave(forget=False)
                session.finish()
        finally:
            self._leave()

    @property
    def metrics(self) -> dict[str, float]:
        """Return the latest batch's metrics: ``loss``, ``task_loss``, ...

        Waits for the device.
        """
        figures = {} if self._session is None else self._session.figures()
        return figures or dict(self._last)

    def batch(self, data: Any) -> list[Any]:
        """Pass a batch to the callbacks before its forward pass; return its fields.

        Needed only with the data set of `cache_teacher`, whose stored outputs are removed here, and if the labels are
        used before the forward pass (``teacher_inputs`` with a parameter ``labels``).

        Args:
            data: Batch of the loader: a list of inputs and labels.

        Raises:
            TypeError: Not a list of fields.
            RuntimeError: Called outside the ``with`` block.
        """
        self._in_training()
        if not isinstance(data, (list, tuple)):
            raise TypeError(
                f"batch() takes a list [inputs, labels, ...] as a DataLoader gives it, got {type(data).__name__}."
            )
        count = input_count(self._model)
        fields = self._model.train_batch(list(data[:count]), list(data[count:]))
        self._labels = fields[count:]
        return fields

    def loss(self, loss: Any, *labels: Tensor) -> Any:
        """Return the loss to minimise: task loss plus the callbacks' terms.

        Call it once, between forward pass and ``backward``.

        Args:
            loss: Task loss: a tensor; a list of parts, which are summed; or a dictionary with the total as ``"loss"``,
                as returned by networks and losses of PaddleDetection and PaddleOCR.
            labels: Labels of the batch, for losses that use labels and for a `MutualPeer`.

        Returns:
            The loss, in a dictionary if one was given. For a skipped batch (``on_nan="skip"``) a zero without a graph,
            with which ``backward`` and the optimizer's step change no weight.

        Raises:
            TypeError: Not a tensor, a list of tensors, or a dictionary with ``"loss"``.
            ValueError: A loss that is not a scalar.
            RuntimeError: Called outside the ``with`` block, called twice, or the network has not run.
            NonFiniteLossError: See ``on_nan`` of the callbacks.
        """
        if isinstance(loss, Mapping) and "loss" in loss:
            return {**loss, "loss": self.loss(loss["loss"], *labels)}
        session, parts = self._in_training(), listed(loss)
        self._check_loss(parts)
        self._given, self._ran = True, False
        known = list(labels) or self._labels
        session.batch.labels = known
        outputs = [] if session.batch.student is None else listed(session.batch.student.outputs)

        criterion = task_loss_of(self._model)

        def task_loss(*outputs_and_labels: Any) -> Any:
            if not known and criterion is not unknown_loss:
                raise RuntimeError(
                    "A callback computes the task's loss itself: give the labels, loop.loss(loss, labels)."
                )
            return criterion(*outputs_and_labels)

        self.skipped = False
        try:
            total = summed(session.training_loss(task_loss, loss, outputs, known))
        except SkipBatch as left_out:
            self.skipped, total = True, paddle.zeros_like(summed(left_out.losses)).detach()
            total.stop_gradient = False
        except BaseException:
            self._given = False
            raise
        finally:
            self._labels = []
        session.put_figure("loss", total)
        return total

    def epoch(self, number: int) -> None:
        """Begin an epoch: advance schedules, check weights of the previous epoch.

        Args:
            number: Index of the epoch, from 0 over the whole training; a resumed training continues the count.

        Raises:
            TypeError: Not a whole number.
            ValueError: An epoch that has ended, or beyond ``epochs``.
            RuntimeError: Called outside the ``with`` block.
        """
        session = self._in_training()
        if not is_whole(number):
            raise TypeError(f"epoch() takes the number of the epoch, counted from 0, got {number!r}.")
        self._end_batch(updated=False)
        lowest = self._epoch + 1 if self._trained else self._epoch
        if number < lowest or (self._epochs is not None and number >= self._epochs):
            most = "" if self._epochs is None else f", and below epochs={self._epochs}"
            raise ValueError(
                f"epoch({number}): the next epoch is {lowest} or later, counted from 0{most}. Call it once at the "
                "beginning of each epoch."
            )
        if self._epochs is None and number and any(callback.follows_epochs for callback in self._callbacks):
            raise ValueError(
                f"epoch({number}): the schedules need the number of epochs: give training_loop(epochs=...)."
            )
        self._end_epoch()
        self._epoch = number
        for callback in session.members:
            callback.on_epoch_begin(number, self._logs)

    def evaluated(self, figures: Mapping[str, float]) -> None:
        """Report the metrics of an evaluation, for ``which="best"`` and the budget.

        Args:
            figures: Metrics by name, for instance ``{"mIoU": 0.71}``.

        Raises:
            TypeError: Not a mapping of names to numbers.
            RuntimeError: Called outside the ``with`` block.
        """
        session = self._in_training()
        if not isinstance(figures, Mapping):
            raise TypeError(f"evaluated() takes a mapping of names to numbers, got {type(figures).__name__}.")
        try:
            numbers = {str(name): float(value) for name, value in figures.items()}
        except (TypeError, ValueError) as error:
            raise TypeError(f"evaluated() takes a mapping of names to numbers, got {dict(figures)!r}.") from error
        self._end_batch(updated=False)
        self._model.figures = numbers
        for callback in session.members:
            callback.on_evaluated(self._epoch, self._logs, dict(numbers))

    def save(self, path: str) -> None:
        """Save the callbacks' state beside your checkpoint ``path.pdparams``.

        Call it after saving the weights; ``DistillCallback(resume=path)`` loads it.

        Args:
            path: Prefix of the checkpoint.

        Raises:
            RuntimeError: Called outside the ``with`` block.
        """
        self._in_training()
        self._end_batch(updated=False)
        self._model.save(str(path))

    def _before_forward(self, network: Layer, inputs: tuple[Any, ...]) -> None:
        session = self._session
        if session is None or not paddle.in_dynamic_mode() or not network.training:
            return
        self._check_precision()
        self._end_batch(updated=False)  # the previous batch, if no optimizer step followed it
        self._ran = True
        session.begin_batch(list(inputs), self._labels or None)
        session.guard.keep()
        session.before_forward(network, inputs)

    def _after_forward(self, network: Layer, inputs: tuple[Any, ...], outputs: Any) -> None:
        if self._session is not None and self._ran and network.training:
            self._session.after_forward(network, inputs, outputs)

    def _wrap(self, name: str) -> None:
        """Let the optimizer's ``step`` or ``minimize`` end the batch."""
        optimizer = prepared_optimizer(self._model)
        original = getattr(optimizer, name)

        def stepped(*args: Any, **kwargs: Any) -> Any:
            if self._given and self.skipped and not self._waiting:  # a zero gradient would still move weights
                self._end_batch(updated=False)
                return ([], []) if name == "minimize" else None
            result = original(*args, **kwargs)
            self._end_batch(updated=True)
            return result

        self._in_training().late.enter_context(instance_attribute(optimizer, name, stepped))

    def _end_batch(self, *, updated: bool) -> None:
        """End the current batch, if its loss was given."""
        session = self._session
        if session is None or not self._given:
            return
        self._given, self._trained = False, True
        if self.skipped:
            session.end_skipped_batch(updated)
            self._waiting = self._waiting and not updated
        else:
            session.end_batch(updated)
            self._waiting = not updated

    def _end_epoch(self) -> None:
        self._end_batch(updated=False)
        if self._trained:
            self._trained = False
            for callback in self._in_training().members:
                callback.on_epoch_end(self._epoch, self._logs)

    def _in_training(self) -> FitSession:
        if self._session is None or self._model.network not in _open:
            raise RuntimeError(
                "This training_loop is not active: use it inside its block, with training_loop(...) as loop."
            )
        return self._session

    def _leave(self, *, forget: bool = True) -> None:
        session = self._session
        if session is not None:
            self._last = session.figures() or self._last
            session.close()
            if forget:
                for callback in self._callbacks:
                    callback.leave()
        if forget:
            _open.discard(self._model.network)

    def _check_loss(self, parts: Sequence[Any]) -> None:
        if not parts or not all(isinstance(part, Tensor) for part in parts):
            raise TypeError(
                "loss() takes the loss as a tensor, a list of its parts, or a dictionary with the total as 'loss', got "
                f"{[sorted(part) if isinstance(part, Mapping) else type(part).__name__ for part in parts]}."
            )
        wide = [list(part.shape) for part in parts if part.size != 1]
        if wide:
            raise ValueError(f"loss() takes scalars, got shapes {wide}: take the mean or the sum first.")
        if self._ran:
            return
        network = type(self._model.network).__name__
        if self._given:
            raise RuntimeError(
                f"loss() was called twice for one forward pass of {network}: sum the losses, and call it once."
            )
        mode = "" if self._model.network.training else f" {network} is in eval mode: call train() on it."
        raise RuntimeError(
            f"loss() was called, but {network} has not run in train mode since the last batch.{mode} Call the network "
            "that training_loop was given, once before each loss()."
        )

    def _check_precision(self) -> None:
        need = [type(callback).__name__ for callback in self._callbacks if callback.needs_fp32]
        if need and paddle.is_autocast_enabled():
            raise ValueError(
                f"The network runs inside paddle.amp.auto_cast, and {need[0]} needs fp32 to be exact: call it outside."
            )

    def _check_callbacks(self) -> None:
        for callback in self._callbacks:
            if callback.in_training:
                raise ValueError(f"{callback!r} is in a training already: make a callback for each training.")
            data = getattr(callback, "eval_data", None)
            if data is not None and data is not False and not metrics_of(self._model):
                raise ValueError(
                    f"{type(callback).__name__}(eval_data=...) needs to know what to measure: give "
                    "training_loop(metrics=paddle.metric.Accuracy()), or leave eval_data out and report the metrics of "
                    "your own evaluation with loop.evaluated({...})."
                )


def _check_types(network: Any, optimizer: Any, scaler: Any) -> None:
    if not isinstance(network, Layer):
        remedy = "its network" if isinstance(network, paddle.Model) else "the network that is trained"
        raise TypeError(f"network must be a paddle.nn.Layer, got {type(network).__name__}: give {remedy}.")
    if not isinstance(optimizer, paddle.optimizer.Optimizer):
        raise TypeError(
            f"optimizer must be a paddle.optimizer.Optimizer, got {type(optimizer).__name__}: give the one that takes "
            "the steps (of fleet.distributed_optimizer, the one inside)."
        )
    if scaler is not None and not isinstance(scaler, paddle.amp.GradScaler):
        raise TypeError(f"scaler must be a paddle.amp.GradScaler, got {type(scaler).__name__}: leave it out for fp32.")
