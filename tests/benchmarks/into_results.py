"""Turn the benchmarks' JSON files into the tables of ``examples/results`` and of both READMEs.

    OMP_NUM_THREADS=1 python -m pytest tests/benchmarks -s
    python tests/benchmarks/into_results.py

Reads ``build/benchmarks/*.json``; keeps them together as ``examples/results/speed/figures.json``; writes
``speed/steps.md``, ``speed/growth.md``, ``engines/table.md`` and ``engines/int8.md`` beside it.
"""

from __future__ import annotations

import json
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paddlelite_callbacks.utils.atomic_files import staged_file

ROOT = Path(__file__).resolve().parents[2]
RESULTS, MEASURED = ROOT / "examples" / "results", ROOT / "build" / "benchmarks"
Figures = Mapping[str, Any]

NETWORKS = {
    "PPLCNet_x2_5": "PP-LCNet_x2_5",
    "MobileNetV3_small_x1_0": "MobileNetV3_small_x1_0",
    "MobileNetV3_large_x1_0": "MobileNetV3_large_x1_0",
    "ResNet50": "ResNet50",
    "HRNet-w32": "HRNet-w32 (keypoints)",
    "LiteHRNet-30": "LiteHRNet-30 (keypoints)",
}
INT8 = {"HRNet-w32": "hrnet_w32", "LiteHRNet-30": "lite_hrnet_30"}  # the names of bench_int8.py
ENGINES = {
    "paddle": "Paddle, oneDNN off",
    "paddle-onednn": "Paddle's default (oneDNN)",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
}
STEPS = {
    "distill-none": "`fit` without a callback over the hand-written loop",
    "distill-outputs": "distillation of outputs over the hand-written loop",
    "distill-features": "outputs and three projected features over the hand-written loop",
    "distill-cache": "stored teacher outputs, checked, over a loop without any teacher",
    "distill-cache-unverified": "stored teacher outputs, unchecked, over a loop without any teacher",
}
GROWTH = {
    "growth-distill-batch": ("distillation step", "images a batch"),
    "growth-distill-pixels": ("distillation step", "pixels an image"),
    "growth-distill-taps": ("distillation step", "feature taps"),
    "growth-pact-layers": ("quantisation-aware step", "layers"),
    "growth-export-layers": ("export to all forms and check", "layers"),
}


def steps(found: Figures) -> str:
    """Ratios of interleaved runs: median, quartiles where there are any, target."""
    rows = [(text, found[name]) for name, text in STEPS.items() if name in found]
    for network, contestants in found.get("pact", {}).items():
        fp32, slim = contestants["fp32"]["p50_ms"], contestants["paddleslim"]["p50_ms"]
        rows.append((f"PACT step over the fp32 step, {network}", contestants["pact"] | {"target": 1.25}))
        rows.append((f"PaddleSlim's quanter over the fp32 step, {network}", {"ratio": slim / fp32}))
    if "package-import" in found:
        row = dict(found["package-import"]["package"])
        rows.append(("`import paddlelite_callbacks` over `import paddle`, whole processes", row))
        row = dict(found["package-import"]["package, four callbacks"])
        rows.append(("the four callbacks imported, over `import paddle`", row))
    for network in NETWORKS:
        row = found.get(f"package-export-{network}")
        if row:
            seconds = row["export and check"]["p50_ms"] / 1e3
            text = f"export of all forms and their check in four engines, {network} ({seconds:.1f} s)"
            rows.append((f"{text}, over `jit.save`", row["export and check"]))
    lines = ["| what | ratio | quartiles | target |", "|---|---:|---:|---:|"]
    for text, row in rows:
        quartiles = f"{row['ratio_p25']:.3f}-{row['ratio_p75']:.3f}" if "ratio_p25" in row else ""
        target = f"{row['target']:g}" if row.get("target") else ""
        lines.append(f"| {text} | {row['ratio']:.3f} | {quartiles} | {target} |")
    return "\n".join(lines)


def growth(found: Figures) -> str:
    """A line for every axis: the points, the slope, and how straight it is."""
    lines = [
        "| cost | grows with | ms at each size | ms per unit | R² of the line |",
        "|---|---|---|---:|---:|",
    ]
    for name, (cost, unit) in GROWTH.items():
        row = found.get(name)
        if row:
            points = ", ".join(f"{size}: {ms:.0f}" for size, ms in row["ms"].items())
            lines.append(f"| {cost} | {unit} | {points} | {row['ms_per_unit']:.3g} | {row['r2']:.3f} |")
    return "\n".join(lines)


