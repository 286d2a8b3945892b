"""Compute a teacher's outputs once and store them for training without it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from paddle import Tensor
from paddle.io import Dataset, IterableDataset

from paddlelite_callbacks.distill.cache_format import FORMAT, checksum, fields_of, meta_of, stored_array, write_cache
from paddlelite_callbacks.distill.forward import (
    FrozenForward,
    TeacherInputs,
    check_no_saved_program,
    check_signature,
    checked_inputs,
    checked_modes,
)
from paddlelite_callbacks.distill.identity import function_digest
from paddlelite_callbacks.distill.load_teacher import TeacherLike, digest_of, loaded_teacher
from paddlelite_callbacks.utils.atomic_files import check_writable
from paddlelite_callbacks.utils.deprecation import Renamed, old_arguments
from paddlelite_callbacks.utils.distributed import first_rank_works
from paddlelite_callbacks.utils.numbers import check_whole
from paddlelite_callbacks.utils.representation import constructor_repr

__all__ = ["CachedTeacher", "cache_teacher"]

_PROBES = 16


class CachedTeacher(Dataset):
    """Data set with a teacher's stored outputs in each sample, see `cache_teacher`.

    It is both the data and the teacher: ``model.fit(cached, callbacks=[DistillCallback(cached)])``. Each sample is that
    of ``dataset`` followed by the teacher's outputs and a checksum result. They stay with it through any shuffling,
    sampler, worker process and loader, and `DistillCallback` removes them: the task loss and the metrics get only the
    labels.

    Args:
        dataset: Map-style data set, as it was stored.
        path: Folder written by `cache_teacher`.
        verify: Whether to compare the checksum of each sample with the stored one.

    Raises:
        ValueError: ``path`` is of another data set or format.
    """

    def __init__(self, dataset: Dataset, path: str | Path, *, verify: bool = True) -> None:
        super().__init__()
        self.dataset, self.verify = dataset, verify
        self.path = Path(path).absolute()  # files are opened later, also in worker processes
        self.meta = meta_of(self.path)
        if len(dataset) != self.meta["count"]:
            raise ValueError(
                f"{path} holds the teacher's outputs for {self.meta['count']} samples, the data set has "
                f"{len(dataset)}: store them again with cache_teacher(..., overwrite=True)."
            )
        self._arrays: list[np.ndarray] | None = None
        self._checksums = stored_array(self.path / "checksums.npy")

    __repr__ = constructor_repr

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        fields = fields_of(self.dataset[index])
        check = index
        if self.verify and checksum(fields) != self._checksums[index]:
            check = -1 - index  # an exception here would hang Paddle's loader: the training loop raises it
        stored = (np.asarray(array[index], dtype="float32") for array in self.arrays())
        return (*fields, *stored, np.int64(check))

    def arrays(self) -> list[np.ndarray]:
        """Return the stored outputs, one memory-mapped array ``[samples, ...]`` each."""
        if self._arrays is None:
            files = [self.path / f"output_{i}.npy" for i in range(len(self.meta["outputs"]))]
            self._arrays = [stored_array(file) for file in files]
        return self._arrays

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": None}  # a worker process maps the files itself

    @property
    def fields(self) -> int:
        """Number of inputs and labels of a sample, without the added fields."""
        return int(self.meta["fields"])

    @property
    def added(self) -> int:
        """Number of fields added to each sample."""
        return len(self.meta["outputs"]) + 1

    def outputs_from(self, tensors: Sequence[Tensor]) -> Any:
        """Return the teacher's outputs in their structure: tensor, list or dictionary."""
        paths = self.meta["outputs"]
        if self.meta["kind"] == "tensor":
            return tensors[0]
        return dict(zip(paths, tensors, strict=True)) if self.meta["kind"] == "dict" else list(tensors)


