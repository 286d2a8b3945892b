"""Does int8 pay here? Said in the result, so that no slower file is shipped in silence."""

from __future__ import annotations

from collections.abc import Sequence

from paddlelite_callbacks.deploy.latency import Latency

__all__ = ["int8_notes"]


def int8_notes(latencies: Sequence[Latency]) -> tuple[str, ...]:
    """Compare the int8 files with the fp32 ones that took turns with them.

    Paddle's program with int8 weights counts as neither: it is small, but computes in float.

    Args:
        latencies: of one benchmark.

    Returns:
        One sentence on the best files, and one per engine on which int8 is the slower; empty without an int8 file.
    """
    timed = {(row.engine, row.precision): row.p50_ms for row in latencies if row.p50_ms is not None}
    engines = [engine for engine, precision in timed if precision == "int8" and (engine, "fp32") in timed]
    if not engines:
        return ()
    best_int8 = min(engines, key=lambda engine: timed[engine, "int8"])
    best_fp32 = min(engines, key=lambda engine: timed[engine, "fp32"])
    ratio = timed[best_int8, "int8"] / timed[best_fp32, "fp32"]
    notes = [
        f"int8 ({best_int8}, {timed[best_int8, 'int8']:.2f} ms) takes {ratio:.2f} of the time of the best fp32 file "
        f"({best_fp32}, {timed[best_fp32, 'fp32']:.2f} ms)."
        if ratio < 1
        else f"int8 is slower than fp32 on every engine for this network here ({best_int8} "
        f"{timed[best_int8, 'int8']:.2f} ms against {best_fp32} {timed[best_fp32, 'fp32']:.2f} ms): ship "
        "model.onnx for speed; model.int8.onnx is the smaller file only."
    ]
    notes += [
        f"On {engine} int8 takes {timed[engine, 'int8'] / timed[engine, 'fp32']:.2f} of fp32's time: "
        + (
            "use model.onnx there, or train with quantize_outputs=True, which this engine needs to compute in int8."
            if engine == "onnxruntime"
            else "use model.onnx there."
        )
        for engine in engines
        if ratio < 1 and timed[engine, "int8"] > timed[engine, "fp32"]
    ]
    return tuple(notes)
