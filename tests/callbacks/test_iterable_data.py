"""Data without a length: training, evaluation, accuracy of files, diagnosis; what needs numbered samples says so."""

from __future__ import annotations

import logging

import numpy as np
import onnxruntime
import paddle
import pytest
from byhand import assert_same, twin
from exporting import grouped
from installed import needs
from paddle.io import DataLoader, IterableDataset
from toy import Images, TinyNet, fit, hapi_model, weights_of

from paddlelite_callbacks import DistillCallback, EMATeacher, ExportBenchCallback, MutualPeer, PACTQuantCallback
from paddlelite_callbacks.distill.cache import cache_teacher
from paddlelite_callbacks.distill.schedules import linear
from paddlelite_callbacks.workarounds.data_loader import ended_with_the_epoch, known_length, loader_of

FAST = {"warmup": 0, "repeats": 1, "verbose": 0, "peak_memory": False, "roofline": False, "report": False}


class Stream(IterableDataset):
    """The same samples as `Images`, in their order, without a length."""

    def __init__(self, count=16):
        self.images = Images(count)

    def __iter__(self):
        for i in range(len(self.images)):
            yield self.images[i]


class OwnLoader:
    """Batches of one's own whose ``len`` is not implemented."""

    def __init__(self, count=16):
        self.count = count

    def __iter__(self):
        yield from DataLoader(Images(self.count), batch_size=8)

    def __len__(self):
        raise NotImplementedError


SOURCES = {
    "loader": lambda: DataLoader(Stream(), batch_size=8),
    "workers": lambda: DataLoader(Stream(), batch_size=8, num_workers=1),
    "own": OwnLoader,
    "generator of batches": lambda: [[b[0], b[1]] for b in DataLoader(Images(), batch_size=8)],
    "data set": Stream,
}


@needs("paddle2onnx")
@pytest.mark.parametrize("source", ["loader", "workers", "own"])
def test_the_files_accuracy_equals_a_loop(source, tmp_path):
    """It was never measured: ``len()`` of such a loader raises a ValueError."""
    callback = ExportBenchCallback(
        tmp_path, **grouped(name="n", engines=["onnxruntime", "paddle"], **{**FAST, "verbose": 1})
    )
    model = hapi_model()
    model.fit(SOURCES[source](), SOURCES[source](), epochs=2, verbose=0, callbacks=[callback])
    session = onnxruntime.InferenceSession(str(tmp_path / "n" / "model.onnx"))
    scores = session.run(None, {session.get_inputs()[0].name: Images().images})[0]
    by_hand = float((scores.argmax(1) == Images().labels).mean())
    rows = {row.engine: row for row in callback.record.file_metrics}
    assert rows["onnxruntime"].metrics == {"acc": pytest.approx(by_hand)}
    assert {row.samples for row in rows.values()} == {16}
    assert not [note for note in callback.record.notes if "Accuracy was not measured" in note]


@pytest.mark.parametrize("source", list(SOURCES))
def test_as_eval_data_of_a_fit_and_of_an_export(source, tmp_path):
    model = hapi_model()
    expected = model.evaluate(Images(), batch_size=8, verbose=0)["acc"]
    callback = ExportBenchCallback(
        tmp_path, **grouped(name="n", engines=["paddle"], eval_data=SOURCES[source](), **FAST)
    )
    record = callback.export(model, Images(4).images)
    assert record.metrics["acc"] == pytest.approx(expected)
    assert record.file_metrics[0].metrics["acc"] == pytest.approx(expected)
    fit(model, [callback], evaluate=False)
    assert callback.record.file_metrics[0].samples == 16


def test_an_export_takes_its_images_from_such_data(tmp_path):
    for data in (Stream(), DataLoader(Stream(), batch_size=4)):
        record = ExportBenchCallback(tmp_path, **grouped(name="n", engines=["paddle"], **FAST)).export(TinyNet(), data)
        assert all(check.passed for check in record.checks)


