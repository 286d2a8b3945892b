"""Data loaders whose worker processes and threads end with the epoch that read from them, however it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from paddle.io.dataloader.dataloader_iter import _DataLoaderIterBase, _DataLoaderIterMultiProcess, _ResumeIteration

__all__ = ["ended_with_the_epoch"]

_SECONDS = 5  # for a worker process or thread to end by itself


class _Watched:
    """Stands in for a loader for one epoch and remembers the iterators it gave; has what hapi asks of a loader."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self.given: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        iterator = iter(self._loader)
        if iterator is not self._loader:  # else it is the user's own, who may want to go on with it
            self.given.append(iterator)
        return iterator

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


@contextlib.contextmanager
def ended_with_the_epoch(loader: Any) -> Iterator[Any]:
    """Give a stand-in for ``loader`` whose iterators are shut down at the end of the block.

    Paddle's own iterators end their worker processes and threads only where the data run out: left in the middle, by
    an exception, Ctrl-C or ``num_iters``, they stay until the process ends, since the thread holds the iterator that
    would have to be freed first. The loader itself is not touched, nor are iterators of other libraries; workers that
    the user wants to keep (``persistent_workers=True``) stay.
    """
    watched = _Watched(loader)
    try:
        yield watched
    finally:
        for iterator in watched.given:
            if isinstance(iterator, _DataLoaderIterBase) and not getattr(iterator, "_persistent_workers", False):
                _shut_down(iterator)


def _shut_down(iterator: Any) -> None:
    """End thread and workers; an iterator whose data ran out has done so itself."""
    if iterator._shutdown:
        return
    iterator._exit_thread_expectedly()
    if isinstance(iterator, _DataLoaderIterMultiProcess):
        with contextlib.suppress(OSError, ValueError):  # closed already
            iterator._data_queue.put((_ResumeIteration(), None, None))  # the thread would wait 5 s for the next batch
    if iterator._thread is not None:
        iterator._thread.join(_SECONDS)
    iterator._reader.shutdown()
    if not isinstance(iterator, _DataLoaderIterMultiProcess):
        iterator._try_shutdown_all()
        return
    iterator._try_shutdown_all(_SECONDS)
    for worker in iterator._workers:
        if worker.is_alive():  # busy in the data set, or deaf
            worker.terminate()
            worker.join()
