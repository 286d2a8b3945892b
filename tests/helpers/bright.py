"""A network with many large weights of one sign."""

from __future__ import annotations

import paddle
from paddle import nn


def bright() -> nn.Layer:
    """A network with many large weights of one sign, as trained ones may have."""
    paddle.seed(0)
    network = nn.Sequential(
        nn.Conv2D(3, 16, 3), nn.ReLU(), nn.Conv2D(16, 16, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2D(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip
    with paddle.no_grad():
        for at in (0, 2):
            network[at].weight.set_value(network[at].weight.abs())
    return network
