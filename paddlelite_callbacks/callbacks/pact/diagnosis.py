"""Diagnose quantisation: fp32, fake-quantised, int8 metrics; sensitive layers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle
from paddle.nn import Layer

from paddlelite_callbacks.callbacks.pact.int8_file import answered_by, int8_file
from paddlelite_callbacks.nn.surgery import same_modes
from paddlelite_callbacks.quant.sensitivity import find_skips, layer_sqnr, leave_one_out
from paddlelite_callbacks.quant.switch import quantizers_off
from paddlelite_callbacks.utils.deprecation import Renamed, old_arguments, old_attributes
from paddlelite_callbacks.utils.distributed import mean_figure, of_first_rank
from paddlelite_callbacks.utils.metric_direction import falls_with_quality
from paddlelite_callbacks.workarounds.data_loader import loader_of

__all__ = ["Diagnosis", "diagnose", "kept_inputs", "metric_of", "score_of"]

_BATCH, _FEW, _TRIED = 32, 2, 8


@old_arguments(
    allowed_drop=Renamed("metric_drop"),
    higher_is_better=Renamed("mode", lambda higher: "max" if higher else "min"),
)
@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Metric before and after quantisation, and the most sensitive layers.

    Args:
        metric: Name of the metric in ``model.evaluate``; ``"loss"`` if there is no metric.
        fp32: Metric with the quantizers disabled.
        fake_quant: Metric with the quantizers enabled.
        int8: Metric of the real int8 file; ``None`` if it was not measured.
        engine: Engine that ran the file, or the reason why none did.
        metric_drop: Accepted drop, as a share of ``fp32``.
        sqnr_db: Signal-to-quantisation-noise ratio of the noisiest layers, dB.
        gains: Improvement of the metric with one layer left in fp32, by layer name.
        skips: Layers suggested for ``skip``; empty if leaving single layers in fp32 does not help.
        mode: ``"max"`` if the larger metric is better, ``"min"`` if the smaller.
    """

    metric: str
    fp32: float
    fake_quant: float
    int8: float | None
    engine: str
    metric_drop: float
    sqnr_db: dict[str, float]
    gains: dict[str, float]
    skips: tuple[str, ...]
    mode: str = "max"

    if not TYPE_CHECKING:  # IDEs and help() show only the new names
        __getattr__ = old_attributes(
            allowed_drop="metric_drop",
            higher_is_better=("mode", lambda found: found.mode == "max"),
        )

    @property
    def drop(self) -> float:
        """Return the relative drop of the int8 file (or the fake-quantised network)."""
        shipped = self.fake_quant if self.int8 is None else self.int8
        lost = self.fp32 - shipped if self.mode == "max" else shipped - self.fp32
        return lost / max(abs(self.fp32), 1e-12)

    @property
    def too_much(self) -> bool:
        """Return whether the drop exceeds the allowed one."""
        return self.drop > self.metric_drop

    def lines(self) -> tuple[str, ...]:
        """Return the diagnosis as lines for a report."""
        real = f"{self.int8:.4f} ({self.engine})" if self.int8 is not None else f"not measured ({self.engine})"
        lines = [
            f"{self.metric}: fp32 {self.fp32:.4f}, fake-quantised {self.fake_quant:.4f}, int8 file {real}; drop "
            f"{100 * self.drop:.2f} %, allowed {100 * self.metric_drop:.2f} %."
        ]
        if self.too_much:
            lines.append("Noisiest layers: " + ", ".join(f"{n} {v:.1f} dB" for n, v in self.sqnr_db.items()) + ".")
            lines.append("Gain when left in fp32: " + ", ".join(f"{n} {v:+.4f}" for n, v in self.gains.items()) + ".")
            lines.append(
                f"Suggested: skip={list(self.skips)}, and train again."
                if self.skips
                else "No few layers left in fp32 win it back: train longer, with a smaller lr_scale, or use more bits."
            )
        return tuple(lines)


