"""Manage the folder of one run: weights and log first, then the export.

Weights cost hours, files seconds: so the weights and the log of a training stand, whole, before anything is exported
from them. Model files of an older export of that name belong to other weights: they go, with theirs, into the
subfolder ``previous_export``, and stay there as long as there is no new export.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from paddlelite_callbacks.export.lite import LITE_TARGETS
from paddlelite_callbacks.export.metadata import SIDECAR
from paddlelite_callbacks.utils.atomic_files import link_or_copy, staged_folder
from paddlelite_callbacks.utils.signals import uninterrupted

__all__ = ["LAST_WEIGHTS", "LOG", "PREVIOUS", "WEIGHTS", "staged_export", "write_training"]

WEIGHTS = "model.pdparams"  # of the weights that are exported
LAST_WEIGHTS = "last.pdparams"  # where those that fit ended with are others
LOG = "train_log.jsonl"
PREVIOUS = "previous_export"
_MODELS = (
    "model.json",
    "model.pdmodel",
    "model.int8.pdmodel",
    "model.pdiparams",
    "model.int8.pdiparams",
    *(f"model{precision}.{target}.nb" for precision in ("", ".int8") for target in LITE_TARGETS),
    "model.onnx",
    "model.int8.onnx",
    "model.fp16.onnx",
    SIDECAR,
)
_OURS = (WEIGHTS, LAST_WEIGHTS, LOG, *_MODELS)


def write_training(
    home: Path,
    weights: Mapping[str, Any],
    *,
    last: Mapping[str, Any] | None = None,
    log: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Write weights and log into ``home``, and set an older export aside.

    All of it appears in one step, with the user's own files as they were; a signal waits until it is done.

    Args:
        home: the run's folder; made if missing.
        weights: a ``state_dict``, of tensors or arrays.
        last: another one, for ``last.pdparams``; ``None`` writes none.
        log: a line each; ``None`` where there was no training: an older log stays.

    Raises:
        OSError: it cannot be written to, or the disk is full; what stood there stands as it was.
    """
    with uninterrupted():
        dropped = [name for name in _OURS if name != LOG or log is not None]
        with staged_folder(home, dropped=dropped) as stage:
            _set_aside(home, stage)
            for name, state in ((WEIGHTS, weights), (LAST_WEIGHTS, last)):
                if state is not None:
                    paddle.save({key: _named(key, value) for key, value in state.items()}, str(stage / name))
            if log is not None:
                (stage / LOG).write_text("".join(json.dumps(row) + "\n" for row in log), encoding="utf-8")


@contextmanager
def staged_export(home: Path) -> Iterator[Path]:
    """Yield an empty folder for model files, which join the weights on success.

    What was set aside goes then; after an exception it stays, and no model file stands beside the weights.

    Args:
        home: of `write_training`.
    """
    with staged_folder(home, dropped=(PREVIOUS, *_MODELS)) as stage:
        yield stage


def _set_aside(home: Path, stage: Path) -> None:
    """Keep a complete export, or the first training without one, in ``PREVIOUS``."""
    standing = [home / name for name in _OURS if (home / name).is_file()]
    exported = (home / SIDECAR).is_file()
    if not standing or (not exported and (home / PREVIOUS).exists()):
        return
    (stage / PREVIOUS).mkdir()
    for file in standing:
        link_or_copy(file, stage / PREVIOUS / file.name)


def _named(key: str, value: Any) -> paddle.Tensor:
    """Return a tensor named ``key``: Paddle stores names, and numbers its own."""
    tensor = paddle.to_tensor(value) if isinstance(value, np.ndarray) else value.detach().clone()
    tensor.name = key
    return tensor
