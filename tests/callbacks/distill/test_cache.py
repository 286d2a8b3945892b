"""Stored teacher outputs: the same training without a teacher, with any order and workers; misuse is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import paddle
import pytest
from byhand import CE, assert_same, twin
from paddle import nn
from paddle.io import BatchSampler, DataLoader, IterableDataset
from paddle.static import InputSpec
from toy import CLASSES, Images, TinyNet, copied_weights, fingerprint, fit, hapi_model, weights_of

from paddlelite_callbacks import DistillCallback, cache_teacher
from paddlelite_callbacks.distill.cache import CachedTeacher
from paddlelite_callbacks.distill.cache_format import checksum


@pytest.fixture
def teacher():
    return TinyNet(width=8, dropout=0.5)


def train(data, teacher, start, *, workers=0, shuffle=True, **options):
    student = twin(start, TinyNet)
    model = hapi_model(student)
    np.random.seed(11)
    paddle.seed(11)
    model.fit(
        data,
        Images(),
        batch_size=8,
        epochs=3,
        shuffle=shuffle,
        num_workers=workers,
        verbose=0,
        callbacks=[DistillCallback(teacher, **options)],
    )
    return student


@pytest.mark.parametrize("workers", [0, 2])
def test_equals_the_running_teacher_with_shuffling_and_workers(workers, teacher, tmp_path):
    start, data = TinyNet(), Images(40)
    live = train(data, teacher, start)
    cached = cache_teacher(teacher, data, tmp_path / "t", batch_size=16, verbose=0)
    calls = []
    teacher.register_forward_post_hook(lambda *_: calls.append(1))
    stored = train(cached, cached, start, workers=workers)
    assert_same(stored, live, atol=2e-6)
    assert not calls


def test_half_precision_is_close_and_half_the_size(teacher, tmp_path):
    start, data = TinyNet(), Images(40)
    full = cache_teacher(teacher, data, tmp_path / "full", verbose=0)
    half = cache_teacher(teacher, data, tmp_path / "half", dtype="float16", verbose=0)
    np.testing.assert_allclose(half.arrays()[0], full.arrays()[0], rtol=5e-4, atol=1e-6)
    assert half.arrays()[0].nbytes * 2 == full.arrays()[0].nbytes
    assert isinstance(full.arrays()[0], np.memmap)
    assert_same(train(half, half, start), train(full, full, start), atol=2e-3)


def test_the_loss_the_metrics_and_the_user_see_the_labels_alone(teacher, tmp_path):
    seen = []

    class Picky(paddle.metric.Accuracy):
        def compute(self, pred, label):  # takes no further arguments
            return super().compute(pred, label)

    def loss(output, label):
        seen.append(list(label.shape))
        return CE(output, label)

    cached = cache_teacher(teacher, Images(), tmp_path / "t", verbose=0)
    network = TinyNet()
    model = paddle.Model(network)
    model.prepare(paddle.optimizer.SGD(0.05, parameters=network.parameters()), loss, Picky())
    found = fingerprint(model)
    fit(model, [DistillCallback(cached, loss="kl")], data=cached, evaluate=False)
    assert seen == [[8], [8]]
    assert fingerprint(model) == found


def test_a_loader_and_a_sampler_of_ones_own(teacher, tmp_path):
    cached = cache_teacher(teacher, Images(24), tmp_path / "t", verbose=0)
    loader = DataLoader(cached, batch_sampler=BatchSampler(cached, shuffle=True, batch_size=5, drop_last=True))
    model = hapi_model()
    model.fit(loader, epochs=2, verbose=0, callbacks=[DistillCallback(cached)])
    by_hand = teacher
    by_hand.eval()
    image, label, output, index = cached[7]
    np.testing.assert_allclose(output, by_hand(paddle.to_tensor(image[None]))[0].numpy(), atol=1e-6)
    assert (index, label) == (7, Images(24).labels[7])


class Pair(nn.Layer):
    def __init__(self, kind, width=4):
        super().__init__()
        self.body, self.kind = TinyNet(width=width), kind

    def forward(self, x):
        parts = [("a", self.body(x)), ("b", x.mean(axis=[1, 2]))]
        return dict(parts) if self.kind is dict else [part for _, part in parts]


class PairLoss(nn.Layer):
    def forward(self, *outputs_and_labels):
        first = outputs_and_labels[0]
        return CE(first["a"] if isinstance(first, dict) else first, outputs_and_labels[-1])


@pytest.mark.parametrize("kind", [list, dict])
def test_several_outputs(kind, tmp_path):
    teacher, start = Pair(kind, 8), Pair(kind)
    results = []
    cached = cache_teacher(teacher, Images(), tmp_path / "t", verbose=0)
    for who, data in ((teacher, Images()), (cached, cached)):
        student = twin(start, lambda: Pair(kind))
        callback = DistillCallback(who, loss="mse")
        fit(hapi_model(student, loss=PairLoss(), metrics=False), [callback], data=data, evaluate=False)
        results.append(student)
    assert_same(*results, atol=1e-6)


def test_a_second_call_uses_what_is_there_and_other_weights_or_data_are_refused(teacher, tmp_path):
    data = Images(20)
    cache_teacher(teacher, data, tmp_path / "t", verbose=0)
    calls = []
    teacher.register_forward_post_hook(lambda *_: calls.append(1))
    again = cache_teacher(teacher, data, tmp_path / "t", verbose=0)
    assert not calls
    assert len(again) == 20
    with pytest.raises(ValueError, match=r"outputs .*\(dtype float32 instead of float16\)"):
        cache_teacher(teacher, data, tmp_path / "t", dtype="float16", verbose=0)
    data.images[3] += 1
    with pytest.raises(ValueError, match="1 changed samples, the first is 3"):
        cache_teacher(teacher, data, tmp_path / "t", verbose=0)
    with pytest.raises(ValueError, match="count 20 instead of 24"):
        cache_teacher(teacher, Images(24), tmp_path / "t", verbose=0)
    other = TinyNet(width=8)
    with pytest.raises(ValueError, match="give another path, or use overwrite=True"):
        cache_teacher(other, Images(20), tmp_path / "t", verbose=0)
    cached = cache_teacher(other, Images(20), tmp_path / "t", overwrite=True, verbose=0)
    other.eval()
    expected = other(paddle.to_tensor(Images(20).images)).numpy()
    np.testing.assert_allclose(cached.arrays()[0], expected, atol=1e-6)


def test_a_teacher_that_trained_on_is_noticed(teacher, tmp_path):
    cache_teacher(teacher, Images(), tmp_path / "t", verbose=0)
    teacher.bn1._mean.set_value(teacher.bn1._mean + 0.1)
    with pytest.raises(ValueError, match=r"teacher .* instead of"):
        cache_teacher(teacher, Images(), tmp_path / "t", verbose=0)


class Flipping(Images):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return (image[:, :, ::-1].copy() if np.random.rand() < 0.5 else image), label


def test_random_augmentation_is_refused_unless_asked_for(teacher, tmp_path):
    with pytest.raises(ValueError, match="differs from call to call: the data set augments at random"):
        cache_teacher(teacher, Flipping(), tmp_path / "t", verbose=0)
    assert not list(tmp_path.iterdir())
    cached = cache_teacher(teacher, Flipping(), tmp_path / "t", allow_random=True, verbose=0)
    fit(hapi_model(), [DistillCallback(cached)], data=cached, evaluate=False)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_changed_is_noticed_in_training(teacher, tmp_path, workers):
    """In the training loop, not in the loader, which an exception hangs; and before any weight changes."""
    data, model = Images(), hapi_model()
    cached = cache_teacher(teacher, data, tmp_path / "t", verbose=0)
    data.images[5] += 1
    before = weights_of(model.network)
    with pytest.raises(ValueError, match="Sample 5 differs from the stored one"):
        fit(model, [DistillCallback(cached)], data=cached, evaluate=False, num_workers=workers)
    for key, value in weights_of(model.network).items():
        np.testing.assert_array_equal(value, before[key])
    unchecked = CachedTeacher(data, tmp_path / "t", verify=False)
    fit(model, [DistillCallback(unchecked)], data=unchecked, evaluate=False)


def test_misuse(teacher, tmp_path):
    cached = cache_teacher(teacher, Images(), tmp_path / "t", verbose=0)
    with pytest.raises(ValueError, match=r"batch has 2 fields; the data set with stored outputs gives 2 \+ 2"):
        fit(hapi_model(), [DistillCallback(cached)])
    with pytest.raises(ValueError, match="features need a frozen teacher, a Cache has only outputs"):
        fit(hapi_model(), [DistillCallback(cached, features={"conv1": "conv1"})], data=cached)
    with pytest.raises(ValueError, match="dtype must be 'float32' or 'float16'"):
        cache_teacher(teacher, Images(), tmp_path / "u", dtype="int8")
    with pytest.raises(ValueError, match="the data set has 24"):
        CachedTeacher(Images(24), tmp_path / "t")
    with pytest.raises(ValueError, match="is not a folder of cache_teacher"):
        CachedTeacher(Images(), tmp_path)

    class Stream(IterableDataset):
        def __iter__(self):
            yield from ()

    with pytest.raises(TypeError, match="indices, got Stream"):
        cache_teacher(teacher, Stream(), tmp_path / "u")


def test_outputs_that_do_not_fit_are_refused_at_train_begin(tmp_path):
    cached = cache_teacher(TinyNet(outputs=5), Images(), tmp_path / "t", verbose=0)
    network = TinyNet()
    model = paddle.Model(network, InputSpec([None, 3, 8, 8], "float32", "x"), InputSpec([None], "int64", "y"))
    model.prepare(paddle.optimizer.SGD(0.05, parameters=network.parameters()), CE)

    class Raises(paddle.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            raise AssertionError("an epoch began")

    with pytest.raises(ValueError, match=rf"student's output \[2, {CLASSES}\] and the teacher's \[2, 5\]"):
        fit(model, [Raises(), DistillCallback(cached)], data=cached, evaluate=False)


def test_an_interrupted_run_leaves_no_folder_and_the_old_one_alone(teacher, tmp_path):
    cached = cache_teacher(teacher, Images(), tmp_path / "t", verbose=0)
    before = {file.name: file.read_bytes() for file in cached.path.iterdir()}

    class Fails(TinyNet):
        def forward(self, x):
            raise KeyboardInterrupt

    for path in ("t", "new"):
        with pytest.raises(KeyboardInterrupt):
            cache_teacher(Fails(), Images(), tmp_path / path, overwrite=True, verbose=0)
    assert [file.name for file in tmp_path.iterdir()] == ["t"]
    assert {file.name: file.read_bytes() for file in cached.path.iterdir()} == before
    assert json.loads(before["meta.json"])["count"] == 16


def test_the_teacher_is_left_as_it_was(teacher, tmp_path):
    before, flags = weights_of(teacher), [p.stop_gradient for p in teacher.parameters()]
    cache_teacher(teacher, Images(), tmp_path / "t", verbose=0)
    assert teacher.training
    assert flags == [p.stop_gradient for p in teacher.parameters()]
    other = TinyNet(width=8)
    copied_weights(teacher, other)
    assert all(np.array_equal(before[key], value) for key, value in weights_of(teacher).items())


def test_the_checksum_holds_across_processes():
    fields = (np.arange(6, dtype="float32").reshape(2, 3), np.int64(3))
    code = (
        "import numpy as np; from paddlelite_callbacks.distill.cache_format import checksum;"
        "print(checksum((np.arange(6, dtype='float32').reshape(2, 3), np.int64(3))))"
    )
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert int(out.stdout.split()[-1]) == checksum(fields)
    assert checksum(fields) != checksum((fields[0] + 1e-6, fields[1]))


class Sum(nn.Layer):
    def __init__(self, width=4):
        super().__init__()
        self.body = TinyNet(width=width)

    def forward(self, x, y):
        return self.body(x + y)


class Both(Images):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image, image[:, ::-1].copy(), label


def test_several_inputs(tmp_path):
    teacher, start, results = Sum(8), Sum(), []
    cached = cache_teacher(teacher, Both(), tmp_path / "t", inputs=2, verbose=0)
    for who, data in ((teacher, Both()), (cached, cached)):
        student = twin(start, Sum)
        fit(hapi_model(student), [DistillCallback(who)], data=data, evaluate=False)
        results.append(student)
    assert_same(*results, atol=1e-6)


def test_a_sample_that_cannot_be_read_ends_the_pass(tmp_path):
    """Paddle's own loader without workers would wait for ever."""

    class Broken(Images):
        def __getitem__(self, index):
            if index == 11:
                raise OSError("picture 11 is broken")
            return super().__getitem__(index)

    with pytest.raises(OSError, match="picture 11 is broken"):
        cache_teacher(TinyNet(), Broken(), tmp_path / "cache", batch_size=4, verbose=0, allow_random=True)
    assert not list(tmp_path.iterdir())


