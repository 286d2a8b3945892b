"""Define the second network of deep mutual learning."""

from __future__ import annotations

import paddle
from paddle.nn import Layer

from paddlelite_callbacks.utils.metric_direction import checked_mode
from paddlelite_callbacks.utils.representation import constructor_repr

__all__ = ["MutualPeer"]


class MutualPeer:
    """Peer network that learns along with the student (deep mutual learning).

    DML (Zhang 2018, arXiv:1706.00384). Each batch, from the same forward passes: the student minimises ``task_weight *
    task(student) + weight * loss(student, peer)``, the peer ``task_weight * task(peer) + weight * loss(peer,
    student)``, with the other's output detached. The peer has an optimizer of its own, is trained by contract, and is
    in no checkpoint of the model (but in the ``.pddistill`` file beside it).

    Args:
        network: Network with inputs and outputs like the student's; its architecture may differ.
        optimizer: Optimizer of ``network.parameters()``; its learning rate scheduler, unless it is the student's, is
            stepped after every batch, as hapi does with the student's.
        keep: ``"better"``: if both architectures are equal, the network with the better last evaluation of ``fit`` ends
            up in the model (weights are exchanged). ``"student"``: nothing is exchanged.
        monitor: Metric of the evaluation that decides: ``"loss"``, or the name of a metric of ``model.prepare``;
            ``None`` takes the first metric, or the loss without one.
        mode: ``"max"`` or ``"min"``: which ``monitor`` is better; ``"auto"`` infers it from the name: lower for the
            loss, names that end in ``loss``, ``err`` or ``error``, ``mae``, ``mse``, ``rmse``, ``nme``, ...

    Attributes:
        better: ``"student"`` or ``"peer"`` by the last evaluation, before any exchange; ``None`` before it.
        figures: Metrics of that evaluation: ``{"student": {...}, "peer": {...}}``.

    Raises:
        TypeError: ``network`` is not a layer, or ``optimizer`` not an optimizer.
        ValueError: Unknown ``keep`` or ``mode``.

    Example:
        >>> peer = MutualPeer(network, paddle.optimizer.Adam(1e-3, parameters=network.parameters()))  # doctest: +SKIP
        >>> model.fit(train_data, eval_data, callbacks=[DistillCallback(peer, loss="dml")])  # doctest: +SKIP

        ``dml`` is for class scores; for regressions leave ``loss`` out (``mse``), for multi-label outputs use ``bce``.
    """

    def __init__(
        self,
        network: Layer,
        optimizer: paddle.optimizer.Optimizer,
        *,
        keep: str = "better",
        monitor: str | None = None,
        mode: str = "auto",
    ) -> None:
        if not isinstance(network, Layer):
            raise TypeError(
                f"network must be a paddle.nn.Layer, got {type(network).__name__}: call MutualPeer(network, optimizer)."
            )
        if not isinstance(optimizer, paddle.optimizer.Optimizer):
            raise TypeError(
                f"optimizer must be a paddle.optimizer.Optimizer, got {type(optimizer).__name__}: make one over "
                "network.parameters()."
            )
        if keep not in ("better", "student"):
            raise ValueError(
                f"keep must be 'better' or 'student', got {keep!r}: use 'student' to never exchange the two networks."
            )
        self.network, self.optimizer, self.keep, self.monitor = network, optimizer, keep, monitor
        self.mode = checked_mode(mode)
        self.better: str | None = None
        self.figures: dict[str, dict[str, float]] = {}

    __repr__ = constructor_repr
