"""Shut down data loaders with their epoch, and propagate their errors.

Each function works around a defect of paddlepaddle 3.3.1 (no upstream report is known) and has a test in
``tests/workarounds`` that fails once Paddle fixes it. Where a later Paddle lacks the private names that it needs, it
does nothing.
"""

from __future__ import annotations

import contextlib
import pickle
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import paddle

from paddlelite_callbacks.utils.private_names import private_module
from paddlelite_callbacks.utils.signals import uninterrupted

__all__ = ["default_collate", "ended_with_the_epoch", "known_length", "loader_of", "read_undisturbed"]

_SECONDS = 5  # grace period of a worker process or thread
_collate = private_module("paddle.io.dataloader.collate", "default_collate_fn")
_processes = private_module("paddle.io.multiprocess_utils", "_SIGCHLD_handler_set")
_iterators = private_module(
    "paddle.io.dataloader.dataloader_iter",
    "_DataLoaderIterBase._exit_thread_expectedly",
    "_DataLoaderIterMultiProcess._try_shutdown_all",
    "_DataLoaderIterSingleProcess._thread_loop",
    "_DataLoaderIterSingleProcess._try_shutdown_all",
    "_ResumeIteration",
)
_OneProcess: Any = object if _iterators is None else _iterators._DataLoaderIterSingleProcess
_ATTRIBUTES = ("_shutdown", "_thread", "_reader")  # attributes of an iterator
_OF_WORKERS = ("_data_queue", "_workers")


class _RaisingIterator(_OneProcess):
    """Single-process iterator that raises the data set's errors to the reader.

    Paddle's own reads in a thread that ends with the exception, while the caller waits for its batch forever, even on
    Ctrl-C.
    """

    _error: BaseException | None = None  # on the class: the thread runs before __init__ has ended

    def _thread_loop(self, place: Any) -> None:
        try:
            super()._thread_loop(place)
        except BaseException as error:  # raised by data set, sampler or collate function
            self._error = error
            self._exit_thread_expectedly()  # the batches before it are still returned

    def __next__(self) -> Any:
        try:
            return super().__next__()
        except Exception:  # StopIteration of a closed queue, or an error of reading a killed one
            if self._error is None:
                raise
        raise self._error


class _Watched:
    """Proxy of a loader for one epoch that remembers its iterators."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self.given: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        paddles = getattr(type(self._loader), "__iter__", None) is paddle.io.DataLoader.__iter__
        alone = _iterators is not None and paddles and not self._loader.num_workers
        with uninterrupted() if _starts_processes(self._loader) else contextlib.nullcontext():
            iterator = _RaisingIterator(self._loader) if alone else iter(self._loader)  # a partly built one would stay
        if iterator is not self._loader:  # otherwise it is the user's own, who may continue with it
            self.given.append(iterator)
        return iterator

    def __len__(self) -> int:
        length = known_length(self._loader)
        if length is None:  # len(), list() and tqdm() expect a TypeError; Paddle's loader raises a ValueError
            raise TypeError(f"{type(self._loader).__name__} has no known length.")
        return length

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def default_collate() -> Any:
    """Return the collate function of Paddle's loader, or ``None`` where unknown."""
    return getattr(_collate, "default_collate_fn", None)


def known_length(data: Any) -> int | None:
    """Return ``len(data)``; ``None`` where unknown.

    Paddle 3.3's loader over an ``IterableDataset`` raises a ValueError, which ``list()`` does not accept as "unknown".

    Args:
        data: Data set, loader, or another iterable of batches.
    """
    try:
        return len(data)
    except (TypeError, ValueError, NotImplementedError, RuntimeError, AttributeError):  # Paddle raises any of them
        return None


