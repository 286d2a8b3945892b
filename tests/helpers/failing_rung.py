"""Run a ladder script with one network more to choose, ``leaves_paddle``, which trains and cannot be exported.

``python tests/helpers/failing_rung.py SCRIPT FLAG...``; a script of its own because the ladders run as commands.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import paddle
from paddle import nn


class LeavesPaddle(nn.Layer):
    """Computes its last step outside Paddle, once it has trained: no program can hold that.

    Args:
        network: that computes the rest.
    """

    def __init__(self, network: nn.Layer) -> None:
        super().__init__()
        self.network, self.batches = network, 0
        self.channels = getattr(network, "channels", None)  # of a backbone

    def forward(self, x):
        """What ``network`` gives."""
        output = self.network(x)
        if self.training:
            self.batches += 1
            return output
        leave = self.batches > 1  # not yet where an export is tried before the training
        return paddle.utils.map_structure(lambda item: paddle.to_tensor(np.asarray(item)) if leave else item, output)


def small_classifier(num_classes: int) -> nn.Layer:
    """A classifier of 3 channels, for ``paddle.vision.models``."""
    convolution = nn.Sequential(nn.Conv2D(3, 8, 3, stride=2), nn.BatchNorm2D(8), nn.ReLU())
    return LeavesPaddle(nn.Sequential(convolution, nn.AdaptiveAvgPool2D(1), nn.Flatten(), nn.Linear(8, num_classes)))


def main(script: Path) -> None:
    """Run ``script`` as a command."""
    sys.path.insert(0, str(script.parent))
    paddle.vision.models.leaves_paddle = small_classifier
    if script.parent.name == "keypoints":
        import settings

        name = "naive_lite_hrnet_18"
        settings.NETWORKS["leaves_paddle"] = lambda: LeavesPaddle(settings.NETWORKS[name]())
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    del sys.argv[0]
    main(Path(sys.argv[0]))