@old_arguments(allowed_drop=Renamed("metric_drop"))
def diagnose(model: paddle.Model, data: Any, *, metric_drop: float = 0.03, mode: str = "auto") -> Diagnosis:
    """Evaluate fp32, fake-quantised and int8; find the layers that cause a drop.

    Args:
        model: Prepared model with a quantised network; not changed.
        data: ``Dataset`` or ``DataLoader`` with labels. With several processes all must call this, since all evaluate.
        metric_drop: Accepted drop, as a share of the fp32 metric, in [0, 1).
        mode: ``"max"``, ``"min"`` or ``"auto"``, see `falls_with_quality`.
    """
    network = model.network
    with same_modes(network):
        with kept_inputs(network) as batches:
            metric, quantised = metric_of(model, data)
        with quantizers_off(network):
            plain = metric_of(model, data)[1]
        real, engine = _of_the_file(model, data, batches)
        found = Diagnosis(
            metric=metric,
            fp32=plain,
            fake_quant=quantised,
            int8=real,
            engine=engine,
            metric_drop=metric_drop,
            sqnr_db={},
            gains={},
            skips=(),
            mode="min" if falls_with_quality(metric, mode) else "max",
        )
        if not found.too_much:
            return found
        noisy = of_first_rank(dict(list(layer_sqnr(network, batches).items())[:_TRIED]))  # ranks have different batches

        def score() -> float:
            return score_of(model, data, mode)

        gains = leave_one_out(network, score, list(noisy))
        skips = find_skips(network, score, metric_drop=metric_drop, candidates=list(noisy))
        return Diagnosis(**{**vars(found), "sqnr_db": noisy, "gains": gains, "skips": tuple(skips)})


def metric_of(model: paddle.Model, data: Any) -> tuple[str, float]:
    """Return name and value of the first metric of ``model.evaluate``, or the loss.

    Args:
        model: Prepared model.
        data: ``Dataset`` or ``DataLoader``, as for ``model.evaluate``.

    Raises:
        ValueError: The network's outputs are a dictionary.
    """
    try:
        batches = loader_of(data, batch_size=_BATCH) if isinstance(data, paddle.io.IterableDataset) else data
        results = model.evaluate(batches, batch_size=_BATCH, verbose=0)
    except AttributeError as error:
        if "'dict' object has no attribute" not in str(error):
            raise
        raise ValueError(
            "paddle.Model.evaluate accepts no network whose outputs are a dictionary (a limit of Paddle): let "
            "forward() return a tuple, or leave eval_data out."
        ) from error
    for name, value in results.items():
        if name != "loss":
            return name, float(np.ravel(value)[0])
    return "loss", mean_figure(float(np.ravel(results["loss"])[0]))  # hapi gathers metrics, but not losses


def score_of(model: paddle.Model, data: Any, mode: str = "auto") -> float:
    """Return the metric with a sign such that higher is better.

    Args:
        model: Prepared model.
        data: ``Dataset`` or ``DataLoader``, see `metric_of`.
        mode: ``"max"``, ``"min"`` or ``"auto"``, see `falls_with_quality`.
    """
    name, value = metric_of(model, data)
    return -value if falls_with_quality(name, mode) else value


@contextmanager
def kept_inputs(network: Layer) -> Iterator[list[list[paddle.Tensor]]]:
    """Collect the inputs of the first batches that ``network`` runs in the block.

    Args:
        network: Network whose calls are watched.
    """
    seen: list[list[paddle.Tensor]] = []

    def keep(_: Layer, inputs: Sequence[paddle.Tensor]) -> None:
        if len(seen) < _FEW:
            seen.append([item.detach() for item in inputs])

    hook = network.register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        hook.remove()


def _of_the_file(model: paddle.Model, data: Any, batches: list[list[paddle.Tensor]]) -> tuple[float | None, str]:
    """Return the metric of the exported int8 file and its engine, or a reason."""
    from paddlelite_callbacks.benchmark.engines import DEFAULT_ENGINES, missing_reason

    engines = [engine for engine in DEFAULT_ENGINES.values() if engine.kind == "onnx" and not missing_reason(engine)]
    if not engines:
        return None, "no ONNX engine installed: pip install 'paddlelite_callbacks[deploy]'"
    with tempfile.TemporaryDirectory() as folder:
        file, why = int8_file(model.network, batches[0], Path(folder))
        if file is None:
            return None, str(why)
        with answered_by(model.network, engines[-1].load(file, threads=1)):
            return metric_of(model, data)[1], engines[-1].name