def loader_of(data: Any, *, batch_size: int) -> Any:
    """Return a loader over a data set; batches are returned as they are.

    Paddle 3.3's ``paddle.Model.evaluate`` builds one, too, but fails on an ``IterableDataset``, whose samples have no
    indices.

    Args:
        data: Data set, loader, or another iterable of batches.
        batch_size: Batch size for a data set.
    """
    return paddle.io.DataLoader(data, batch_size=batch_size) if isinstance(data, paddle.io.Dataset) else data


@contextlib.contextmanager
def ended_with_the_epoch(loader: Any) -> Iterator[Any]:
    """Yield a proxy of ``loader`` whose iterators are shut down after the block.

    Paddle 3.3's iterators shut down their worker processes and threads only when the data are exhausted: after an
    exception, Ctrl-C or ``num_iters`` they stay until the process ends, since the thread holds the iterator that would
    have to be freed first. The loader itself is not changed, nor are iterators of other libraries; workers that the
    user wants to keep (``persistent_workers=True``) stay. An error of the data set without workers is raised by the
    iterator, after the batches before it; Paddle's own waits forever.
    """
    watched = _Watched(loader)
    try:
        yield watched
    finally:
        for iterator in watched.given:
            if _is_known(iterator) and not getattr(iterator, "_persistent_workers", False):
                with uninterrupted():  # a killed worker sends SIGCHLD, and Paddle then raises
                    _shut_down(iterator)


@contextlib.contextmanager
def read_undisturbed(loader: paddle.io.DataLoader) -> Iterator[Any]:
    """Yield a proxy of the package's own loader, without side effects on the process.

    In addition to `ended_with_the_epoch` it restores NumPy's random generator, from which workers are seeded, and the
    user's handler of SIGCHLD, which Paddle 3.3's first loader with workers replaces permanently.
    """
    handler, known = signal.getsignal(signal.SIGCHLD), _processes is None or _processes._SIGCHLD_handler_set
    stream = np.random.get_state()
    try:
        with ended_with_the_epoch(loader) as watched:
            yield watched
    finally:
        np.random.set_state(stream)
        if not known and _processes._SIGCHLD_handler_set:
            signal.signal(signal.SIGCHLD, handler if handler is not None else signal.SIG_DFL)
            _processes._SIGCHLD_handler_set = False  # the next loader with workers sets it again


def _starts_processes(loader: Any) -> bool:
    """Whether ``iter(loader)`` starts worker processes."""
    kept = getattr(loader, "_persistent_workers", False)
    return isinstance(loader, paddle.io.DataLoader) and bool(loader.num_workers) and not kept


def _is_known(iterator: Any) -> bool:
    """Whether ``iterator`` is one of Paddle's, with the attributes of 3.3."""
    if _iterators is None or not isinstance(iterator, _iterators._DataLoaderIterBase):
        return False
    names = _ATTRIBUTES + (_OF_WORKERS if isinstance(iterator, _iterators._DataLoaderIterMultiProcess) else ())
    return all(hasattr(iterator, name) for name in names)


def _shut_down(iterator: Any) -> None:
    """Shut down thread and workers of an iterator."""
    many = isinstance(iterator, _iterators._DataLoaderIterMultiProcess)
    wake = (_iterators._ResumeIteration(), None, None)  # a message without meaning that the thread receives
    if not iterator._shutdown:
        iterator._exit_thread_expectedly()
        if many:
            iterator._data_queue.put(wake)
    elif many:
        with contextlib.suppress(OSError):
            iterator._data_queue._writer.send_bytes(pickle.dumps(wake))  # the queue itself is closed
    if iterator._thread is not None:
        iterator._thread.join(_SECONDS)
    told = iterator._shutdown
    if not told:
        iterator._reader.shutdown()
        iterator._try_shutdown_all(*([_SECONDS] if many else []))
    for worker in iterator._workers if many else ():
        worker.join(_SECONDS if told else 0)  # unless Paddle was interrupted before it told all of them
        if worker.is_alive():  # busy in the data set, or ignoring the message
            worker.terminate()
            worker.join()
