"""Conversions forked from one warm process are those of the package's own child processes."""

from __future__ import annotations

import pytest
from installed import needs
from paddle.static import InputSpec
from toy import TinyNet

from paddlelite_callbacks.export import onnx_export
from paddlelite_callbacks.export.paddle_program import export_paddle
from paddlelite_callbacks.utils.child_process import run_module

pytestmark = needs("paddle2onnx")


def both(*arguments):
    """What the package's child and the fork of the warm process give: code, output."""
    assert onnx_export.run_module is not run_module
    given = [run("export.onnx_worker", *arguments, seconds=300) for run in (run_module, onnx_export.run_module)]
    return [(done.returncode, done.stdout, done.stderr.strip().splitlines()[-1:]) for done in given]


def test_the_same_file_comes_out(tmp_path):
    program = export_paddle(TinyNet(), tmp_path, input_spec=[InputSpec([None, 3, 8, 8], name="x")])
    path, written = tmp_path / "model.onnx", []
    for run in (run_module, onnx_export.run_module):
        done = run("export.onnx_worker", *map(str, program.files), str(path), "17", "yes", seconds=300)
        assert done.returncode == 0
        written.append(path.read_bytes())
        path.unlink()
    assert written[0] == written[1]


def test_the_same_error_is_told(tmp_path):
    own, warm = both(str(tmp_path / "none.json"), str(tmp_path / "none.pdiparams"), str(tmp_path / "x"), "17", "yes")
    assert own == warm
    assert own[0] == 1
    assert "none.json does not exist" in own[2][0]


def test_a_changed_environment_or_a_mark_gets_a_process_of_its_own(monkeypatch):
    converter = onnx_export.run_module.__self__
    monkeypatch.setattr(converter, "_start", lambda: pytest.fail("forked"))
    monkeypatch.setattr(converter, "_orders", None)
    monkeypatch.setenv("FLAGS_of_a_test", "1")
    assert onnx_export.run_module("export.onnx_worker", seconds=60).returncode == 1


@pytest.mark.own_children
def test_marked():
    assert onnx_export.run_module is run_module
