"""Manage the folder of one run: weights and log first, then the export.

A training takes hours, an export seconds: weights and log are therefore written completely before the export begins.
Model files of an older export of that name belong to other weights: they are moved, with those weights, to the
subfolder ``previous_export``, and are kept there until a new export succeeds.
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

WEIGHTS = "model.pdparams"  # the exported weights
LAST_WEIGHTS = "last.pdparams"  # the weights at the end of fit, if others are exported
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

    All files appear in one step and the user's own files are kept; signals are deferred until then.

    Args:
        home: Folder of the run; created if missing.
        weights: ``state_dict`` of tensors or arrays.
        last: ``state_dict`` for ``last.pdparams``; ``None`` writes none.
        log: One dictionary per line; ``None`` without a training, which keeps an older log.

    Raises:
        OSError: The folder is not writable, or the disk is full; the folder is unchanged.
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
    """Yield an empty folder for model files, which are moved to ``home`` on success.

    The previous export is then deleted; after an exception it is kept, and ``home`` has no model files.

    Args:
        home: Folder of the run, see `write_training`.
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