@pytest.mark.parametrize(
    "callbacks",
    [
        lambda: [PACTQuantCallback(eval_data=DataLoader(Stream(), batch_size=8))],
        lambda: [PACTQuantCallback(eval_data=Stream())],
        lambda: [DistillCallback(EMATeacher(0.9), weight=0.5)],
        lambda: [DistillCallback(TinyNet(width=8), features={"conv*": "conv*"})],
        lambda: [peer()],
    ],
)
def test_training_on_such_data_equals_training_on_numbered_samples(callbacks):
    start, trained = TinyNet(), []
    for data in (DataLoader(Stream(), batch_size=8), DataLoader(Images(), batch_size=8)):
        paddle.seed(5)
        network = twin(start, TinyNet)
        model = hapi_model(network)
        paddle.seed(5)
        model.fit(data, data, epochs=2, verbose=0, callbacks=callbacks())
        trained.append(network)
    assert weights_of(trained[0]).keys() == weights_of(trained[1]).keys()
    assert_same(*trained, atol=0)


def peer():
    paddle.seed(8)
    network = TinyNet()
    return DistillCallback(MutualPeer(network, paddle.optimizer.SGD(0.01, parameters=network.parameters())))


def test_what_needs_numbered_samples_says_so(tmp_path):
    with pytest.raises(TypeError, match=r"indices, got Stream.*map-style paddle.io.Dataset"):
        cache_teacher(TinyNet(), Stream(), tmp_path / "cache")


def test_a_loader_that_gives_nothing_is_said_to(tmp_path):
    class Empty(IterableDataset):
        def __iter__(self):
            return iter(())

    callback = ExportBenchCallback(
        tmp_path, **grouped(name="n", engines=["paddle"], eval_data=DataLoader(Empty(), batch_size=2), **FAST)
    )
    fit(hapi_model(), [callback], evaluate=False)
    assert callback.record.file_metrics[0].error == "the evaluation data gave no batch"
    assert "the evaluation data gave no batch" in callback.record.notes[0]


def test_lengths_as_python_means_them():
    stream, numbered = DataLoader(Stream(), batch_size=8), DataLoader(Images(), batch_size=8)
    assert (known_length(stream), known_length(OwnLoader()), known_length(iter([1]))) == (None, None, None)
    assert (known_length(numbered), known_length([1, 2])) == (2, 2)
    with ended_with_the_epoch(stream) as watched:
        assert len(list(watched)) == 2  # list() asks for a length, and takes a TypeError for "unknown"
        with pytest.raises(TypeError, match="DataLoader has no known length"):
            len(watched)
    with ended_with_the_epoch(numbered) as watched:
        assert len(watched) == 2
    assert loader_of(stream, batch_size=4) is stream
    np.testing.assert_array_equal(next(iter(loader_of(Stream(), batch_size=4)))[0].numpy(), Images().images[:4])


class Weights(paddle.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, step, logs=None):
        self.seen.append(logs["distill_weight"])


def test_schedules_move_by_batch_from_the_second_epoch_on(caplog):
    """Two batches an epoch, eight epochs: a linear schedule falls by 1/16 a batch, once the number is known."""
    seen = {}
    for name, data in (("stream", DataLoader(Stream(), batch_size=8)), ("known", DataLoader(Images(16), batch_size=8))):
        callback, weights = DistillCallback(TinyNet(), weight=linear(1.0, 0.0)), Weights()
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            hapi_model(metrics=False).fit(data, epochs=8, verbose=0, callbacks=[callback, weights])
        seen[name] = weights.seen
        assert ("The training data has no length: in the first epoch" in caplog.text) == (name == "stream")
    assert seen["known"] == pytest.approx([1 - i / 16 for i in range(16)])
    assert seen["stream"] == pytest.approx([1, 1, *(1 - i / 16 for i in range(2, 16))])
