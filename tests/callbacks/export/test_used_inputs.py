"""Networks that take labels in training: the files take what eval mode uses, and nothing that it does use is lost."""

from __future__ import annotations

import json

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from exporting import grouped
from installed import needs
from paddle import nn
from paddle.static import InputSpec
from toy import TinyNet, fit

from paddlelite_callbacks import DistillCallback, ExportBenchCallback, PACTQuantCallback
from paddlelite_callbacks.errors import ExportError
from paddlelite_callbacks.export.paddle_program import export_paddle
from paddlelite_callbacks.export.used_inputs import used_inputs

QUICK = {"engines": ["paddle"], "warmup": 0, "repeats": 1, "verbose": 0, "peak_memory": False, "roofline": False}
QUICK |= {"report": False, "name": "n"}
IMAGE, LABEL = InputSpec([None, 3, 8, 8], "float32", "image"), InputSpec([None], "int64", "label")
X = np.random.RandomState(0).randn(16, 3, 8, 8).astype("float32")
Y = np.arange(16) % 4


def margin(logits, label):
    """As ArcFace does in training: the right class is made harder."""
    return logits - 0.2 * F.one_hot(label, 4)


class Last(nn.Layer):
    def __init__(self):
        super().__init__()
        self.net = TinyNet()

    def forward(self, image, label=None):
        return margin(self.net(image), label) if self.training else self.net(image)


class First(Last):
    def forward(self, label, image):
        return margin(self.net(image), label) if self.training else self.net(image)


class Touched(Last):
    def forward(self, image, label):
        label = label.astype("int64").reshape([-1])
        return margin(self.net(image), label) if self.training else self.net(image)


class OtherSelf(Last):
    def forward(this, image, label):
        return margin(this.net(image), label) if this.training else this.net(image)


NETWORKS = [Last, First, Touched, OtherSelf]


def specs_of(kind) -> list[InputSpec]:
    return [LABEL, IMAGE] if kind is First else [IMAGE, LABEL]


def trained(kind, folder, *more, **options):
    network, specs = kind(), specs_of(kind)
    model = paddle.Model(network, inputs=specs, labels=[InputSpec([None], "int64", "y")])
    optimizer = paddle.optimizer.Momentum(0.05, parameters=network.parameters())
    model.prepare(optimizer, nn.CrossEntropyLoss(), paddle.metric.Accuracy())
    fields = [paddle.to_tensor(X if spec is IMAGE else Y) for spec in specs]
    data = paddle.io.TensorDataset([*fields, paddle.to_tensor(Y)])
    callback = ExportBenchCallback(folder, **grouped(**QUICK, **options))
    fit(model, [callback, *more], data=data)
    return network, callback


def file_of(folder, *inputs):
    program = paddle.jit.load(str(folder / "n" / "model"))
    program.eval()
    with paddle.no_grad():
        return program(*[paddle.to_tensor(item) for item in inputs]).numpy()


def check_image_alone(network, callback, folder, rtol=1e-4):
    network.eval()
    with paddle.no_grad():
        expected = network.net(paddle.to_tensor(X)).numpy()
    np.testing.assert_allclose(file_of(folder, X), expected, rtol=rtol, atol=rtol * np.abs(expected).max())
    described = json.loads((folder / "n" / "deploy.json").read_text())
    assert [item["shape"] for item in described["inputs"]] == [[None, 3, 8, 8]]
    right = float((expected.argmax(1) == Y).mean())
    assert [row.metrics["acc"] for row in callback.record.file_metrics] == [pytest.approx(right)]
    assert all(row.p50_ms is not None for row in callback.record.latencies)


