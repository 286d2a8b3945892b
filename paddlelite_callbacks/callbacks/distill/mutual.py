"""Deep mutual learning: forward pass, update and evaluation of the peer."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.callbacks.batch_state import BatchState
from paddlelite_callbacks.callbacks.distill.teachers import Source
from paddlelite_callbacks.distill.forward import Labels, TeacherForward
from paddlelite_callbacks.distill.load_teacher import load_weights_
from paddlelite_callbacks.distill.mutual import MutualPeer
from paddlelite_callbacks.hapi import (
    LossFunction,
    amp_level,
    amp_options,
    check_optimizer_parameters,
    metric_names,
    metrics_of,
    optimizer_state_of,
    prepared_optimizer,
    rate_scheduler_of,
    set_optimizer_state_of,
)
from paddlelite_callbacks.nn.dry_run import InputSpecs, seen_on_zeros
from paddlelite_callbacks.nn.nested import Seen, listed, tensors_of
from paddlelite_callbacks.nn.surgery import same_modes
from paddlelite_callbacks.utils.distributed import mean_over_ranks
from paddlelite_callbacks.utils.metric_direction import falls_with_quality

__all__ = ["MutualSource"]

_log = logging.getLogger(__name__)


class MutualSource(Source):
    """Train and evaluate a `MutualPeer` beside the student.

    Args:
        peer: Peer network with its optimizer.
    """

    taps_features = False
    has_state = True
    state_keys = ("network", "optimizer", "rate")
    learns = True
    figures = ("peer_loss",)
    called = "peer"

    def __init__(self, peer: MutualPeer) -> None:
        self.peer = peer
        self.networks = [peer.network]
        self._watched: Any = None
        self._scaler: paddle.amp.GradScaler | None = None
        self._metrics: dict[str, list[paddle.metric.Metric]] = {}
        self._losses: dict[str, list[tuple[float, int]]] = {"student": [], "peer": []}
        self._own_rate: Any = None
        self._loss: Tensor | None = None
        self._learnt = False

    def described(self) -> str:
        """Return the peer with its options."""
        return repr(self.peer)

    def settle(self, model: paddle.Model) -> list[Layer | None]:
        """Check that peer and optimizer are not the student's own."""
        peer, student = self.peer, {id(parameter) for parameter in model.network.parameters()}
        shared = [name for name, parameter in peer.network.named_parameters() if id(parameter) in student]
        if shared:
            raise ValueError(
                f"The peer shares {len(shared)} parameters with the student ({shared[:3]} ...): "
                "give a network of its own, for instance copy.deepcopy(network)."
            )
        if peer.optimizer is prepared_optimizer(model):
            raise ValueError("The peer needs an optimizer of its own, over its own parameters.")
        check_optimizer_parameters(peer.optimizer, peer.network, "The peer's optimizer")
        known = ["loss", *metric_names(model)]
        if peer.monitor is not None and peer.monitor not in known:
            raise ValueError(
                f"monitor must be one of {known}, got {peer.monitor!r}: a metric given to model.prepare, or leave it "
                "out for the first."
            )
        return [peer.network]

    def seen_on_zeros(self, specs: InputSpecs, features: Sequence[Sequence[str]], hooks: bool) -> list[Seen] | None:
        """Run the peer on zeros, in train mode."""
        seen = seen_on_zeros(self.peer.network, specs, (), training=True, hooks=hooks)
        return None if seen is None else [seen]

    def attach(self, model: paddle.Model, features: Sequence[Sequence[str]], scope: ExitStack) -> TeacherForward:
        """Prepare the peer for training; its weights are equal on all ranks."""
        peer = self.peer
        scope.enter_context(same_modes(peer.network))
        scope.callback(self._forget)
        scope.callback(peer.optimizer.clear_grad)
        self._scaler = paddle.amp.GradScaler(**amp_options(model)) if amp_level(model) != "O0" else None
        self._metrics = {who: copy.deepcopy(metrics_of(model)) for who in self._losses}
        rate = rate_scheduler_of(peer.optimizer)
        self._own_rate = None if rate is rate_scheduler_of(prepared_optimizer(model)) else rate
        peer.better, peer.figures = None, {}
        if paddle.distributed.get_world_size() > 1:
            for tensor in peer.network.state_dict().values():
                paddle.distributed.broadcast(tensor, src=0)
            for parameter in peer.network.parameters():  # the peer is outside hapi's DataParallel
                if parameter.trainable:
                    scope.callback(parameter.register_hook(mean_over_ranks).remove)
        return self._run

    def _run(self, inputs: Sequence[Tensor], labels: Labels) -> list[Seen]:
        """Run the peer, with gradients."""
        self.peer.network.train()
        return [Seen(self.peer.network(*inputs))]

    def learn(self, task_loss: LossFunction, labels: Sequence[Tensor], batch: BatchState, distil: Any) -> Tensor | None:
        """Compute the peer's loss; its backward pass follows the student's."""
        if batch.student is None or not batch.teachers:
            return None
        (peer,), student = batch.teachers.values(), batch.student.detached()
        self._loss = distil(task_loss(*listed(peer.outputs), *labels), peer, [student], labels)
        return self._loss

    def after_batch(self, updated: bool) -> None:
        """Backpropagate; step the peer's optimizer where the student's stepped."""
        peer = self.peer
        if self._loss is not None:
            (self._loss if self._scaler is None else self._scaler.scale(self._loss)).backward()
            self._loss, self._learnt = None, True
        if updated and self._learnt:
            if self._scaler is None:
                peer.optimizer.step()
            else:
                self._scaler.step(peer.optimizer)
                self._scaler.update()
            peer.optimizer.clear_grad()
            self._learnt = False
        if self._own_rate is not None:
            self._own_rate.step()

    def skipped(self) -> None:
        """Discard the peer's loss."""
        self._loss = None

    def watch(self, inputs: Sequence[Tensor]) -> None:
        """Run the peer on a batch of the evaluation."""
        self.peer.network.eval()
        with paddle.no_grad():
            self._watched = self.peer.network(*inputs)

    def evaluated(self, task_loss: LossFunction, outputs: Sequence[Tensor], labels: Sequence[Tensor]) -> None:
        """Update both networks' metrics with a batch."""
        watched, self._watched = self._watched, None
        if watched is None:
            return
        count = int(next(iter(tensors_of(list(outputs)).values())).shape[0])
        for who, given in (("student", list(outputs)), ("peer", listed(watched))):
            with paddle.no_grad():
                self._losses[who].append((_scalar(task_loss(*given, *labels)), count))
            for metric in self._metrics[who]:
                result = metric.compute(*given, *labels)
                metric.update(*[x.numpy() if isinstance(x, Tensor) else x for x in listed(result)])

    def after_evaluation(self, logs: dict[str, Any]) -> dict[str, float]:
        """Compare both networks' metrics, with the same result on all ranks."""
        if not self._losses["peer"]:
            return {}
        figures = {who: self._figures_of(who) for who in ("student", "peer")}
        monitor = self.peer.monitor or next((name for name in figures["peer"] if name != "loss"), "loss")
        mine, peers = figures["student"][monitor], figures["peer"][monitor]
        ahead = peers < mine if falls_with_quality(monitor, self.peer.mode) else peers > mine
        self.peer.better, self.peer.figures = ("peer" if ahead else "student"), figures
        return {f"peer_{name}": value for name, value in figures["peer"].items()}

    def _figures_of(self, who: str) -> dict[str, float]:
        """Return the mean metrics over all samples of all ranks, and reset them."""
        losses, self._losses[who] = self._losses[who], []
        count = sum(size for _, size in losses)
        figures = {"loss": sum(loss * size for loss, size in losses) / count}
        for metric in self._metrics[who]:
            for name, value in zip(listed(metric.name()), listed(metric.accumulate()), strict=True):
                figures[name] = float(value)
            metric.reset()
        if paddle.distributed.get_world_size() > 1:
            sums = paddle.to_tensor([1.0, *figures.values()], dtype="float64") * count
            paddle.distributed.all_reduce(sums)
            figures = dict(zip(figures, (sums[1:] / sums[0]).tolist(), strict=True))
        return figures

    def end(self, model: paddle.Model) -> None:
        """Load the better network's weights into the model, if architectures match."""
        if self.peer.better != "peer" or self.peer.keep != "better":
            return
        student, peer = model.network.state_dict(), self.peer.network.state_dict()
        if [(k, v.shape) for k, v in student.items()] != [(k, v.shape) for k, v in peer.items()]:
            _log.warning(
                "The peer is the better network (%s against %s) but has another architecture: its weights "
                "stay in the peer's network, and the model saves the student.",
                self.peer.figures["peer"],
                self.peer.figures["student"],
            )
            return
        for key, tensor in student.items():
            held = tensor.clone()
            tensor.set_value(peer[key])
            peer[key].set_value(held)

    def state_dict(self) -> dict[str, Any]:
        """Return the peer, its optimizer's accumulators and its learning rate scheduler."""
        network, optimizer = self.peer.network, self.peer.optimizer
        rate = rate_scheduler_of(optimizer)
        return {
            "network": network.state_dict(),
            "optimizer": optimizer_state_of(optimizer, dict(network.named_parameters())),
            "rate": {} if rate is None else rate.state_dict(),
        }

    def set_state_dict(self, state: dict[str, Any], model: paddle.Model) -> None:
        """Load a saved peer."""
        network, optimizer = self.peer.network, self.peer.optimizer
        load_weights_(network, state["network"], "The saved peer")
        set_optimizer_state_of(optimizer, dict(network.named_parameters()), state["optimizer"])
        rate = rate_scheduler_of(optimizer)
        if rate is not None and state["rate"]:
            rate.set_state_dict(state["rate"])

    def _forget(self) -> None:
        self._watched, self._loss, self._learnt = None, None, False
        self._losses = {"student": [], "peer": []}


def _scalar(loss: Any) -> float:
    return float(sum(float(part) for part in listed(loss)))
