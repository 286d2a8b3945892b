"""A network whose forward uses the weight of a layer that it also calls is refused before training."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
import pytest
from toy import TinyNet, fit, hapi_model

from paddlelite_callbacks import PACTQuantCallback


class Tied(TinyNet):
    """The weight of the last layer is used a second time."""

    def forward(self, x):
        y = super().forward(x)
        return y + 0.1 * F.linear(F.normalize(y), F.normalize(self.fc.weight))


class TypeOnly(TinyNet):
    """Reads type and shape of a weight."""

    def forward(self, x):
        x = x.astype(self.conv1.weight.dtype).reshape([-1, self.conv1.weight.shape[1], *x.shape[2:]])
        return super().forward(x)


class Uncalled(TinyNet):
    """Uses the weight of a layer that it never calls."""

    def forward(self, x):
        x = F.conv2d(x, self.conv1.weight, self.conv1.bias, padding=1)
        return self.fc(self.conv2(self.relu(self.bn1(x))).mean(axis=[2, 3]))


def test_it_is_refused_with_the_layer_and_the_remedy():
    network = Tied()
    keys = list(network.state_dict())
    with pytest.raises(ValueError, match=r"calls \['fc'\] and also uses their weight itself.*skip=\['fc'\]"):
        fit(hapi_model(network), [PACTQuantCallback()])
    assert list(network.state_dict()) == keys
    assert type(network.fc) is paddle.nn.Linear
    fit(hapi_model(network), [PACTQuantCallback(skip=["fc"])])


@pytest.mark.parametrize("kind", [TinyNet, TypeOnly, Uncalled])
def test_what_works_is_not_refused(kind):
    fit(hapi_model(kind()), [PACTQuantCallback()])