def engines(found: Figures) -> str:
    """Median ms in fp32 on every engine, the best against Paddle and against the machine, int8 against the best."""
    head = ["network", *ENGINES.values(), "best against oneDNN off (with `MKL_DEBUG_CPU_TYPE=5`)"]
    head += ["against the default", "of the fastest product"]
    head += ["best int8 over best fp32", "best int8 against oneDNN off (with `MKL_DEBUG_CPU_TYPE=5`)"]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for name, label in NETWORKS.items():
        measured = found.get(f"engines-{name}")
        if not measured:
            continue
        rows, ratios = measured["rows"], measured["ratios"]
        times = {engine: rows[engine]["p50_ms"] for engine in ENGINES}
        best = min(value for value in times.values() if value)
        cells = [_ms(value, value == best) for value in times.values()]
        cells.append(_faster(ratios["to_paddle"], ratios.get("mkl_variable")))
        cells.append(f"{ratios['to_default']:.1f}x" if ratios["to_default"] else "-")
        share = rows[ratios["best"]].get("roofline")
        cells.append(f"{100 * share:.0f} %" if share else "-")
        int8 = _int8(found, INT8.get(name, name))
        in_int8 = _faster(ratios["to_paddle"] / int8, ratios.get("mkl_variable")) if int8 else "-"
        cells += [f"{int8:.2f}" if int8 else "-", in_int8]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _faster(ratio: float, gain: float | None) -> str:
    """Return a ratio to Paddle without oneDNN, and to the same with MKL's variable, ``gain`` times as fast."""
    return f"{ratio:.1f}x ({ratio / gain:.1f}x)" if gain else f"{ratio:.1f}x"


def int8(found: Figures) -> str:
    """Time of the int8 files over the best fp32 time of ONNX Runtime and OpenVINO, and their size over fp32."""
    head = ["network", "OpenVINO int8", "ONNX Runtime int8", "with `quantize_outputs`: OpenVINO", "ONNX Runtime"]
    head += ["ONNX int8 MB over fp32", "Paddle's two files, int8 over fp32"]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    networks = found.get("int8", {}).get("networks", {})
    for name, label in NETWORKS.items():
        rows = [networks.get(f"{INT8.get(name, name)}{kind}") for kind in ("", " + outputs")]
        if not any(rows):
            continue
        cells = []
        for row in rows:
            ratios = row["over_best_fp32"] if row else {}
            cells += [_ratio(ratios.get(f"{engine}/int8")) for engine in ("openvino", "onnxruntime")]
        for key in ("onnx_size_ratio", "paddle_size_ratio"):
            cells.append(" / ".join(dict.fromkeys(f"{row[key]:.3f}" for row in rows if row)))
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"**{value:.2f}**" if value < 1 else f"{value:.2f}"


def _int8(found: Figures, name: str) -> float | None:
    networks = found.get("int8", {}).get("networks", {})
    ratios = [row["best_int8_ratio"] for key, row in networks.items() if key.partition(" ")[0] == name]
    return min(ratios) if ratios else None


def _ms(value: float | None, best: bool) -> str:
    if not value:
        return "no figure"
    text = f"{value:.0f}" if value >= 100 else f"{value:.1f}"
    return f"**{text}**" if best else text


def main() -> None:
    """Write the tables and put them into the READMEs; what was not measured this time keeps its former figures."""
    kept = RESULTS / "speed" / "figures.json"
    content = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    for path in sorted(MEASURED.glob("*.json")):
        content[path.stem] = json.loads(path.read_text(encoding="utf-8"))
    found = {name: entry.get("figures", entry) for name, entry in content.items()}
    texts = {
        kept: json.dumps(content, indent=1) + "\n",
        kept.with_name("steps.md"): steps(found) + "\n",
        kept.with_name("growth.md"): growth(found) + "\n",
        RESULTS / "engines" / "table.md": engines(found) + "\n",
        RESULTS / "engines" / "int8.md": int8(found) + "\n",
    }
    kept.parent.mkdir(exist_ok=True)
    for path, text in texts.items():
        with staged_file(path) as partial:
            partial.write_text(text, encoding="utf-8")
    runpy.run_path(str(RESULTS / "into_pages.py"), run_name="__main__")


if __name__ == "__main__":
    main()
