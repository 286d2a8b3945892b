"""``deploy.json``: what whoever runs the files has to know beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.export.compare import FileVerdict
from paddlelite_callbacks.export.model_files import output_shapes
from paddlelite_callbacks.export.saturation import saturation_of

__all__ = ["SIDECAR", "checked_sidecar_options", "described_outputs", "fixed_rows", "has_free_sizes", "write_sidecar"]

SIDECAR = "deploy.json"
_VERSION = 1


def checked_sidecar_options(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return ``preprocess``, ``postprocess`` and ``labels`` as JSON will hold them, ``None`` where not given.

    Raises:
        ValueError: another key, something that JSON cannot hold, or labels that are no list of strings.
    """
    options: dict[str, Any] = {"preprocess": None, "postprocess": None, "labels": None, **(given or {})}
    if other := sorted(options.keys() - {"preprocess", "postprocess", "labels"}):
        raise ValueError(
            f"sidecar takes preprocess, postprocess and labels, not {other}: put your own keys into preprocess."
        )
    labels = options["labels"]
    if labels is not None:
        if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
            raise ValueError(
                f"labels must be a list of names in the order of the outputs, got {labels!r}: write ['cat', 'dog']."
            )
        options["labels"] = list(labels)
    for name in ("preprocess", "postprocess"):
        if options[name] is not None and not isinstance(options[name], Mapping):
            raise ValueError(f"{name} must be a dictionary, got {options[name]!r}: write {{'mean': [0.5]}}.")
    try:
        return dict(json.loads(json.dumps(options, allow_nan=False, default=_plain)))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"sidecar must hold what JSON can hold: {error}. Give numbers, texts, lists and dictionaries."
        ) from error


def write_sidecar(
    folder: Path,
    artefacts: Sequence[Artefact],
    *,
    inputs: Sequence[Mapping[str, Any]],
    outputs: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
    verdicts: Sequence[FileVerdict] = (),
    quantization: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``deploy.json`` into ``folder``.

    Args:
        folder: of the files.
        artefacts: named with precision, checksums and size.
        inputs: ``name``, ``shape`` (free sizes ``None``) and ``dtype`` of each.
        outputs: the same of each, see `described_outputs`.
        options: of `checked_sidecar_options`.
        verdicts: what each engine made of each file.
        quantization: of the int8 files, see `quantization_of`; left out for a network in float.
    """
    content = {
        "version": _VERSION,
        "inputs": [dict(item) for item in inputs],
        "outputs": [dict(item) for item in outputs],
        **options,
        **({} if quantization is None else {"quantization": dict(quantization)}),
        "files": [_described_file(artefact, verdicts) for artefact in artefacts],
    }
    path = folder / SIDECAR
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def fixed_rows(input_spec: Sequence[Any]) -> int | None:
    """Return the batch size that ``input_spec`` fixes; ``None`` where it is free.

    Args:
        input_spec: an `InputSpec` each.
    """
    size = input_spec[0].shape[0] if input_spec and len(input_spec[0].shape) else None
    return None if size in (None, -1) else int(size)


def has_free_sizes(input_spec: Sequence[Any]) -> bool:
    """Whether ``input_spec`` leaves a size behind the batch free.

    Args:
        input_spec: an `InputSpec` each.
    """
    return any(size in (None, -1) for spec in input_spec for size in spec.shape[1:])


def described_outputs(
    artefacts: Sequence[Artefact], outputs: Sequence[np.ndarray], input_spec: Sequence[Any]
) -> list[dict[str, Any]]:
    """Return ``name``, ``shape`` (free sizes ``None``) and ``dtype`` of each output.

    Args:
        artefacts: of the network; an ONNX file among them tells names and free sizes.
        outputs: of one call.
        input_spec: of the inputs: where sizes behind the batch are free, those of the outputs may be.
    """
    free, first = has_free_sizes(input_spec), fixed_rows(input_spec)
    declared = next((output_shapes(a) for a in artefacts if a.kind == "onnx"), {})
    names = list(declared) if len(declared) == len(outputs) else [None] * len(outputs)
    described = []
    for name, item in zip(names, outputs, strict=True):
        sizes: list[int | None] = [int(size) for size in item.shape[1:]]
        if free:
            known = declared.get(name or "", [])
            fixed = known if len(known) == item.ndim else [-1] * item.ndim
            sizes = [size if fixed[axis] > 0 else None for axis, size in enumerate(sizes, start=1)]
        described.append({"name": name, "shape": [first, *sizes] if item.ndim else [], "dtype": str(item.dtype)})
    return described


def _described_file(artefact: Artefact, verdicts: Sequence[FileVerdict]) -> dict[str, Any]:
    own = [v for v in verdicts if (v.kind, v.precision) == (artefact.kind, artefact.precision)]
    found = saturation_of(artefact.kind, artefact.precision, artefact.path)
    return {
        "kind": artefact.kind,
        "precision": artefact.precision,
        "size_mb": artefact.size_mb,
        "sha256": artefact.sha256(),
        "verdicts": {verdict.engine: verdict.text for verdict in own},
        **({} if found is None else {"saturation": found.figures()}),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no JSON")