def test_a_relative_path_is_that_of_when_it_was_given(tmp_path, monkeypatch):
    """The arrays are opened with the first sample, in worker processes too."""
    monkeypatch.chdir(tmp_path)
    cached = cache_teacher(TinyNet(), Images(8), "stored", verbose=0)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(cached[3]) == 4
    assert len(list(paddle.io.DataLoader(cached, batch_size=4, num_workers=1))) == 2


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("output_0.npy", np.zeros((2, 4), "float32")),
        ("output_0.npy", np.float32(3)),
        ("output_0.npy", np.zeros((16, 4), "int64")),
        ("checksums.npy", np.zeros(3, "int64")),
        ("meta.json", {"count": "16"}),
        ("meta.json", {"outputs": 3}),
        ("meta.json", {"fields": None}),
    ],
)
def test_files_that_became_others_are_refused_at_once(file, content, tmp_path):
    """In the middle of an epoch an error of the data set hangs Paddle's loader."""
    cache_teacher(TinyNet(), Images(16), tmp_path / "c", verbose=0)
    if isinstance(content, dict):
        meta = json.loads((tmp_path / "c" / file).read_text())
        (tmp_path / "c" / file).write_text(json.dumps({**meta, **content}))
    else:
        np.save(tmp_path / "c" / file, content)
    with pytest.raises(ValueError, match=r"does not match its meta\.json .* overwrite=True"):
        CachedTeacher(Images(16), tmp_path / "c")
    with pytest.raises(ValueError, match="give another path, or use overwrite=True"):
        cache_teacher(TinyNet(), Images(16), tmp_path / "c", verbose=0)
    cached = cache_teacher(TinyNet(), Images(16), tmp_path / "c", verbose=0, overwrite=True)
    assert len(cached[15]) == 4
