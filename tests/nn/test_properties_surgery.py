"""Surgery on random nested networks with shared layers: replacing and replacing back changes nothing."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

pytest.importorskip("hypothesis")
from hypothesis import assume, given
from hypothesis import strategies as st
from paddle import nn

from paddlelite_callbacks.nn.surgery import (
    find_sublayer,
    freeze_norm_,
    frozen,
    match_sublayers,
    replace_sublayer,
    whole_again_after_an_error,
)
from paddlelite_callbacks.quant.config import PACTConfig
from paddlelite_callbacks.quant.prepare import prepare_pact_, quantized_layers

WIDTH = 3


class Block(nn.Layer):
    """Children under random names, run in order; a child may stand here more than once, and elsewhere too."""

    def __init__(self, children):
        super().__init__()
        for name, child in children:
            self.add_sublayer(name, child)

    def forward(self, x):
        for child in self._sub_layers.values():
            x = child(x)
        return x


@st.composite
def networks(draw):
    seen = []
    names = st.sampled_from(["a", "conv", "blocks[2]", "0", "layer_1"])

    def leaf():
        if seen and draw(st.integers(0, 3)) == 0:
            return draw(st.sampled_from(seen))  # shared
        make = draw(st.sampled_from([lambda: nn.Linear(WIDTH, WIDTH), nn.ReLU, lambda: nn.BatchNorm1D(WIDTH)]))
        seen.append(make())
        return seen[-1]

    def block(depth):
        children = {}
        for name in draw(st.lists(names, min_size=1, max_size=3, unique=True)):
            children[name] = block(depth - 1) if depth and draw(st.booleans()) else leaf()
        return Block(list(children.items()))

    paddle.seed(draw(st.integers(0, 1000)))
    network = block(2)
    for layer in network.sublayers():
        layer.training = draw(st.booleans())
    return network


def all_places(network, prefix=""):
    """Every path to every layer, shared ones by each of theirs, with its identity and mode."""
    found = []
    for name, child in network._sub_layers.items():
        path = f"{prefix}{name}"
        found += [(path, id(child), child.training), *all_places(child, f"{path}.")]
    return found


@given(networks(), st.data())
def test_replacing_and_replacing_back_is_nothing(network, data):
    name = data.draw(st.sampled_from([name for name, _ in network.named_sublayers()]))
    places, keys, training = all_places(network), list(network.state_dict()), network.training
    old, new = find_sublayer(network, name), nn.Identity()
    uses = sum(identity == id(old) for _, identity, _ in places)
    assert replace_sublayer(network, name, new) is old
    now = all_places(network)
    assert id(old) not in [identity for _, identity, _ in now]
    assert sum(identity == id(new) for _, identity, _ in now) == uses  # wherever the shared layer stood
    assert new.training == old.training
    assert replace_sublayer(network, name, old) is new
    assert all_places(network) == places
    assert list(network.state_dict()) == keys
    assert network.training == training


@given(networks(), st.data())
def test_names_find_their_layers(network, data):
    named = dict(network.named_sublayers())
    name = data.draw(st.sampled_from(list(named)))
    assert find_sublayer(network, name) is named[name]
    assert name in match_sublayers(network, name)
    assert match_sublayers(network, "*") == list(named)
    with pytest.raises(ValueError, match=r"near names: \["):
        find_sublayer(network, f"{name}.nowhere")


@given(networks())
def test_frozen_gives_back_every_flag(network):
    parameters = network.parameters()
    for i, parameter in enumerate(parameters):
        parameter.stop_gradient = i % 2 == 0
    places, flags = all_places(network), [p.stop_gradient for p in parameters]
    with frozen(network):
        assert not any(training for _, _, training in all_places(network))
        assert all(p.stop_gradient for p in parameters)
    assert all_places(network) == places
    assert [p.stop_gradient for p in parameters] == flags


@given(networks(), st.data())
def test_an_error_leaves_the_network_whole(network, data):
    name = data.draw(st.sampled_from([name for name, _ in network.named_sublayers()]))
    places, keys = all_places(network), list(network.state_dict())

    def fail():
        with whole_again_after_an_error(network):
            replace_sublayer(network, name, nn.Linear(2, 2))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert all_places(network) == places
    assert list(network.state_dict()) == keys


@given(networks())
def test_converting_and_undoing_is_nothing(network):
    assume(any(isinstance(layer, nn.Linear) for layer in network.sublayers()))
    network.eval()
    places, keys = all_places(network), list(network.state_dict())
    linears = {id(layer) for layer in network.sublayers() if isinstance(layer, nn.Linear)}
    x = paddle.rand([2, WIDTH])
    before = network(x).numpy()
    undo = prepare_pact_(network, PACTConfig())
    assert len({id(layer) for layer in quantized_layers(network).values()}) == len(linears)  # each shared one once
    assert prepare_pact_(network, PACTConfig()) is not None  # a second time converts nothing more
    assert len(quantized_layers(network)) == len(linears)
    undo.close()
    assert all_places(network) == places
    assert list(network.state_dict()) == keys
    np.testing.assert_array_equal(network(x).numpy(), before)


@given(networks())
def test_frozen_norms_stand_still_in_training(network):
    names = freeze_norm_(network)
    norms = [layer for layer in network.sublayers() if isinstance(layer, nn.BatchNorm1D)]
    assert len(names) == len(norms)
    network.train()
    before = [layer._mean.numpy().copy() for layer in norms]
    network(paddle.rand([4, WIDTH]) + 5)
    for layer, mean in zip(norms, before, strict=True):
        np.testing.assert_array_equal(layer._mean.numpy(), mean)
        assert layer.weight.stop_gradient
