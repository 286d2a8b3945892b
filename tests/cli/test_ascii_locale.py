"""The command line in an ASCII locale, with paths and names in other letters: output degrades, nothing dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from installed import needs
from paddle.static import InputSpec
from toy import TinyNet

from paddlelite_callbacks.export.onnx_export import export_onnx
from paddlelite_callbacks.export.paddle_program import export_paddle
from paddlelite_callbacks.report.record import read_records

LOCALES = {
    "all ascii": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"},
    "locale alone": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}
NAME = "mod\u00e8le \u4e2d"


def command(*arguments: object, locale: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, **locale}
    given = [os.fsencode(str(item)) for item in arguments]
    return subprocess.run(
        [sys.executable, "-m", "paddlelite_callbacks", *given],
        capture_output=True,
        env=environment,
        timeout=300,
        check=False,
    )


@needs("paddle2onnx", "onnxruntime", "openvino")
@pytest.mark.parametrize("locale", LOCALES)
def test_all_commands_on_paths_in_other_letters(locale, tmp_path):
    home = tmp_path / "caf\u00e9 \u4e2d"
    program = export_paddle(TinyNet(), home / "netz \u4e2d", input_spec=[InputSpec([None, 3, 8, 8])], name="inference")
    export_onnx(program, home / "\u4e2d.onnx")
    ascii_only, quick = LOCALES[locale], ["--warmup", "0", "--repeats", "1", "--no-memory"]
    engines = "paddle,onnxruntime,openvino"
    done = command(
        *("bench", program.path, "--engines", engines, *quick, "--record", home, "--name", NAME), locale=ascii_only
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.isascii()
    assert b"mod?le ?" in done.stdout
    (run,) = read_records(home / "runs.jsonl")
    assert run.name == NAME
    assert {row.engine for row in run.latencies if row.p50_ms} == set(engines.split(","))
    done = command("bench", home / "\u4e2d.onnx", "--engines", "onnxruntime", *quick, "--json", locale=ascii_only)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["name"] == "\u4e2d"
    done = command("export", program.path.parent, home / "\u51fa", locale=ascii_only)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (home / "\u51fa" / "model.onnx").is_file()
    done = command("gate", home, "--size-mb", "20", "--run", NAME, locale=ascii_only)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith(b"mod?le ?: pass")
    done = command("report", home, locale=ascii_only)
    assert done.returncode == 0, done.stderr[-2000:]
    assert NAME in (home / "report.md").read_text(encoding="utf-8")
    done = command("gate", home / "\u7121", "--size-mb", "20", locale=ascii_only)
    assert done.returncode == 1
    assert b"No record file" in done.stderr
    assert b"Traceback" not in done.stderr
