"""Search the layers that are faster in float, with the real engine.

An engine computes small, depthwise or first convolutions in int8 slower than in float, and changes of format between
neighbours cost more than either. So layers are judged in their network: windows of neighbours are put back to float,
from all layers down to single ones, and a change is kept where the whole network becomes faster.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from paddle import Tensor
from paddle.nn import Layer
from paddle.static import InputSpec

from paddlelite_callbacks.benchmark.engines import ENGINES, Predict
from paddlelite_callbacks.benchmark.latency import measure_latency
from paddlelite_callbacks.errors import near_names, require
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.export.int8_layers import int8_layers, with_layers_in_float
from paddlelite_callbacks.export.onnx_export import export_onnx
from paddlelite_callbacks.export.paddle_program import export_paddle
from paddlelite_callbacks.export.qdq import write_int8_onnx
from paddlelite_callbacks.export.variants import Variants
from paddlelite_callbacks.quant.config import PACTConfig
from paddlelite_callbacks.quant.ptq import ptq_int8
from paddlelite_callbacks.utils.isolation import hushed_stdout
from paddlelite_callbacks.utils.numbers import check_whole

__all__ = ["Int8Plan", "choose_float_layers", "search_int8_layers"]

_MARGIN = 0.02  # a gain below this is noise
_PAIRS = "onnxruntime"  # runs a convolution in int8 if its output is quantised, too
_READERS = ("onnxruntime", "openvino")
_WARMUP = 3


@dataclass(frozen=True, kw_only=True)
class Int8Plan:
    """Layers to leave in float so that the int8 file is fastest on one engine.

    Args:
        engine: Name of the engine.
        skip: Layers to leave in float, for ``skip`` of `ptq_int8`, `PACTConfig` and `PACTQuantCallback`.
        quantize_outputs: Value of the option of that name.
        layers: Number of layers that could be quantised.
        ratio: Time of the int8 file with ``skip`` over that of the fp32 file, fastest calls.
        ratio_all: The same with all layers in int8.
        trials: Number of combinations that were timed.
    """

    engine: str
    skip: tuple[str, ...]
    quantize_outputs: bool
    layers: int
    ratio: float
    ratio_all: float
    trials: int

    @property
    def is_faster(self) -> bool:
        """Whether the int8 file is faster than the fp32 file by more than noise."""
        return self.ratio < 1 - _MARGIN

    def __str__(self) -> str:
        if not self.is_faster:
            return (
                f"On {self.engine} no combination of int8 layers is faster than fp32 (best {self.ratio:.2f}, all in "
                f"int8 {self.ratio_all:.2f}): ship model.onnx for speed there."
            )
        return (
            f"On {self.engine} int8 takes {self.ratio:.2f} of fp32's time with {len(self.skip)} of {self.layers} "
            f"layers in float, {self.ratio_all:.2f} with none."
        )


def search_int8_layers(
    network: Layer,
    inputs: Tensor | Sequence[Tensor],
    *,
    engine: str = "onnxruntime",
    config: PACTConfig | None = None,
    threads: int = 1,
    repeats: int = 15,
    trials: int = 200,
) -> Int8Plan:
    """Search the layers of ``network`` that ``engine`` computes faster in float.

    The scales do not change the time, so a network can be searched before it is trained. The result depends on this
    machine: search on one like the target.

    Args:
        network: fp32 network, in any mode; not changed.
        inputs: A batch, or one tensor per input of the network, of the size that is timed.
        engine: Engine that reads ONNX files: ``"onnxruntime"`` or ``"openvino"``.
        config: Options of quantisation; layers of its ``skip`` stay in float. ``quantize_outputs`` is chosen by the
            engine.
        threads: CPU threads of the engine, at least 1.
        repeats: Number of counted calls a combination, at least 1; the fastest counts.
        trials: Largest number of combinations to time, at least 1.

    Raises:
        ValueError: Unknown engine, or a number out of range.
        ExportError: A file could not be written.
        MissingDependencyError: The engine or the ONNX converter is not installed.

    Example:
        >>> plan = search_int8_layers(network, images[:1])  # doctest: +SKIP
        >>> quantised = ptq_int8(  # doctest: +SKIP
        ...     network, batches, skip=plan.skip, quantize_outputs=plan.quantize_outputs
        ... )
    """
    if engine not in _READERS:
        raise ValueError(
            f"engine must be one of {list(_READERS)}, got {engine!r}; near names: "
            f"{near_names(str(engine), _READERS)}: leave it out for 'onnxruntime'."
        )
    for name, value in (("threads", threads), ("repeats", repeats), ("trials", trials)):
        check_whole(name, value, 1, remedy="leave it out")
    onnx = require("onnx", needed_for="int8 ONNX files")
    given = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    arrays, outputs = [item.numpy() for item in given], engine == _PAIRS
    quantised = ptq_int8(network, [given], config=config, quantize_outputs=outputs, bias_correction=False)
    with tempfile.TemporaryDirectory() as work:
        plain = _onnx_file(network, Path(work, "fp32"), given, "fp32")
        whole = onnx.load(str(_onnx_file(quantised, Path(work, "int8"), given, "int8").path))
        float_call = _loaded(engine, plain, threads)
        path = Path(work, "variant.onnx")

        def ratio(in_float: Collection[str], counted: int = repeats) -> float:
            model = with_layers_in_float(whole, in_float, outputs=outputs) if in_float else whole
            path.write_bytes(model.SerializeToString())
            call = _loaded(engine, Artefact(kind="onnx", path=path, files=(path,), precision="int8"), threads)
            calls = {"fp32": lambda: float_call(arrays), "int8": lambda: call(arrays)}
            times = measure_latency(calls, warmup=_WARMUP, repeats=counted, settle=1)
            return float(np.min(times["int8"]) / np.min(times["fp32"]))

        layers = int8_layers(whole)
        chosen, tried = choose_float_layers(layers, ratio, trials=trials)
        ratios = {names: ratio(names, 3 * repeats) for names in {frozenset(), chosen}}  # without the luck of a choice
    best = min(ratios, key=lambda names: (ratios[names], len(names)))
    return Int8Plan(
        engine=engine,
        skip=(*(() if config is None else config.skip), *(name for name in layers if name in best)),
        quantize_outputs=outputs,
        layers=len(layers),
        ratio=ratios[best],
        ratio_all=ratios[frozenset()],
        trials=tried,
    )


def choose_float_layers(
    layers: Sequence[str],
    cost: Callable[[frozenset[str]], float],
    *,
    margin: float = _MARGIN,
    trials: int = 200,
) -> tuple[frozenset[str], int]:
    """Choose the layers to leave in float by the cost of whole combinations.

    Windows of neighbours are switched, from half of the layers down to one: to float where this gains more than
    ``margin``, back to int8 where it costs nothing.

    Args:
        layers: Names in the order in which they run.
        cost: Returns the time of a combination, given the layers in float.
        margin: Smallest relative gain that counts.
        trials: Largest number of combinations to try.

    Returns:
        The layers, and the number of combinations that were tried.
    """
    known: dict[frozenset[str], float] = {}

    def of(names: frozenset[str]) -> float:
        if names not in known:
            known[names] = cost(names)
        return known[names]

    chosen: frozenset[str] = frozenset()
    best, size = of(chosen), max(len(layers) // 2, 1)
    while layers:
        for start in range(0, len(layers), size):
            window = frozenset(layers[start : start + size])
            for tried, needed in ((chosen | window, 1 - margin), (chosen - window, 1.0)):
                if tried == chosen or (len(known) >= trials and tried not in known):
                    continue
                if of(tried) <= best * needed:
                    chosen, best = tried, of(tried)
        if size == 1:
            break
        size = max(size // 2, 1)
    return chosen, len(known)


def _onnx_file(network: Layer, folder: Path, inputs: Sequence[Tensor], precision: str) -> Artefact:
    """Write the ONNX file of one precision alone, as `export_forms` writes it."""
    folder.mkdir()
    variants = Variants.of(network, inputs)
    made = variants.int8_network() if precision == "int8" else variants.float_network()
    specs = [InputSpec(item.shape, dtype=item.dtype, name=f"x{number}") for number, item in enumerate(inputs)]
    program = export_paddle(made, folder, input_spec=specs, precision=precision, in_place=True)
    written = export_onnx(program, folder / "model.onnx")
    return write_int8_onnx(written, folder / "model.int8.onnx") if precision == "int8" else written


def _loaded(engine: str, artefact: Artefact, threads: int) -> Predict:
    with hushed_stdout():
        predict: Any = ENGINES[engine].load(artefact, threads=threads)
    return predict
