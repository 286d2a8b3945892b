"""The tolerance of quantised files: true rounding passes, a defect does not. The truth is the network in float64."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from toy import TinyNet

from paddlelite_callbacks import PACTConfig, prepare_pact_
from paddlelite_callbacks.deploy.check import compare_outputs
from paddlelite_callbacks.deploy.export import copy_network
from paddlelite_callbacks.deploy.forms import references
from paddlelite_callbacks.quant.convert import convert_for_export_

ROWS = 8


def quantised(seed: int):
    random = np.random.RandomState(seed)
    paddle.seed(seed)
    network = TinyNet(int(random.choice([4, 8, 16, 32, 64])))
    prepare_pact_(network, PACTConfig(quantize_outputs=bool(seed % 2)))
    x = random.randn(ROWS, 3, 8, 8).astype("float32")
    network(paddle.to_tensor(x))
    network.eval()
    shipped = copy_network(network)
    convert_for_export_(shipped)
    return network, shipped, x


def weight(network):
    values = network.fc.weight_int8.numpy()
    largest = np.abs(values.astype(int)).argmax()
    values.flat[largest] = -values.flat[largest]
    network.fc.weight_int8.set_value(paddle.to_tensor(values))


def zero_point(network):
    step = network.fc.activation.step
    network.fc.activation.register_forward_post_hook(lambda _, __, out: out + step)


def scale(network):
    network.fc.activation.register_forward_post_hook(lambda _, __, out: out * 1.01)


def inner_scale(network):
    network.conv2.weight_step.set_value(network.conv2.weight_step * 1.01)


# And the share that has to be found: where the weights of a row sum to nearly nothing, a zero point that is one too
# high moves the output by less than the tolerance of a float file.
DEFECTS = {weight: 1.0, zero_point: 0.85, scale: 0.95, inner_scale: 0.9}


@pytest.mark.slow
def test_two_hundred_networks_pass_and_their_defects_do_not():
    found = {defect: [] for defect in DEFECTS}
    for seed in range(200):
        network, shipped, x = quantised(seed)
        reference = references(network, [x])["int8"]

        def check(got, reference=reference):
            return compare_outputs(
                reference.outputs,
                [got],
                engine="float64",
                noise=reference.noise,
                middle=reference.middle,
                flips=reference.flips,
            )

        exact = copy_network(shipped).to(dtype="float64")
        right = check(exact(paddle.to_tensor(x.astype("float64"))).numpy())
        assert right.passed, (seed, right)
        for defect in DEFECTS:
            broken = copy_network(shipped)
            defect(broken)
            found[defect].append(not check(broken(paddle.to_tensor(x)).numpy()).passed)
    for defect, share in DEFECTS.items():
        assert np.mean(found[defect]) >= share, (defect.__name__, np.mean(found[defect]))


def test_a_few_rows_may_meet_a_flip_but_not_most():
    expected = np.ones((8, 4), "float32")
    one, most = expected.copy(), expected.copy()
    one[2] += 0.01
    most[:5] += 0.01
    options = {"engine": "e", "noise": [0.0], "middle": [0.0], "flips": [0.01]}
    assert compare_outputs([expected], [one], **options).passed
    assert not compare_outputs([expected], [one], engine="e").passed  # a float file has no grid to fall on
    check = compare_outputs([expected], [most], **options)
    assert not check.passed
    assert check.error.startswith("half of the rows are off by 0.01 and more, allowed 0.0011")
    assert not compare_outputs([expected], [expected + 0.05], **options).passed
    assert compare_outputs([expected[:2]], [one[1:3]], **options).passed  # too few rows to tell