@pytest.mark.parametrize("spec", [None, "all", "image"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_the_file_takes_the_image_alone(kind, spec, tmp_path):
    given = {None: None, "all": specs_of(kind), "image": [IMAGE]}[spec]
    network, callback = trained(kind, tmp_path, input_spec=given)
    check_image_alone(network, callback, tmp_path)


def test_with_quantisation_and_a_teacher(tmp_path):
    network, callback = trained(Last, tmp_path, PACTQuantCallback(), DistillCallback(Last()), eval_data=None)
    check_image_alone(network, callback, tmp_path, rtol=0.05)


@needs("paddle2onnx")
def test_the_onnx_file_too(tmp_path):
    network, specs = First(), specs_of(First)
    model = paddle.Model(network, inputs=specs)
    options = {**QUICK, "engines": ["onnxruntime"]}
    callback = ExportBenchCallback(tmp_path, **grouped(**options))
    callback.export(model, [Y, X])
    checks = [
        check for check in callback.record.checks if check.engine == "onnxruntime"
    ]  # beside the reference of Paddle's file
    assert [(check.precision, check.passed) for check in checks] == [("fp32", True)]


class Masked(Last):
    def forward(self, image, mask=None):
        return self.net(image if mask is None else image * mask)


def test_an_input_that_the_sample_does_not_show_at_work_stays(tmp_path):
    """A mask of ones changes nothing; another one would."""
    network = Masked()
    model = paddle.Model(network, inputs=[IMAGE, InputSpec([None, 1, 8, 8], "float32", "mask")])
    callback = ExportBenchCallback(tmp_path, **grouped(**QUICK))
    callback.export(model, [X, np.ones([16, 1, 8, 8], "float32")])
    half = np.ones([16, 1, 8, 8], "float32")
    half[:, :, 4:] = 0
    network.eval()
    with paddle.no_grad():
        expected = network.net(paddle.to_tensor(X * half)).numpy()
    np.testing.assert_allclose(file_of(tmp_path, X, half), expected, rtol=1e-4, atol=1e-5)


class Tokens(nn.Layer):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)

    def forward(self, *inputs):
        tokens, _, weight = inputs
        return self.embedding(tokens).sum(axis=1) * weight


def test_tokens_and_a_forward_of_any_number_of_inputs(tmp_path):
    network = Tokens()
    inputs = [np.array([[1, 2], [9, 9]]), np.array([[0, 1], [1, 0]]), np.array([[2.0], [3.0]], "float32")]
    specs = [InputSpec([None, 2], "int64", "a"), InputSpec([None, 2], "int64", "b"), InputSpec([None, 1], name="c")]
    callback = ExportBenchCallback(tmp_path, **grouped(**QUICK))
    callback.export(paddle.Model(network, inputs=specs), inputs)
    weight = network.embedding.weight.numpy()
    expected = weight[inputs[0]].sum(1) * inputs[2]
    np.testing.assert_allclose(file_of(tmp_path, inputs[0], inputs[2]), expected, rtol=1e-5)


def test_all_stay_where_none_counts():
    network = nn.Layer()
    network.forward = lambda a, b: paddle.ones([2])
    inputs = [paddle.zeros([2]), paddle.zeros([2])]
    assert used_inputs(network, inputs, [np.ones(2, "float32")]) == (0, 1)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ([InputSpec([None, 1, 8, 8], "float32", "image")], r"\[\[-1, 1, 8, 8\]\].*trained on"),
        ([IMAGE, LABEL, LABEL], "one spec per input"),
        ([LABEL, IMAGE], "one spec per input"),
    ],
)
def test_other_specs_are_refused_at_train_begin(spec, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        trained(Last, tmp_path, input_spec=spec)


def test_a_spec_of_an_input_that_is_not_used(tmp_path):
    with pytest.raises(ExportError, match="cannot be exported with inputs"):
        trained(Last, tmp_path, input_spec=[LABEL], preflight=False)


def test_paddles_words_for_an_unused_input_are_put_plainly(tmp_path):
    network = Last()
    network.eval()
    with pytest.raises(ExportError, match="does not use one of them in eval mode: leave that input out"):
        export_paddle(network, tmp_path, input_spec=[IMAGE, LABEL])
