"""Layers by name."""

from __future__ import annotations

import paddle
import pytest
from toy import TinyNet

from paddlelite_callbacks.errors import near_names
from paddlelite_callbacks.nn.surgery import find_sublayer, frozen, match_sublayers, replace_sublayer


def test_a_wrong_name_lists_near_ones():
    with pytest.raises(ValueError, match=r"no sublayer 'conv3'; near names: \['conv"):
        find_sublayer(TinyNet(), "conv3")
    with pytest.raises(ValueError, match=r"matches 'block\*'"):
        match_sublayers(TinyNet(), "block*")


def test_near_names_are_found_in_any_case():
    with pytest.raises(ValueError, match=r"no sublayer 'CONV1'; near names: \['conv1'"):
        find_sublayer(TinyNet(), "CONV1")
    assert near_names("resnet", ["VGG", "ResNet", "resnet", "x"]) == ["resnet", "ResNet"]
    assert near_names("zzz", ["b", "a"]) == ["b", "a"]
    assert near_names("onnx", ["mnn", "onnxruntime", "ncnn"]) == ["onnxruntime", "mnn", "ncnn"]


def test_glob_and_names_with_brackets():
    net = paddle.nn.Layer()
    net.add_sublayer("blocks[2]", paddle.nn.ReLU())
    assert match_sublayers(net, "blocks[2]") == ["blocks[2]"]
    assert match_sublayers(TinyNet(), "conv*") == ["conv1", "conv2"]


def test_replace_inside_containers_and_back():
    net = paddle.nn.Sequential(paddle.nn.Sequential(paddle.nn.ReLU(), paddle.nn.Linear(2, 2)), paddle.nn.ReLU())
    new = paddle.nn.Identity()
    old = replace_sublayer(net, "0.1", new)
    assert find_sublayer(net, "0.1") is new
    assert isinstance(old, paddle.nn.Linear)
    assert [name for name, _ in net.named_sublayers()] == ["0", "0.0", "0.1", "1"]
    replace_sublayer(net, "0.1", old)
    assert find_sublayer(net, "0.1") is old


def test_a_shared_layer_is_replaced_under_all_its_names():
    net = TinyNet()
    net.again = net.conv2
    new = paddle.nn.Identity()
    replace_sublayer(net, "conv2", new)
    assert net.again is new
    assert net.conv2 is new


def test_the_replacement_takes_over_the_mode():
    net = TinyNet()
    net.eval()
    new = paddle.nn.Dropout()
    replace_sublayer(net, "dropout", new)
    assert not new.training


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_frozen_gives_every_flag_back(error):
    net = TinyNet()
    net.bn1.eval()
    net.fc.bias.stop_gradient = True
    before = [layer.training for layer in net.sublayers()], [p.stop_gradient for p in net.parameters()]
    try:
        with frozen(net):
            assert not net.training
            assert all(p.stop_gradient for p in net.parameters())
            if error:
                raise error
    except KeyboardInterrupt:
        pass
    assert ([layer.training for layer in net.sublayers()], [p.stop_gradient for p in net.parameters()]) == before
