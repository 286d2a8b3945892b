"""Read and write stored teacher outputs, atomically and with checksums."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import paddle
from paddle import Tensor
from paddle.io import Dataset

from paddlelite_callbacks.distill.forward import FrozenForward
from paddlelite_callbacks.nn.nested import comparable, shapes_of
from paddlelite_callbacks.utils.atomic_files import staged_folder
from paddlelite_callbacks.utils.progress import tqdm
from paddlelite_callbacks.workarounds.data_loader import default_collate, read_undisturbed

__all__ = ["FORMAT", "checksum", "fields_of", "meta_of", "stored_array", "write_cache"]

FORMAT = 1


def checksum(fields: Sequence[Any]) -> int:
    """Return a CRC-32 of a sample's inputs and labels.

    Args:
        fields: Tensors, arrays or numbers.
    """
    crc = 0
    for value in fields:
        array = np.ascontiguousarray(value.numpy() if isinstance(value, Tensor) else np.asarray(value))
        crc = zlib.crc32(memoryview(array).cast("B") if array.size else b"", crc)
    return crc


def write_cache(
    folder: Path,
    forward: FrozenForward,
    dataset: Dataset,
    meta: dict[str, Any],
    *,
    batch_size: int,
    num_workers: int,
    verbose: int,
) -> None:
    """Run the teacher over ``dataset`` and write its outputs, replacing ``folder``.

    Args:
        folder: Target, replaced when all is written.
        forward: Runs the teacher.
        dataset: Samples of inputs and labels.
        meta: Metadata to write; completed here.
        batch_size: Batch size of the pass.
        num_workers: Number of worker processes of its loader.
        verbose: 1 shows a progress bar, 0 nothing.
    """
    with staged_folder(folder, dropped=["output_*.npy"]) as stage:
        _fill(stage, forward, dataset, meta, batch_size=batch_size, num_workers=num_workers, verbose=verbose)


class _Checked(Dataset):
    """Samples followed by their checksum."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__()
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        fields = fields_of(self.dataset[index])
        return (*fields, np.int64(checksum(fields)))


def _fill(
    stage: Path,
    forward: FrozenForward,
    dataset: Dataset,
    meta: dict[str, Any],
    *,
    batch_size: int,
    num_workers: int,
    verbose: int,
) -> None:
    checksums, files, done = np.zeros(len(dataset), dtype="int64"), list[BinaryIO](), 0
    with ExitStack() as scope:
        forward.attach(scope)
        bar = scope.enter_context(tqdm(total=len(dataset), desc="teacher", unit="sample", disable=not verbose))
        for batch in scope.enter_context(_batches(_Checked(dataset), batch_size, num_workers)):
            fields, crc = batch[:-1], batch[-1]
            outputs = forward(fields[: meta["inputs"]], fields[meta["inputs"] :])
            found = _rows(outputs, int(crc.shape[0]))
            if not files:
                meta.update(outputs=list(found), kind=_kind(outputs), fields=len(fields))
                shapes = [(meta["count"], *x.shape[1:]) for x in found.values()]
                files = [
                    scope.enter_context(_begun(stage / f"output_{i}.npy", shape, meta["dtype"]))
                    for i, shape in enumerate(shapes)
                ]
            end = done + int(crc.shape[0])
            checksums[done:end] = crc.numpy().reshape(-1)
            for file, tensor in zip(files, found.values(), strict=True):
                file.write(tensor.astype("float32").numpy().astype(meta["dtype"]).tobytes())
            bar.update(end - done)
            done = end
    with _begun(stage / "checksums.npy", checksums.shape, "int64") as file:
        file.write(checksums.tobytes())
    (stage / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")


def _rows(outputs: Any, samples: int) -> dict[str, Tensor]:
    """Return the outputs to store: those with one row per sample."""
    found = comparable(outputs)
    wrong = {path: list(tensor.shape) for path, tensor in found.items() if int(tensor.shape[0]) != samples}
    if wrong or not found:
        raise ValueError(
            f"The teacher's outputs {wrong or shapes_of(outputs)} do not have one row for each of the {samples} "
            "samples of a batch, so they cannot be stored by sample: let the teacher run, with "
            "DistillCallback(teacher)."
        )
    return found


@contextmanager
def _batches(data: Dataset, batch_size: int, num_workers: int) -> Iterator[Iterable[Any]]:
    collate = default_collate()
    if num_workers or collate is None:
        loader = paddle.io.DataLoader(data, batch_size=batch_size, shuffle=False, num_workers=num_workers)
        with read_undisturbed(loader) as batches:
            yield batches
        return
    # Without worker processes Paddle's loader waits forever after an exception of a sample (in a thread of its own).
    starts = range(0, len(data), batch_size)
    samples = ([data[i] for i in range(start, min(start + batch_size, len(data)))] for start in starts)
    yield ([paddle.to_tensor(field) for field in collate(batch)] for batch in samples)


def _begun(file: Path, shape: tuple[int, ...], dtype: str) -> BinaryIO:
    """Open ``file`` after its header; a memory map would crash on a full disk."""
    stream, descr = file.open("wb"), np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream


def meta_of(folder: Path) -> dict[str, Any]:
    """Return the metadata of ``folder``.

    Raises:
        ValueError: Not such a folder, another format, or truncated or changed files.
    """
    file = folder / "meta.json"
    if not file.is_file():
        raise ValueError(
            f"{folder} is not a folder of cache_teacher: it has no meta.json. Store the outputs there first."
        )
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is truncated ({error}): store the outputs again with overwrite=True.") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else meta
        raise ValueError(
            f"{folder} has format {found!r}, this version reads {FORMAT}: store the outputs again with overwrite=True."
        )
    _check_fit(folder, meta)
    return {"teacher_mode": "eval", "teacher_inputs": "", **meta}  # folders of versions before these options


_META = {"count": int, "outputs": list, "fields": int, "kind": str, "dtype": str, "inputs": int}


def _check_fit(folder: Path, meta: dict[str, Any]) -> None:
    """Check files against ``meta`` early: a later error would hang Paddle's loader."""
    strange = [name for name, kind in _META.items() if not isinstance(meta.get(name), kind)]
    found = [f"{name} {meta.get(name)!r} in meta.json" for name in strange]
    if not strange:
        wanted = {f"output_{i}.npy": meta["dtype"] for i in range(len(meta["outputs"]))}
        for name, dtype in {**wanted, "checksums.npy": "int64"}.items():
            array = stored_array(folder / name)
            if not array.ndim or len(array) != meta["count"] or array.dtype != dtype:
                found.append(
                    f"{name} of shape {list(array.shape)}, {array.dtype}, for {meta['count']} samples, {dtype}"
                )
    if found:
        raise ValueError(
            f"{folder} does not match its meta.json ({'; '.join(found)}): store the outputs again with overwrite=True."
        )


def stored_array(file: Path) -> np.ndarray:
    """Return the array in ``file``, memory-mapped and never unpickled.

    Args:
        file: File of ``numpy.save``.

    Raises:
        ValueError: It is truncated, missing, or holds Python objects.
    """
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"{file} is truncated or missing ({error}). It must be a plain array, as cache_teacher writes; pickles "
            "are not loaded: store the outputs again with overwrite=True."
        ) from error


def _kind(outputs: Any) -> str:
    return "tensor" if isinstance(outputs, Tensor) else "dict" if isinstance(outputs, dict) else "list"


def fields_of(sample: Any) -> tuple[Any, ...]:
    """Return a sample as a tuple of its inputs and labels."""
    return tuple(sample) if isinstance(sample, (list, tuple)) else (sample,)
