"""Grey images and backbones that take colours."""

from __future__ import annotations

import paddle
import pytest
from paddle import nn
from paddle.static import InputSpec

from paddlelite_callbacks import BackboneSwap

LIGHT = "mobilenet_v3_small"


class Grey(nn.Layer):
    """A backbone for grey images, with a head; or one behind a convolution that makes three channels."""

    def __init__(self, front=None):
        super().__init__()
        self.front = front or nn.Identity()
        self.backbone = paddle.vision.models.resnet18(num_classes=0, with_pool=False)
        if front is None:
            self.backbone.conv1 = nn.Conv2D(1, 64, 7, 2, 3, bias_attr=False)
        self.head = nn.Conv2D(512, 2, 1)

    def forward(self, x):
        return self.head(self.backbone(self.front(x)))


SPEC = [InputSpec([None, 1, 64, 64])]
SAID = r"takes 3 channels, but would get 1: put paddle.nn.Conv2D\(1, 3, 1\)"


def test_a_backbone_inside_a_network_for_grey_images():
    network = Grey()
    with pytest.raises(ValueError, match=SAID):
        BackboneSwap(LIGHT, at="backbone")(network, input_spec=SPEC)
    assert isinstance(network.backbone, paddle.vision.models.ResNet)
    swapped = BackboneSwap(LIGHT, at="backbone")(Grey(nn.Conv2D(1, 3, 1)), input_spec=SPEC)
    assert swapped(paddle.rand([2, 1, 64, 64])).shape == [2, 2, 2, 2]


@pytest.mark.parametrize("spec", [None, SPEC])
def test_a_whole_classifier_of_grey_images(spec):
    network = paddle.vision.models.resnet18(num_classes=4)
    network.conv1 = nn.Conv2D(1, 64, 7, 2, 3, bias_attr=False)
    with pytest.raises(ValueError, match=SAID):
        BackboneSwap(LIGHT)(network, input_spec=spec)


def test_networks_of_three_channels_are_swapped_whatever_their_first_layer_is():
    network = nn.Sequential(nn.Conv2D(3, 8, 1), paddle.vision.models.LeNet(4))
    network[1].features[0] = nn.Conv2D(8, 6, 3, padding=1)
    network[1].fc = nn.Sequential(nn.AdaptiveAvgPool2D(1), nn.Linear(1, 4))
    assert BackboneSwap(LIGHT)(network)(paddle.rand([1, 3, 32, 32])).shape == [1, 4]
