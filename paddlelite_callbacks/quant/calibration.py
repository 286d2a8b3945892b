"""Count training passes, so that calibration counts batches instead of calls."""

from __future__ import annotations

from typing import Any

from paddle.nn import Layer

__all__ = ["ForwardPasses", "count_passes_", "stop_counting_"]


class ForwardPasses:
    """Counter of the training passes of a network.

    Attributes:
        number: Number of the current or last pass; 0 before the first.
        running: Whether a pass is running.
        attached: Whether the hooks of the network are registered.
    """

    def __init__(self) -> None:
        self.number, self.running, self.attached = 0, False, False

    def begin(self, network: Layer, inputs: Any) -> None:
        """Record a call of ``network`` (forward pre-hook)."""
        if network.training:
            self.number, self.running = self.number + 1, True

    def end(self, network: Layer, inputs: Any, outputs: Any) -> None:
        """Record a return of ``network`` (forward post-hook)."""
        self.running = False


def count_passes_(network: Layer) -> tuple[ForwardPasses, bool]:
    """Register the hooks that count training passes, once.

    Args:
        network: Network that is called once per batch.

    Returns:
        The counter, and whether it is new.
    """
    for hook in network._forward_pre_hooks.values():
        owner = getattr(hook, "__self__", None)
        if isinstance(owner, ForwardPasses) and owner.attached:
            return owner, False
    passes = ForwardPasses()
    passes.attached = True
    network.register_forward_pre_hook(passes.begin)
    network.register_forward_post_hook(passes.end)
    return passes, True


def stop_counting_(network: Layer) -> None:
    """Remove the hooks of `count_passes_`.

    Args:
        network: Network that `count_passes_` was applied to.
    """
    for table in (network._forward_pre_hooks, network._forward_post_hooks):
        for number, hook in list(table.items()):
            owner = getattr(hook, "__self__", None)
            if isinstance(owner, ForwardPasses):
                owner.attached = owner.running = False
                del table[number]
