"""A network that was trained with PACT, put together from its checkpoint: it computes what the trained one does."""

from __future__ import annotations

import pickle

import numpy as np
import paddle
import pytest
from installed import needs
from paddle import nn
from toy import Images, TinyNet, equal_weights, fingerprint, fit, hapi_model, weights_of

from paddlelite_callbacks import PACTConfig, PACTQuantCallback, load_pact_, prepare_pact_
from paddlelite_callbacks.quant.checkpoint import quantized_in
from paddlelite_callbacks.quant.prepare import quantized_layers

X = paddle.to_tensor(Images(16).images)


class Shared(nn.Layer):
    """One convolution under two names, and a layer in a list."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2D(3, 3, 3, padding=1)
        self.again = self.first
        self.blocks = nn.LayerList([nn.Linear(3, 4)])

    def forward(self, x):
        return self.blocks[0](self.again(self.first(x)).mean(axis=[2, 3]))


def answers(network):
    network.eval()
    with paddle.no_grad():
        return network(X).numpy()


def trained(folder, make=TinyNet, **options):
    model = hapi_model(make())
    fit(model, [PACTQuantCallback(**options)])
    model.save(str(folder / "trained"), training=True)
    return model.network


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"skip": ["fc"]},
        {"layer_types": ["Linear"]},
        {"method": "lsq"},
        {"quantize_outputs": True},
        {"activation_bits": 4, "weight_bits": 3},
        {"activation_bits": 2, "method": "lsq", "weight_bits": 2},
        pytest.param({"activation": "paddleslim"}, marks=needs("paddleslim")),
    ],
    ids=lambda options: ",".join(options) or "default",
)
@pytest.mark.parametrize("make", [TinyNet, Shared])
def test_it_computes_what_the_trained_one_does(options, make, tmp_path):
    if make is Shared and "skip" in options:
        options = {"skip": ["blocks.*"]}
    network = trained(tmp_path, make, **options)
    expected, fresh = answers(network), make()
    config = load_pact_(fresh, tmp_path / "trained", weight_bits=options.get("weight_bits", 8))
    np.testing.assert_array_equal(answers(fresh), expected)
    assert list(quantized_layers(fresh)) == list(quantized_layers(network))
    names = ["method", "activation", "activation_bits", "weight_bits"]
    names += ["quantize_outputs"] if make is TinyNet else []  # the other has no place for it
    for name in names:
        assert getattr(config, name) == options.get(name, getattr(PACTConfig(), name))


@pytest.mark.parametrize("form", ["prefix", "file", "text", "state"])
def test_a_checkpoint_in_every_form(form, tmp_path):
    network = trained(tmp_path)
    prefix = tmp_path / "trained"
    forms = {
        "prefix": prefix,
        "file": prefix.with_suffix(".pdparams"),
        "text": str(prefix),
        "state": network.state_dict(),
    }
    fresh = TinyNet()
    load_pact_(fresh, forms[form])
    assert equal_weights(weights_of(fresh), weights_of(network))


def test_training_goes_on(tmp_path):
    trained(tmp_path)
    fresh = TinyNet()
    load_pact_(fresh, tmp_path / "trained")
    model = hapi_model(fresh)
    before = weights_of(fresh)
    fit(model, [PACTQuantCallback()])
    assert before.keys() == weights_of(fresh).keys()
    assert not equal_weights(before, weights_of(fresh))


def refused(network, checkpoint, error, message):
    model = hapi_model(network)
    found, weights = fingerprint(model), weights_of(network)
    with pytest.raises(error, match=message):
        load_pact_(network, checkpoint)
    assert fingerprint(model) == found
    assert equal_weights(weights_of(network), weights)


class Evil:
    def __reduce__(self):
        return print, ("run",)


def test_what_does_not_fit_is_refused_and_the_network_stays_as_it_was(tmp_path, capsys):
    network = trained(tmp_path)
    path = tmp_path / "trained.pdparams"
    refused(TinyNet(width=8), path, ValueError, r"is of another network: \d+ keys or shapes differ, the first is 'bn1")
    refused(Shared(), path, ValueError, "Shared has no layer 'conv1'; near names")
    paddle.save(TinyNet().state_dict(), str(tmp_path / "plain.pdparams"))
    refused(TinyNet(), tmp_path / "plain", ValueError, "no layer quantised.*network.set_state_dict")
    refused(TinyNet(), tmp_path / "none", FileNotFoundError, "There is no file .*none.pdparams")
    refused(TinyNet(), 3, TypeError, "must be a path or a state_dict, got int")
    (tmp_path / "evil.pdparams").write_bytes(pickle.dumps({"conv1.activation_quanter.alpha": Evil()}))
    refused(TinyNet(), tmp_path / "evil", ValueError, "builtins.print")
    assert capsys.readouterr().out == ""
    state = network.state_dict()
    state["fc.activation_quanter.grid"] = paddle.to_tensor([0.0, 15.0])
    refused(TinyNet(), state, ValueError, r"different settings: \{.*fc\.activation_quanter\.grid': \[0\.0, 15\.0\]")
    for grid in ([0.0, 16.0], [float("nan"), 255.0]):
        state["fc.activation_quanter.grid"] = paddle.to_tensor(grid)
        refused(TinyNet(), state, ValueError, "activation grids of different settings")


def test_layers_that_never_ran_stay_uncalibrated():
    network = TinyNet()
    prepare_pact_(network)
    fresh = TinyNet()
    load_pact_(fresh, network.state_dict())
    np.testing.assert_array_equal(answers(fresh), answers(network))


def test_which_layers_a_state_has_quantised(tmp_path):
    assert quantized_in(TinyNet().state_dict()) == []
    assert quantized_in(trained(tmp_path, skip=["conv2"]).state_dict()) == ["conv1", "fc"]
