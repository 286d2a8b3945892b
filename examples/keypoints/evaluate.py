"""Evaluate weights, or exported files on every engine."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from dataset import KeypointDataset
from settings import NETWORKS, SETTINGS, add_data_flags, datasets, load_weights, metric_of, network
from train import evaluate

from paddlelite_callbacks.benchmark.engines import ENGINES, EngineError, missing_reason
from paddlelite_callbacks.export.artefact import Artefact

__all__ = ["ap_of_files", "artefacts_in"]


def artefacts_in(folder: Path) -> list[Artefact]:
    """Return the exported networks in ``folder``.

    These are ``model.json`` + ``model.pdiparams`` and ``*.onnx``.

    Raises:
        FileNotFoundError: There is none.
    """
    found = [Artefact(kind="onnx", path=path, files=(path,)) for path in sorted(folder.glob("*.onnx"))]
    for program in sorted(folder.glob("*.json")):
        parameters = program.with_suffix(".pdiparams")
        if parameters.is_file():
            found.append(Artefact(kind="paddle", path=program, files=(program, parameters)))
    if not found:
        raise FileNotFoundError(f"There is no exported network in {folder}.")
    return found


def ap_of_files(
    folder: Path,
    dataset: KeypointDataset,
    *,
    dark: bool = False,
    batch_size: int = 16,
    threads: int = 1,
    engines: Sequence[str] = tuple(ENGINES),
) -> dict[str, dict[str, Any]]:
    """Evaluate exported files on each engine that reads them, without flip test.

    Args:
        folder: Folder of the exported files.
        dataset: Evaluation data.
        dark: Whether to decode with DARK.
        batch_size: Images per call.
        threads: Number of CPU threads.
        engines: Names of engines.

    Returns:
        Metrics, or ``{"error": reason}``, by ``"<file> on <engine>"``.
    """
    table: dict[str, dict[str, Any]] = {}
    for artefact in artefacts_in(folder):
        for engine in (ENGINES[name] for name in engines):
            if engine.kind != artefact.kind:
                continue
            key, missing = f"{artefact.path.name} on {engine.name}", missing_reason(engine)
            try:
                if missing:
                    raise EngineError(missing)
                table[key] = _figures(engine.load(artefact, threads=threads), dataset, dark, batch_size)
            except (EngineError, RuntimeError, ValueError) as error:
                table[key] = {"error": str(error).strip().splitlines()[-1]}
    return table


def _figures(predict: Callable, dataset: KeypointDataset, dark: bool, batch_size: int) -> dict[str, float]:
    metric = metric_of(dataset, dark=dark)
    for begin in range(0, len(dataset), batch_size):
        indices = np.arange(begin, min(begin + batch_size, len(dataset)))
        images = np.stack([dataset[int(i)][0] for i in indices])
        metric.update(predict([images])[0], indices)
    return dict(zip(metric.name(), metric.accumulate(), strict=True))


def main() -> None:
    """Evaluate as given on the command line and print the metrics."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_data_flags(parser)
    parser.add_argument("--network", choices=NETWORKS, default="lite_hrnet_30")
    parser.add_argument("--weights", type=Path, help=".pdparams, ours or the guide's")
    parser.add_argument("--exported", type=Path, help="folder of exported files, instead of --weights")
    parser.add_argument("--out", type=Path, default=Path("keypoints-out"))
    flags = parser.parse_args()
    if (flags.weights is None) == (flags.exported is None):
        raise SystemExit("Give either --weights or --exported.")
    held_out = datasets(flags)[1]
    if flags.exported:
        for name, figures in ap_of_files(flags.exported, held_out, dark=flags.dark).items():
            print(name, figures.get("error") or "  ".join(f"{k} {value:.4f}" for k, value in figures.items()))
        return
    flags.out.mkdir(parents=True, exist_ok=True)
    layer = network(flags.network, held_out.source.layout)
    load_weights(layer, flags.weights)
    for name, value in evaluate(layer, held_out, SETTINGS[flags.settings], flags).items():
        print(f"{name} {value:.4f}")


if __name__ == "__main__":
    main()
