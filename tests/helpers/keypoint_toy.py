"""A backbone of two convolutions, for the keypoint scripts."""

from __future__ import annotations

from paddle import nn


class Tiny(nn.Layer):
    """One map of stride 4."""

    channels = (8,)

    def __init__(self):
        super().__init__()
        layers = [nn.Conv2D(3, 8, 3, 2, 1), nn.BatchNorm2D(8), nn.ReLU(), nn.Conv2D(8, 8, 3, 2, 1), nn.ReLU()]
        self.body = nn.Sequential(*layers)

    def forward(self, x):
        return [self.body(x)]
