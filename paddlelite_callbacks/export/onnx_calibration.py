"""Observe tensors of a float ONNX model on calibration data; choose ranges."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from paddlelite_callbacks.export.float_onnx import FloatOnnx
from paddlelite_callbacks.export.onnx_quantize import ActivationRange, output_tensors, read_tensors
from paddlelite_callbacks.export.onnx_session import run_model, with_outputs
from paddlelite_callbacks.quant.functional import grid_levels
from paddlelite_callbacks.quant.histogram import ValueHistogram, sampling_stride
from paddlelite_callbacks.quant.ranges import range_and_grid

__all__ = ["Observation", "activation_ranges", "observe_model"]

_SAMPLE = 1 << 18  # number of values of one tensor in one batch

Inputs = Mapping[str, np.ndarray]


@dataclass
class Observation:
    """What was seen of a float model.

    Args:
        histograms: Values of each tensor.
        lowest: Smallest value of each tensor.
        percentiles: The percentile of ``|x|`` of each tensor, per batch.
        means: Mean of each product's output, ``[channels]`` by name.
        bytes_per_image: Size of the largest tensor, bytes per image.
    """

    histograms: dict[str, ValueHistogram] = field(default_factory=dict)
    lowest: dict[str, float] = field(default_factory=dict)
    percentiles: dict[str, list[float]] = field(default_factory=dict)
    means: dict[str, np.ndarray] = field(default_factory=dict)
    bytes_per_image: int = 1

    def keep(self, name: str, value: np.ndarray, percentile: float) -> None:
        """Add the values of one tensor in one batch.

        Args:
            name: Name of the tensor.
            value: Its values.
            percentile: Percentile of ``|x|`` to keep.

        Raises:
            ValueError: They are not finite.
        """
        flat = value.reshape(-1)
        lowest, highest = float(flat.min(initial=0.0)), float(flat.max(initial=0.0))
        if not np.isfinite([lowest, highest]).all():
            raise ValueError(
                f"The tensor {name!r} is not finite on the calibration data: clean them of NaN and infinite values, "
                "and check the network's weights."
            )
        sample = flat[:: sampling_stride(flat.size, _SAMPLE)]
        self.histograms.setdefault(name, ValueHistogram()).add(sample, largest=max(-lowest, highest))
        self.lowest[name] = min(self.lowest.get(name, 0.0), lowest)
        magnitudes = np.abs(sample)
        found = magnitudes.max(initial=0.0) if percentile == 100 else np.percentile(magnitudes, percentile)
        self.percentiles.setdefault(name, []).append(float(found))


def observe_model(
    source: FloatOnnx,
    batches: Iterable[Inputs],
    *,
    percentile: float = 100.0,
    ranges: bool = True,
    threads: int = 1,
    progress: Callable[[], object] = lambda: None,
) -> Observation:
    """Run a float model and observe what its products read and compute.

    Args:
        source: Float model.
        batches: Arrays by input name, batch first.
        percentile: Percentile of ``|x|`` to keep, for ``calibration="percentile"``.
        ranges: Whether to observe values for ranges; otherwise only the means of the products' outputs.
        threads: CPU threads.
        progress: Called after every batch.

    Raises:
        ValueError: No batch, or values that are not finite.
        ExportError: ONNX Runtime cannot run the model.
    """
    tensors = list(dict.fromkeys([*read_tensors(source), *output_tensors(source).values()])) if ranges else []
    inputs = [item.name for item in source.model.graph.input]
    outputs = {product.output: product for product in source.products.values()}
    inside = [name for name in tensors if name not in inputs]
    seen = with_outputs(source.model, [*inside, *outputs], only=True)
    run = run_model(seen, exact=False, threads=threads)  # float alone: the same within rounding, in half the time
    found, sums, counts = Observation(), dict[str, np.ndarray](), dict[str, int]()
    for batch in batches:
        got = {**{name: batch[name] for name in inputs}, **run(batch)}
        for name in tensors:
            found.keep(name, got[name], percentile)
            found.bytes_per_image = max(found.bytes_per_image, got[name].nbytes // max(len(got[name]), 1))
        for name, product in outputs.items():
            total, count = product.channel_sums(got[name])
            sums[product.name] = sums.get(product.name, 0.0) + total
            counts[product.name] = counts.get(product.name, 0) + count
        progress()
    if not counts:
        raise ValueError("There is no image to calibrate on: give some hundred.")
    found.means = {name: total / counts[name] for name, total in sums.items()}
    return found


def activation_ranges(seen: Observation, calibration: str, *, bits: int = 8) -> dict[str, ActivationRange]:
    """Return the range of each observed tensor.

    Args:
        seen: Result of `observe_model`.
        calibration: ``"min_max"``, ``"percentile"`` (the mean over batches), ``"mse"`` or ``"kl"``.
        bits: Grid width in bits, 2-8.
    """
    found = {}
    for name, histogram in seen.histograms.items():
        lowest = seen.lowest[name]
        values: ValueHistogram | float = histogram
        if calibration == "percentile":
            values = float(np.mean(seen.percentiles[name])) or histogram.largest or 1.0
        alpha, (low, high) = range_and_grid(values, calibration, bits=bits, lowest=lowest)
        shifted = (low, high) != grid_levels(bits, lowest < 0)
        found[name] = ActivationRange(alpha=alpha, signed=lowest < 0, lowest=low * alpha / high if shifted else None)
    return found
