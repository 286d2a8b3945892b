"""Write ``deploy.json``: what an application needs to know to run the files."""

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
    """Check the sidecar options; ``None`` for each that is not given.

    Returns ``preprocess``, ``postprocess`` and ``labels`` as JSON holds them.

    Raises:
        ValueError: Unknown key, a value that JSON cannot hold, or labels that are not a list of strings.
    """
    options: dict[str, Any] = {"preprocess": None, "postprocess": None, "labels": None, **(given or {})}
    if other := sorted(options.keys() - {"preprocess", "postprocess", "labels"}):
        raise ValueError(
            f"Unknown keys {other} of sidecar; available: preprocess, postprocess, labels. Put your own keys into "
            "preprocess."
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
            f"sidecar must be serialisable as JSON: {error}. Give numbers, strings, lists and dictionaries."
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
        folder: Folder of the files.
        artefacts: Exported models, listed with precision, checksums and size.
        inputs: ``name``, ``shape`` (``None`` for dynamic sizes) and ``dtype`` of each input.
        outputs: The same of each output, see `described_outputs`.
        options: Result of `checked_sidecar_options`.
        verdicts: Result of each engine on each file.
        quantization: Scheme of the int8 files, see `quantization_of`; left out for a float network.
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
    """Return the batch size that ``input_spec`` fixes; ``None`` where it is dynamic.

    Args:
        input_spec: Specs of the inputs, an `InputSpec` each.
    """
    size = input_spec[0].shape[0] if input_spec and len(input_spec[0].shape) else None
    return None if size in (None, -1) else int(size)


def has_free_sizes(input_spec: Sequence[Any]) -> bool:
    """Whether ``input_spec`` has dynamic sizes besides the batch.

    Args:
        input_spec: Specs of the inputs, an `InputSpec` each.
    """
    return any(size in (None, -1) for spec in input_spec for size in spec.shape[1:])


def described_outputs(
    artefacts: Sequence[Artefact], outputs: Sequence[np.ndarray], input_spec: Sequence[Any]
) -> list[dict[str, Any]]:
    """Return ``name``, ``shape`` and ``dtype`` of each output.

    Dynamic sizes are ``None``.

    Args:
        artefacts: Exported models; an ONNX file among them gives names and dynamic sizes.
        outputs: Outputs of one call.
        input_spec: Specs of the inputs; only with dynamic sizes besides the batch can the outputs have some.
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
    raise TypeError(f"{type(value).__name__} is not serialisable as JSON")
