"""Cross-layer equalisation against the paper's formulas, and against the float network."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import nn

from paddlelite_callbacks import ptq_int8
from paddlelite_callbacks.quant.equalization import absorb_high_biases_, equalize_, equalizing_scales, layer_pairs


def images(count=8, seed=0, channels=3):
    return paddle.to_tensor(np.float32(np.random.RandomState(seed).randn(count, channels, 8, 8)))


def result(network, x):
    with paddle.no_grad():
        return network(x).numpy()


def uneven_(network, seed=0, spread=2.0):
    """Give channels of very different sizes, and statistics that are not those of a new layer."""
    random = np.random.RandomState(seed)
    for layer in network.sublayers():
        if isinstance(layer, nn.BatchNorm2D):
            size = layer.weight.shape
            layer.weight.set_value(np.float32(np.exp(random.randn(*size) * spread) * random.choice([-1, 1], size)))
            layer.bias.set_value(np.float32(random.randn(*size)))
            layer._mean.set_value(np.float32(random.randn(*size)))
            layer._variance.set_value(np.float32(random.rand(*size) + 0.5))
        elif isinstance(layer, (nn.Conv2D, nn.Linear)):
            shape = layer.weight.shape
            factor = np.exp(random.randn(shape[0], *[1] * (len(shape) - 1)) * spread)
            layer.weight.set_value(layer.weight.numpy() * np.float32(factor))
    network.eval()
    return network


def ranges(first, norm, second):
    """Largest magnitudes per channel by loops, batch norms folded; ``second``: layer and norm."""

    def folded(layer, norm, channel):
        weight = layer.weight.numpy().astype("float64")[channel]
        if norm is None:
            return weight
        scale = norm.weight.numpy()[channel] / np.sqrt(norm._variance.numpy()[channel] + norm._epsilon)
        return weight * scale

    before = [np.abs(folded(first, norm, channel)).max() for channel in range(first.weight.shape[0])]
    layer, after = second
    rows, found = layer.weight.shape[0], [0.0] * len(before)
    inner, out = layer.weight.shape[1], rows // layer._groups
    for row in range(rows):
        for place in range(inner):
            channel = (row // out) * inner + place
            found[channel] = max(found[channel], np.abs(folded(layer, after, row)[place]).max())
    return np.array(before), np.array(found)


def test_the_scales_are_those_of_equation_11():
    first, second = np.array([4.0, 0.25, 9.0, 0.0, 2.0]), np.array([1.0, 16.0, 9.0, 3.0, 0.0])
    scales = equalizing_scales(first, second)
    wanted = [(1 / b) * np.sqrt(a * b) if a > 0 and b > 0 else 1.0 for a, b in zip(first, second, strict=True)]
    assert scales == pytest.approx(wanted)
    both = slice(0, 3)
    assert first[both] / scales[both] == pytest.approx(second[both] * scales[both])


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(0.2), nn.PReLU(6), None], ids=repr)
def test_two_layers_have_the_same_range_and_the_same_outputs(activation):
    paddle.seed(0)
    middle = [] if activation is None else [activation]
    network = uneven_(nn.Sequential(nn.Conv2D(3, 6, 3), *middle, nn.Conv2D(6, 4, 1), nn.Sigmoid()))
    first, second = network[0], network[1 + len(middle)]
    before = ranges(first, None, (second, None))
    wanted, bias = result(network, images()), first.bias.numpy()
    (pair, scales), *others = equalize_(network, [images()]).items()
    assert not others
    assert (pair.first, pair.second, pair.norm) == ("0", str(1 + len(middle)), None)
    assert scales == pytest.approx(np.sqrt(before[0] / before[1]))
    for found in ranges(first, None, (second, None)):
        assert found == pytest.approx(np.sqrt(before[0] * before[1]), rel=1e-5)
    assert first.bias.numpy() == pytest.approx(bias / scales, rel=1e-5)
    np.testing.assert_allclose(result(network, images()), wanted, rtol=1e-4, atol=1e-6)


class Inverted(nn.Layer):
    """Expand, depthwise, project, twice, with a residual: as in MobileNetV2."""

    def __init__(self, activation=nn.ReLU):
        super().__init__()
        paddle.seed(1)
        self.parts = nn.LayerList()
        for _ in range(2):
            convolutions = [nn.Conv2D(3, 8, 1, bias_attr=False), nn.Conv2D(8, 8, 3, padding=1, groups=8)]
            block = [convolutions[0], nn.BatchNorm2D(8), activation(), convolutions[1], nn.BatchNorm2D(8)]
            self.parts.append(nn.Sequential(*block, activation(), nn.Conv2D(8, 3, 1), nn.BatchNorm2D(3)))
        self.fc = nn.Linear(3, 5)

    def forward(self, x):
        for part in self.parts:
            x = x + part(x)
        return self.fc(x.mean([2, 3]))


def test_chains_through_depthwise_layers_settle():
    network = uneven_(Inverted())
    wanted = result(network, images())
    found = equalize_(network, [images()])
    assert {(pair.first, pair.second) for pair in found} == {
        (f"parts.{block}.{first}", f"parts.{block}.{second}") for block in (0, 1) for first, second in ((0, 3), (3, 6))
    }  # not across the residual sums
    for part in network.parts:
        for first, norm, second, after in ((0, 1, 3, 4), (3, 4, 6, 7)):
            a, b = ranges(part[first], part[norm], (part[second], part[after]))
            np.testing.assert_allclose(a, b, rtol=1e-3)
    np.testing.assert_allclose(result(network, images()), wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())


def test_relu6_scales_only_channels_below_six():
    network = uneven_(nn.Sequential(nn.Conv2D(3, 6, 3), nn.ReLU6(), nn.Conv2D(6, 4, 1)), spread=0.5)
    network[0].weight.set_value(network[0].weight / network[0].weight.abs().max(axis=[1, 2, 3], keepdim=True))
    network[0].weight.set_value(network[0].weight * paddle.to_tensor([9, 9, 0.1, 0.1, 0.2, 0.02]).reshape([6, 1, 1, 1]))
    most = network[1](network[0](images())).max(axis=[0, 2, 3]).numpy()
    assert (most[:2] == 6).all()
    assert (most[2:] < 6).all()
    wanted = result(network, images())
    (scales,) = equalize_(network, [images()]).values()
    assert (scales[:2] == 1).all()
    assert (scales[2:] != 1).all()
    assert (most[2:] / scales[2:] <= 6 + 1e-5).all()
    np.testing.assert_allclose(result(network, images()), wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())


class Branching(nn.Layer):
    """The same two convolutions, used in ways that forbid or allow a scale."""

    def __init__(self, use):
        super().__init__()
        self.use, self.first, self.second = use, nn.Conv2D(3, 4, 1), nn.Conv2D(4, 4, 1)
        self.fc = nn.Linear(4 * 16, 2)

    def forward(self, x):
        y = self.first(x)
        if self.use == "sigmoid":
            return self.second(nn.functional.sigmoid(y))
        if self.use == "two readers":
            return self.second(nn.functional.relu(y)) + y
        if self.use == "output":
            return self.second(nn.functional.relu(y)), y
        if self.use == "twice":
            return self.second(self.second(nn.functional.relu(y)))
        if self.use == "shift":
            return self.second(nn.functional.relu(y) + 1)
        return self.fc(nn.functional.max_pool2d(nn.functional.relu(y), 2).flatten(1))


@pytest.mark.parametrize("use", ["sigmoid", "two readers", "output", "twice", "shift"])
def test_layers_that_cannot_be_scaled_are_left(use):
    paddle.seed(0)
    network = Branching(use)
    assert layer_pairs(network, [images()]) == []
    weight = network.first.weight.numpy()
    assert equalize_(network, [images()]) == {}
    np.testing.assert_array_equal(network.first.weight.numpy(), weight)


def test_a_flattened_map_has_a_place_per_pixel():
    paddle.seed(0)
    network = uneven_(Branching("flat"))
    wanted = result(network, images())
    (pair,) = equalize_(network, [images()])
    assert pair.pooled
    by_channel = np.abs(network.fc.weight.numpy()).reshape(4, 16, 2).max(axis=(1, 2))
    own = np.abs(network.first.weight.numpy()).max(axis=(1, 2, 3))
    np.testing.assert_allclose(own, by_channel, rtol=1e-4)
    np.testing.assert_allclose(result(network, images()), wanted, rtol=1e-4, atol=1e-5)


def test_a_pool_may_stand_before_the_norm_but_not_behind_relu6():
    paddle.seed(0)
    before = [nn.Conv2D(3, 6, 3), nn.MaxPool2D(2), nn.BatchNorm2D(6), nn.ReLU(), nn.Conv2D(6, 4, 1)]
    network = uneven_(nn.Sequential(*before))
    wanted = result(network, images())
    (pair,) = equalize_(network, [images()])
    assert (pair.first, pair.norm, pair.second, pair.pooled) == ("0", "2", "4", True)
    np.testing.assert_allclose(*ranges(network[0], network[2], (network[4], None)), rtol=1e-4)
    np.testing.assert_allclose(result(network, images()), wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
    clipped = nn.Sequential(nn.Conv2D(3, 6, 3), nn.ReLU6(), nn.AvgPool2D(2), nn.Conv2D(6, 4, 1))
    assert layer_pairs(clipped, [images()]) == []


def test_high_biases_move_into_the_next_layer():
    paddle.seed(0)
    network = nn.Sequential(nn.Conv2D(3, 4, 1), nn.BatchNorm2D(4), nn.ReLU(), nn.Conv2D(4, 5, 1, bias_attr=False))
    network.eval()
    beta, gamma = np.float32([9.0, 1.0, -5.0, 30.0]), np.float32([1.0, 1.0, 1.0, -2.0])
    network[1].bias.set_value(beta)
    network[1].weight.set_value(gamma)
    x = images() * 0.1  # no value falls below c
    wanted, weight = result(network, x), network[3].weight.numpy()[:, :, 0, 0]
    (pair,) = layer_pairs(network, [x])
    assert absorb_high_biases_(network, [pair]) == [pair]
    c = np.maximum(0, beta - 3 * np.abs(gamma))
    np.testing.assert_allclose(network[1].bias.numpy(), beta - c)
    np.testing.assert_allclose(network[3].bias.numpy(), weight @ c, rtol=1e-5)
    np.testing.assert_allclose(result(network, x), wanted, rtol=1e-4, atol=1e-4)
    padded = nn.Sequential(*network[:3], nn.Conv2D(4, 5, 3, padding=1))
    network[1].bias.set_value(beta)
    assert absorb_high_biases_(padded, layer_pairs(padded, [x])) == []


def test_it_helps_where_channels_differ_in_size():
    """Channels of activations differ a thousandfold, and share one step."""
    paddle.seed(0)
    network = nn.Sequential(nn.Conv2D(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2D(16, 8, 1), nn.ReLU(), nn.Flatten())
    factor = paddle.to_tensor(np.float32(np.geomspace(0.03, 30, 16)))
    network[0].weight.set_value(network[0].weight * factor.reshape([16, 1, 1, 1]))
    network[0].bias.set_value(network[0].bias * factor)
    network[2].weight.set_value(network[2].weight / factor.reshape([1, 16, 1, 1]))
    network.eval()
    before = {key: value.numpy() for key, value in network.state_dict().items()}
    wanted = result(network, images(64, seed=1))

    def error(**options):
        got = result(ptq_int8(network, [images(64)], **options), images(64, seed=1))
        return np.sqrt(np.square(got - wanted).mean() / np.square(wanted).mean())

    plain, equalized = error(), error(equalization=True)
    assert equalized < 0.5 * plain
    for key, value in network.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[key])


def test_the_option_is_checked():
    with pytest.raises(ValueError, match="equalization must be True or False, got 'yes'"):
        ptq_int8(nn.Linear(2, 2), [paddle.rand([2, 2])], equalization="yes")
