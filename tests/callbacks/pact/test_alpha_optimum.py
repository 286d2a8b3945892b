"""Alphas that start far from their optimum reach it in one short fit, whatever the optimizer."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import nn

from paddlelite_callbacks import AdvancedPACTOptions, PACTConfig, PACTQuantCallback, prepare_pact_
from paddlelite_callbacks.quant.functional import lsq_fake_quantize, pact_fake_quantize

ROWS, WIDTH, STEPS, DECAY = 64, 16, 120, 0.05
RATES = {"SGD": 0.8, "Momentum": 0.08, "Adam": 0.006, "AdamW": 0.006}
SIZE = 12.0  # of the values, so that alphas are not near 1


class Rows(paddle.io.Dataset):
    """Non-negative rows; the network shall give them back."""

    def __init__(self, size=SIZE):
        self.x = np.float32(np.abs(np.random.RandomState(0).randn(ROWS, WIDTH)) * size)

    def __len__(self):
        return STEPS * ROWS

    def __getitem__(self, index):
        return self.x[index % ROWS], self.x[index % ROWS]


def identity():
    """A linear layer that returns its quantised input: the identity is exact on every weight grid."""
    network = nn.Sequential(nn.Linear(WIDTH, WIDTH, bias_attr=False))
    network[0].weight.set_value(np.eye(WIDTH, dtype="float32"))
    network[0].weight.stop_gradient = True
    return network


def objective(x, alpha, method, decay):
    """What training minimises: PACT sees the clip and the penalty (its gradient knows no rounding), LSQ the error."""
    if method == "pact":
        return float(np.mean((np.minimum(x, alpha) - x) ** 2) / SIZE**2 + decay / 2 * alpha**2 / SIZE**2)
    y = lsq_fake_quantize(paddle.to_tensor(x), paddle.to_tensor(np.float32([alpha])), bits=4).numpy()
    return float(np.mean((y - x) ** 2) / SIZE**2)


def best_alpha(method, decay):
    x = Rows().x
    tried = np.linspace(0.02, 1.5, 300) * np.abs(x).max()
    return float(tried[np.argmin([objective(x, alpha, method, decay) for alpha in tried])])


def trained(start, method, optimizer, decay):
    network = identity()
    config = PACTConfig(activation_bits=4, method=method, lr_scale=1.0, alpha_decay=decay / SIZE**2)
    prepare_pact_(network, config)
    network[0].activation_quanter.set_range(start, lowest=0.0)
    adam = optimizer in ("Adam", "AdamW")
    unit = 1.0 if adam else SIZE**2  # SGD steps by the gradient, which is that much smaller
    rate = paddle.optimizer.lr.CosineAnnealingDecay(RATES[optimizer] * unit, STEPS)
    made = getattr(paddle.optimizer, optimizer)(
        rate, parameters=network.parameters(), **({"beta2": 0.9} if adam else {})
    )
    model = paddle.Model(network)
    model.prepare(made, lambda y, x: ((y - x) / SIZE).square().mean())
    model.fit(Rows(), batch_size=ROWS, shuffle=False, verbose=0, callbacks=[PACTQuantCallback(config)])
    return float(network[0].activation_quanter.alpha)


CASES = [("pact", optimizer) for optimizer in RATES] + [("lsq", "Adam"), ("lsq", "AdamW")]


@pytest.mark.parametrize(("method", "optimizer"), CASES)
@pytest.mark.parametrize("factor", [4.0, 0.25])
def test_a_bad_start_ends_at_the_optimum_of_a_grid_search(method, factor, optimizer):
    decay = DECAY if method == "pact" else 0.0
    wanted = best_alpha(method, decay)
    got = trained(factor * wanted, method, optimizer, decay)
    x = Rows().x
    assert got == pytest.approx(wanted, rel=0.15 if method == "pact" else 0.25)  # LSQ's minimum is flat
    excess = [
        objective(x, alpha, method, decay) - objective(x, wanted, method, decay) for alpha in (factor * wanted, got)
    ]
    assert excess[1] < 0.05 * excess[0]


@pytest.mark.parametrize("optimizer", ["Adam", "AdamW", "RMSProp"])
def test_a_first_step_is_ten_learning_rates_of_the_value(optimizer):
    moved = {}
    for start in (0.5, 40.0):
        network = identity()
        config = PACTConfig(lr_scale=0.5, alpha_lr_scale=2.0)
        prepare_pact_(network, config)
        network[0].activation_quanter.set_range(start, lowest=0.0)
        model = paddle.Model(network)
        made = getattr(paddle.optimizer, optimizer)(1e-3, parameters=network.parameters())
        model.prepare(made, lambda y, _: y.mean())
        data = paddle.io.TensorDataset([paddle.full([4, WIDTH], 50.0), paddle.zeros([4, 1])])
        model.fit(data, batch_size=4, verbose=0, callbacks=[PACTQuantCallback(config)])
        alpha = network[0].activation_quanter.alpha
        moved[start] = float(alpha) / start - 1
        assert alpha.optimize_attr["learning_rate"] == 2.0  # given back
    assert moved[0.5] == pytest.approx(moved[40.0], rel=1e-3)
    if optimizer != "RMSProp":
        assert moved[0.5] == pytest.approx(-0.5e-3 * 2 * 10, rel=1e-3)


def test_adamws_own_decay_stays_off_the_alphas_and_on_the_weights():
    network = nn.Sequential(nn.Linear(WIDTH, 2))
    asked = []
    model = paddle.Model(network)

    def decays(name):
        asked.append(name)
        return True

    made = paddle.optimizer.AdamW(1e-3, parameters=network.parameters(), weight_decay=0.5, apply_decay_param_fun=decays)
    model.prepare(made, lambda y, _: y.square().mean())
    data = paddle.io.TensorDataset([paddle.rand([8, WIDTH]), paddle.zeros([8, 1])])
    model.fit(data, batch_size=8, verbose=0, callbacks=[PACTQuantCallback()])
    assert network[0].activation_quanter.alpha.name not in asked
    assert network[0].weight.name in asked
    assert made._apply_decay_param_fun is decays


def test_a_resumed_fit_continues_bit_for_bit(tmp_path):
    def start():
        paddle.seed(0)
        network = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, WIDTH))
        prepare_pact_(network, PACTConfig(activation_bits=4))
        model = paddle.Model(network)
        rate = paddle.optimizer.lr.CosineAnnealingDecay(1e-2, 8)
        made = paddle.optimizer.Adam(rate, parameters=network.parameters())
        model.prepare(made, lambda y, x: (y - x).square().mean())
        return model

    def fit(model, epochs):
        data = paddle.io.TensorDataset([paddle.to_tensor(Rows().x), paddle.to_tensor(Rows().x)])
        options = AdvancedPACTOptions(alpha_lr_scale=0.5)
        quantise = PACTQuantCallback(activation_bits=4, advanced=options)
        model.fit(data, batch_size=16, epochs=epochs, shuffle=False, verbose=0, callbacks=[quantise])

    with paddle.utils.unique_name.guard():  # as in a process of its own
        whole = start()
        fit(whole, 4)
    with paddle.utils.unique_name.guard():
        first = start()
        fit(first, 2)
        first.save(str(tmp_path / "half"))
    with paddle.utils.unique_name.guard():
        second = start()
        second.load(str(tmp_path / "half"))
        fit(second, 2)
    for (name, one), other in zip(
        whole.network.state_dict().items(), second.network.state_dict().values(), strict=True
    ):
        np.testing.assert_array_equal(one.numpy(), other.numpy(), err_msg=name)


def test_pacts_gradient_knows_no_rounding():
    """Why the optimum of PACT above is that of the clip: the paper's gradient (eq. 3) sums over x >= alpha alone."""
    x, alpha = paddle.to_tensor(np.float32([0.4, 1.2, 3.0])), paddle.to_tensor(np.float32([2.0]), stop_gradient=False)
    pact_fake_quantize(x, alpha, bits=2).sum().backward()
    assert float(alpha.grad) == 1.0