@old_arguments(progress=Renamed("verbose", int))
def cache_teacher(
    teacher: TeacherLike,
    dataset: Dataset,
    path: str | Path,
    *,
    inputs: int = 1,
    batch_size: int = 64,
    num_workers: int = 0,
    dtype: str = "float32",
    allow_random: bool = False,
    overwrite: bool = False,
    verbose: int = 1,
    teacher_mode: str = "eval",
    teacher_inputs: TeacherInputs | None = None,
) -> CachedTeacher:
    """Run ``teacher`` once over ``dataset`` and store its outputs.

    The folder ``path`` gets one memory-mapped array per output, a checksum of each sample and of the teacher's weights.
    An existing folder is reused if teacher and options are the same. Files are written under a temporary name first, so
    that an interrupted run leaves none behind. Under ``paddle.distributed.launch`` rank 0 writes and the others wait.

    Args:
        teacher: Single teacher in a form of `DistillCallback`.
        dataset: Map-style data set of ``(inputs..., labels...)``, without random augmentation.
        path: Folder; created if missing.
        inputs: Number of a sample's fields that are inputs of the network.
        batch_size: Batch size of the teacher's pass.
        num_workers: Number of worker processes of its loader.
        dtype: ``"float32"``, or ``"float16"`` for half the space and a relative rounding error of 5e-4.
        allow_random: Whether to accept a data set with random samples: the teacher's outputs are then of other versions
            of the images than the student gets, and samples are not verified.
        overwrite: Whether to replace outputs of another teacher or data set in ``path``.
        verbose: 1 shows a progress bar, 0 nothing.
        teacher_mode: As in `DistillCallback`, for the one teacher.
        teacher_inputs: As in `DistillCallback`. Stored outputs are identified by its code and the values it uses.

    Returns:
        Data set to train on, which is the teacher too.

    Raises:
        TypeError: An ``IterableDataset``, whose samples have no indices.
        ValueError: Random augmentation; a folder of another teacher or other options; changed data; an empty data set;
            a number or mode out of range; outputs without one row per sample.
        PermissionError: ``path`` is not writable.

    Example:
        >>> cached = cache_teacher(teacher, train_data, "teacher-outputs")  # doctest: +SKIP
        >>> model.fit(cached, callbacks=[DistillCallback(cached)])  # doctest: +SKIP
    """
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        raise TypeError(
            f"cache_teacher needs a data set with indices, got {type(dataset).__name__}, which is iterable. Wrap "
            "the samples in a map-style paddle.io.Dataset, or let the teacher run: DistillCallback(teacher)."
        )
    if dtype not in ("float32", "float16"):
        raise ValueError(f"dtype must be 'float32' or 'float16', got {dtype!r}: use 'float16' for half the space.")
    _check_label_numbers(batch_size=(batch_size, 1), num_workers=(num_workers, 0), inputs=(inputs, 1))
    if not len(dataset):
        raise ValueError(
            f"The data set {type(dataset).__name__} has no samples, so nothing can be stored: give at least one sample."
        )
    if inputs > (fields := len(fields_of(dataset[0]))):
        raise ValueError(
            f"inputs={inputs} must be at most {fields}, the number of fields of a sample, whose first are the "
            "network's inputs. Leave it out for one."
        )
    network, folder = loaded_teacher(teacher), Path(path)
    if network is None:
        raise ValueError(
            f"teacher={str(teacher)!r} is a checkpoint without its network: give teacher=(checkpoint, network)."
        )
    (mode,), (function,) = checked_modes(teacher_mode, 1), checked_inputs(teacher_inputs, 1)
    check_no_saved_program(network, mode)
    check_signature(function, inputs)
    check_writable(folder.parent)
    if not allow_random:
        _check_random(dataset)
    wanted = {"format": FORMAT, "teacher": digest_of(network), "count": len(dataset), "dtype": dtype, "inputs": inputs}
    wanted |= {"teacher_mode": mode, "teacher_inputs": "" if function is None else function_digest(function)}
    with first_rank_works() as turn:
        if turn.mine and not _usable(folder, wanted, dataset, overwrite, allow_random):
            forward = FrozenForward(network, mode=mode, inputs=function)
            write_cache(
                folder, forward, dataset, wanted, batch_size=batch_size, num_workers=num_workers, verbose=verbose
            )
    return CachedTeacher(dataset, folder, verify=not allow_random)


def _check_label_numbers(**numbers: tuple[int, int]) -> None:
    for name, (value, least) in numbers.items():
        check_whole(name, value, least, remedy="leave it out")


def _check_random(dataset: Dataset) -> None:
    count = len(dataset)
    for index in sorted({int(i) for i in np.linspace(0, count - 1, min(_PROBES, count))}):
        if checksum(fields_of(dataset[index])) != checksum(fields_of(dataset[index])):
            raise ValueError(
                f"Sample {index} differs from call to call: the data set augments at random, so stored outputs "
                "would be of other images than the student gets. Augment inside the network, cache the data without "
                "augmentation, or, if you accept that, pass allow_random=True."
            )


def _usable(folder: Path, wanted: dict[str, Any], dataset: Dataset, overwrite: bool, allow_random: bool) -> bool:
    """Whether ``folder`` contains the wanted outputs.

    Raises:
        ValueError: It contains others, and ``overwrite`` is not given.
    """
    if not folder.exists():
        return False
    try:
        meta = meta_of(folder)
        other = [f"{key} {meta.get(key)} instead of {value}" for key, value in wanted.items() if meta.get(key) != value]
        if not other and not allow_random:
            known = stored_array(folder / "checksums.npy")
            changed = [i for i in range(len(dataset)) if checksum(fields_of(dataset[i])) != known[i]]
            other += [f"{len(changed)} changed samples, the first is {changed[0]}"] if changed else []
    except (OSError, ValueError, KeyError) as error:
        other = [str(error)]
    if not other:
        return True
    if overwrite:
        return False
    raise ValueError(
        f"{folder} holds other outputs than those of this teacher for this data set ({'; '.join(other)}): give "
        "another path, or use overwrite=True to replace it."
    )
