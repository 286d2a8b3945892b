"""The table of the page on phones."""

from __future__ import annotations

from paddlelite_callbacks.maintainer_tools.phone_table import table


def test_the_table_says_what_there_is_not():
    line = {
        "name": "Net",
        "size_mb": {".pdmodel pair": 1.234, "ONNX int8": 0.5},
        "engines": {
            "paddle2": {"off": 1.5e-6, "passed": True},
            "lite-x86": {"off": 0.5, "passed": False},
            "arm-onnxruntime-fp32": {"off": 2e-7, "passed": True, "instructions_m": 83.4},
            "arm-mnn-fp32": {
                "error": "RuntimeError: mnn ended with -11: qemu: uncaught target signal 11 (Segmentation fault)"
            },
            "arm-onnxruntime-int8": {"error": "RuntimeError: onnxruntime ended with 1: no such file"},
            "arm-ncnn-fp32": {"error": "EngineError: ncnn crashed on model.onnx: it was killed by SIGSEGV"},
        },
    }
    head, _, row = table([line]).splitlines()
    cells = dict(zip(head.strip("| ").split(" | "), row.strip("| ").split(" | "), strict=True))
    assert cells["network"] == "Net"
    assert cells[".pdmodel pair, MB"] == "1.23"
    assert cells[".nb fp32, MB"] == "no file"
    assert cells["Paddle 2.6.2"] == "1.5e-06"
    assert cells["Lite x86"] == "differs, 5.0e-01"
    assert cells["ncnn ARM"] == "crashes"
    assert cells["MNN ARM"] == "crashes"
    assert cells["ORT ARM int8"] == "not run"
    assert cells["M instructions: ORT fp32, int8, MNN, ncnn"] == "83, -, -, -"
