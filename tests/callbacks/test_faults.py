"""Every hook that hapi has, at several batches: an exception or a real SIGINT leaves nothing behind.

`test_contract` has the first such matrix (nine hooks, first and last in the list, a second ``fit``); here are the
other hooks, ``evaluate`` and ``predict``, later batches, every kind of teacher, and the data loaders' processes.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading

import paddle
import pytest
from exporting import grouped
from faults import (
    CALLBACKS,
    KEEPS_LAYERS,
    Boom,
    Crash,
    average,
    check_as_found,
    features,
    mutual,
    optimizer_is_whole,
    pact,
    partly_still,
    scheduled,
    together,
)
from toy import Images, fingerprint, fit, hapi_model

from paddlelite_callbacks import DistillCallback, ExportBenchCallback

EVERY = [*CALLBACKS, features, average, mutual, scheduled]
KEEPING = (*KEEPS_LAYERS, scheduled)
FIT = [  # the hook and how many calls it lets pass; two epochs of two batches, each with an evaluation
    ("on_train_begin", 0),
    ("on_epoch_begin", 1),
    ("on_train_batch_begin", 1),
    ("on_train_batch_begin", 2),
    ("on_train_batch_end", 0),
    ("on_train_batch_end", 3),
    ("on_epoch_end", 1),
    ("on_eval_begin", 1),
    ("on_eval_batch_begin", 3),
    ("on_eval_batch_end", 0),
    ("on_eval_batch_end", 3),
    ("on_eval_end", 1),
    ("on_train_end", 0),
]
ALONE = [
    *(("evaluate", f"on_eval_{hook}") for hook in ("begin", "batch_begin", "batch_end", "end")),
    *(("predict", f"on_predict_{hook}") for hook in ("begin", "batch_begin", "batch_end", "end")),
]


@pytest.fixture
def teacher():
    return partly_still()


@pytest.fixture(autouse=True)
def _nobody_left():
    """No worker process and no thread outlives a ``fit`` that was left (the first call of all makes paddle's own)."""
    processes, threads = set(multiprocessing.active_children()), set(threading.enumerate())
    yield
    assert set(multiprocessing.active_children()) <= processes
    for thread in set(threading.enumerate()) - threads:
        thread.join(10)  # behind an epoch that came to its end Paddle takes up to 5 s
    assert set(threading.enumerate()) <= threads


MATRIX = [  # both kinds of fault at every place, for all callbacks together; for each alone in turn
    pytest.param(make, hook, at, interrupt, id=f"{make.__name__}-{hook}-{at}-{'ctrl-c' if interrupt else 'exception'}")
    for row, make in enumerate(EVERY)
    for column, (hook, at) in enumerate(FIT)
    for interrupt in (False, True)
    if make is together or (row + column) % 2 == interrupt
]


@pytest.mark.parametrize(("make", "hook", "at", "interrupt"), MATRIX)
def test_a_fault_in_fit(make, hook, at, interrupt, tmp_path, teacher):
    model = hapi_model()
    found = fingerprint(model, teacher)
    crash = Crash(hook, at, interrupt=interrupt)
    with pytest.raises(KeyboardInterrupt if interrupt else Boom):
        fit(model, [*make(tmp_path, teacher), crash], epochs=2)
    trained = hook != "on_train_begin"
    if make in KEEPING:
        check_as_found(pact, found, fingerprint(model, teacher), trained=trained)
    else:
        assert fingerprint(model, teacher) == found
    optimizer_is_whole(model)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("interrupt", [False, True], ids=["exception", "ctrl-c"])
@pytest.mark.parametrize(("call", "hook"), ALONE)
@pytest.mark.parametrize("make", [together, mutual])
def test_a_fault_in_evaluate_and_predict(make, call, hook, interrupt, tmp_path, teacher):
    model = hapi_model()
    fit(model)
    found = fingerprint(model, teacher)
    with pytest.raises(KeyboardInterrupt if interrupt else Boom):
        getattr(model, call)(
            Images(), batch_size=4, verbose=0, callbacks=[*make(tmp_path, teacher), Crash(hook, interrupt=interrupt)]
        )
    assert fingerprint(model, teacher) == found
    optimizer_is_whole(model)


@pytest.mark.parametrize(
    ("hook", "at", "interrupt"),
    [
        ("on_train_batch_begin", 0, True),
        ("on_train_batch_begin", 0, False),
        ("on_train_batch_end", 2, True),
        ("on_eval_batch_begin", 1, False),
    ],
)
def test_worker_processes_end_with_the_fit(hook, at, interrupt, tmp_path, teacher):
    """Left to Paddle alone they stay: see `test_paddle_alone_leaves_its_workers_behind`."""
    model = hapi_model()
    with pytest.raises(KeyboardInterrupt if interrupt else Boom):
        model.fit(
            Images(64),
            Images(64),
            batch_size=4,
            num_workers=2,
            verbose=0,
            callbacks=[*together(tmp_path, teacher), Crash(hook, at, interrupt=interrupt)],
        )


def test_worker_processes_end_with_num_iters_too_and_a_loader_of_the_users_stays_usable(tmp_path, teacher):
    loader = paddle.io.DataLoader(Images(64), batch_size=4, num_workers=2)
    model = hapi_model()
    attributes = dict(vars(loader))
    for _ in range(2):
        model.fit(loader, num_iters=3, verbose=0, callbacks=together(tmp_path, teacher))
        assert not multiprocessing.active_children()
        assert vars(loader) == attributes
    assert len(list(loader)) == 16


def shut_down(iterator) -> None:
    iterator._exit_thread_expectedly()
    iterator._try_shutdown_all(5)
    iterator._thread.join()


def test_workers_that_the_user_wants_to_keep_stay(teacher):
    """Going on with such a loader is Paddle's affair (its reset in the middle of an epoch fails now and then)."""
    loader = paddle.io.DataLoader(Images(64), batch_size=4, num_workers=1, persistent_workers=True)
    with pytest.raises(Boom):
        hapi_model().fit(loader, verbose=0, callbacks=[DistillCallback(teacher), Crash("on_train_batch_end", 1)])
    (worker,) = multiprocessing.active_children()
    assert worker.is_alive()
    shut_down(loader._iterator)


def test_an_iterator_of_the_users_own_can_go_on(teacher):
    data = Images(8)
    batches = iter([(paddle.to_tensor(data.images), paddle.to_tensor(data.labels))] * 4)
    with pytest.raises(Boom):
        hapi_model().fit(batches, verbose=0, callbacks=[DistillCallback(teacher), Crash("on_train_batch_end", 1)])
    assert len(list(batches)) == 2


class Broken(Images):
    """Sample 9 cannot be read, when the flag is set."""

    raises: BaseException | None = None

    def __getitem__(self, index):
        if index == 9 and self.raises is not None:
            raise self.raises
        return super().__getitem__(index)


class Ragged(Images):
    """Sample 9 is of another size, which the collate function of Paddle refuses."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return (image[:, :-1] if index == 9 else image), label


class Counted(paddle.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.batches = 0

    def on_train_batch_end(self, step, logs=None):
        self.batches += 1


@pytest.mark.timeout(60)
@pytest.mark.parametrize("make", CALLBACKS)
def test_what_a_sample_raises_ends_the_fit_behind_the_batches_before_it(make, tmp_path, teacher):
    """Paddle alone waits for ever, see `test_paddle_alone_waits_for_ever`."""
    model, data, counted = hapi_model(), Broken(16), Counted()
    data.raises = Boom("sample 9")
    found = fingerprint(model, teacher)
    with pytest.raises(Boom, match="sample 9") as raised:
        model.fit(data, batch_size=4, shuffle=False, verbose=0, callbacks=[*make(tmp_path, teacher), counted])
    assert "__getitem__" in [entry.name for entry in raised.traceback]
    assert counted.batches == 2
    check_as_found(make, found, fingerprint(model, teacher), trained=True)
    data.raises = None
    model.fit(data, batch_size=4, shuffle=False, verbose=0, callbacks=[*make(tmp_path, teacher), counted])
    assert counted.batches == 6


@pytest.mark.timeout(60)
@pytest.mark.parametrize("error", [Boom("x"), OSError("x"), KeyboardInterrupt("x"), SystemExit("x")])
def test_of_every_kind_in_an_evaluation_too(error, teacher):
    data = Broken(16)
    data.raises = error
    with pytest.raises(type(error), match="x"):
        hapi_model().fit(Images(16), data, batch_size=4, verbose=0, callbacks=[DistillCallback(teacher)])


@pytest.mark.timeout(60)
def test_images_of_two_sizes_in_a_batch(teacher):
    with pytest.raises((ValueError, RuntimeError)):
        hapi_model().fit(Ragged(16), batch_size=4, verbose=0, callbacks=[DistillCallback(teacher)])


@pytest.mark.timeout(60)
def test_a_sample_that_raises_in_the_evaluation_of_the_files_does_not_lose_the_export(tmp_path):
    data = Broken(16)
    data.raises = Boom("sample 9")
    quick = {"warmup": 1, "repeats": 2, "verbose": 0, "preflight": False}
    bench = ExportBenchCallback(tmp_path, **grouped(eval_data=data, engines=["onnxruntime"], **quick))
    hapi_model().fit(Images(16), batch_size=4, verbose=0, callbacks=[bench])
    assert any("sample 9" in note for note in bench.record.notes)
    assert (tmp_path / type(bench.model.network).__name__ / "model.json").is_file()


class KilledAt(Images):
    """The process that reads the given sample is killed, as by the kernel when memory runs out."""

    def __init__(self, at):
        super().__init__(64)
        self.at = at

    def __getitem__(self, index):
        if index == self.at and paddle.io.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


@pytest.mark.parametrize("at", [0, 13, 40])
@pytest.mark.parametrize("make", [together, mutual])
def test_a_worker_process_that_is_killed(make, at, tmp_path, teacher):
    """Paddle raises SystemError wherever the signal of its end arrives, which others turn into theirs."""
    model = hapi_model()
    found = fingerprint(model, teacher)
    with pytest.raises(Exception):  # noqa: B017, PT011
        model.fit(KilledAt(at), batch_size=4, num_workers=2, verbose=0, callbacks=make(tmp_path, teacher))
    gc.collect()
    now = fingerprint(model, teacher)
    check_as_found(pact if make is together else make, found, now, trained=now["layers"] != found["layers"])
    assert not list(tmp_path.iterdir())
