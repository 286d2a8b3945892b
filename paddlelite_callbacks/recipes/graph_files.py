"""Make and measure int8 files of one float ONNX model, with some layers put back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from paddlelite_callbacks.benchmark.engines import ENGINES, Predict, in_batches
from paddlelite_callbacks.benchmark.latency import measure_latency
from paddlelite_callbacks.benchmark.options import BenchOptions, repeated_rows
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.export.float_onnx import FloatOnnx
from paddlelite_callbacks.export.onnx_bias_correction import bias_corrections
from paddlelite_callbacks.export.onnx_calibration import Observation, activation_ranges, observe_model
from paddlelite_callbacks.export.onnx_quantize import GraphScheme, quantize_graph
from paddlelite_callbacks.export.onnx_session import run_model
from paddlelite_callbacks.recipes.sample_data import SampleData
from paddlelite_callbacks.utils.isolation import hushed_stdout
from paddlelite_callbacks.utils.progress import tqdm

__all__ = ["FileMetric", "FileTimer", "GraphFiles", "load_model", "relative_error"]

_CORRECTED = 1 << 30  # bytes of tensors in memory while biases are corrected
_RANKED = 32  # images for the sensitivity of layers
_BATCH = 8


@dataclass(frozen=True, kw_only=True)
class FileMetric:
    """Metric of a file.

    Args:
        name: Name of the metric.
        of: Returns its value from a file's function of arrays.
        samples: Number of images that it is computed on.
        higher_is_better: Direction.
    """

    name: str
    of: Callable[[Predict], float]
    samples: int
    higher_is_better: bool = True


class GraphFiles:
    """Int8 models of one float model, built from one observation.

    Args:
        source: Float model.
        seen: What was observed of it.
        samples: Data.
        calibration: Rows that were observed.
        method: Calibration method.
        bits: Activation bits.
        correct: Whether to correct biases.
        threads: CPU threads.
        verbose: 1 shows progress bars, 0 nothing.
    """

    def __init__(
        self,
        source: FloatOnnx,
        seen: Observation,
        samples: SampleData,
        calibration: np.ndarray,
        *,
        method: str,
        bits: int = 8,
        correct: bool = True,
        threads: int = 1,
        verbose: int = 1,
    ) -> None:
        self.source, self.ranges = source, activation_ranges(seen, method, bits=bits)
        self._samples, self._calibration, self._means = samples, calibration, seen.means
        self._correct, self._threads, self._verbose = correct, threads, verbose
        count = max(1, min(len(calibration), _CORRECTED // (2 * seen.bytes_per_image)))
        self._corrected = calibration
        if correct and count < len(calibration):  # means over the same images
            self._corrected = calibration[np.linspace(0, len(calibration) - 1, count).round().astype(int)]
            batches = samples.batches(self._corrected, _BATCH)
            self._means = observe_model(source, batches, ranges=False, threads=threads).means

    def model(self, scheme: GraphScheme, *, correct: bool = True) -> Any:
        """Return the int8 model of a scheme.

        Args:
            scheme: Bits and places.
            correct: Whether to correct biases, where that was chosen.
        """
        model = quantize_graph(self.source, self.ranges, scheme)
        if not (correct and self._correct):
            return model
        with tqdm(
            total=len(self.source.products), desc="bias correction", leave=False, disable=not self._verbose
        ) as bar:
            found = bias_corrections(
                self.source,
                model,
                self._means,
                list(self._samples.batches(self._corrected, _BATCH)),
                threads=self._threads,
                progress=bar.update,
            )
        return quantize_graph(self.source, self.ranges, replace(scheme, corrections=found))

    def sensitivities(
        self, scheme: GraphScheme, known: Mapping[str, float], keep: Callable[[Mapping[str, float]], None]
    ) -> None:
        """Measure the error at the outputs when one layer alone is quantised.

        Args:
            scheme: Bits and places.
            known: Layers that were measured already, by name.
            keep: Called with the `relative_error` of each new one, by name.
        """
        batch = self._samples.rows(self._calibration[:: max(1, len(self._calibration) // _RANKED)])
        expected = run_model(self.source.model, exact=False, threads=self._threads)(batch)
        names = list(self.source.products)
        for name in tqdm(names, desc="sensitivity", unit="layer", leave=False, disable=not self._verbose):
            if name in known:
                continue
            alone = replace(scheme, skip=[other for other in names if other != name])
            model = quantize_graph(self.source, self.ranges, alone)
            got = run_model(model, exact=False, threads=self._threads)(batch)
            keep({name: relative_error(list(expected.values()), list(got.values()))})


class FileTimer:
    """Times files against the float one, in turn, so that a busy machine slows both.

    Args:
        baseline: Function of the float file.
        sample: Inputs, one array each.
        rows: Exact number of images per call; ``None`` for 1.
        options: Batch size and repeats.
    """

    def __init__(
        self, baseline: Predict, sample: Sequence[np.ndarray], rows: int | None, options: BenchOptions
    ) -> None:
        self._batch = repeated_rows(sample, rows or options.settings[0][1])
        self._baseline, self._options = baseline, options
        self.fp32_ms = float("inf")

    def ratios(self, files: Mapping[Any, Predict]) -> dict[Any, float]:
        """Return the fastest call of each file over that of the float one.

        Args:
            files: Functions of the files by a name of theirs.
        """
        calls: dict[Any, Callable[[], object]] = {key: partial(run, self._batch) for key, run in files.items()}
        calls[None] = partial(self._baseline, self._batch)
        repeats = min(self._options.repeats, 20)
        found = measure_latency(calls, warmup=min(self._options.warmup, 5), repeats=repeats, settle=1, shuffle=True)
        fastest = {key: min(values) for key, values in found.items()}
        own = fastest.pop(None)
        self.fp32_ms = min(self.fp32_ms, own)
        return {key: value / own for key, value in fastest.items()}


def load_model(engine: str, model: Any, folder: Path, *, threads: int, rows: int | None) -> Predict:
    """Write a model into a folder and load it on an engine.

    Args:
        engine: Name of an engine for ONNX files.
        model: An ``onnx.ModelProto``.
        folder: Folder for the file.
        threads: CPU threads.
        rows: Exact number of images per call; ``None`` for any.
    """
    path = folder / "tried.onnx"
    path.write_bytes(model.SerializeToString())
    artefact = Artefact(kind="onnx", path=path, files=(path,), precision="int8")
    with hushed_stdout():
        return in_batches(ENGINES[engine].load(artefact, threads=threads), rows)


def relative_error(expected: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> float:
    """Return the RMS error over the RMS, the largest over the outputs.

    Args:
        expected: Outputs in float.
        got: Outputs of a file.
    """
    errors = []
    for a, b in zip(expected, got, strict=True):
        if a.size and a.dtype.kind == "f":
            power = max(float(np.mean(np.square(a.astype("float64")))), 1e-24)
            errors.append(float(np.sqrt(np.mean(np.square(a.astype("float64") - b)) / power)))
    return max(errors, default=0.0)
