"""What the commands write where: JSON everywhere, tables on a terminal and in a pipe, completion, names, exit codes."""

from __future__ import annotations

import configparser
import importlib
import io
import json
import os
import pty
import subprocess
import sys

import pytest
from installed import needs
from paddle.static import InputSpec
from places import ROOT
from records import record
from toy import TinyNet

from paddlelite_callbacks import __version__
from paddlelite_callbacks.__main__ import COMMANDS, main
from paddlelite_callbacks.cli.output import NAMES, write_json, write_text
from paddlelite_callbacks.export.paddle_program import export_paddle
from paddlelite_callbacks.report.record import append_record

TABLE = "before\n| name | MB |\n|---|---:|\n| a\\|b [red] | 1 |\nafter\n"


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_in_a_pipe_tables_stay_markdown(capsys):
    write_text(TABLE)
    assert capsys.readouterr().out == TABLE


@needs("rich")
@pytest.mark.parametrize("no_color", [False, True])
def test_on_a_terminal_tables_are_drawn(monkeypatch, no_color):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    write_text(TABLE + "| gate |\n|---|\n| pass |\n")
    said = terminal.getvalue()
    assert said.startswith("before\n")
    assert "|---" not in said
    assert "a|b [red]" in said  # neither Markdown's escape nor taken for rich's markup
    assert ("\x1b[32m" in said) != no_color  # green


def test_a_dumb_terminal_gets_plain_tables(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "dumb")
    write_text(TABLE)
    assert terminal.getvalue() == TABLE


def test_json_loses_no_letter_on_an_ascii_stream(monkeypatch):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    write_json({"name": "\u4e2d"})
    assert json.loads(raw.getvalue().decode("ascii")) == {"name": "\u4e2d"}


def test_every_command_takes_json(capsys):
    for name in COMMANDS:
        with pytest.raises(SystemExit):
            main([name, "--help"])
        assert "--json" in capsys.readouterr().out, name


def test_gate_and_report_as_json(tmp_path, capsys):
    for item in (record("a", acc=0.93), record("big", acc=0.94, size=50)):
        append_record(tmp_path / "runs.jsonl", item)
    limits = ["gate", str(tmp_path), "--size-mb", "20", "--metric", "acc", "--baseline", "0.94", "--json"]
    assert main(limits) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["passed"], said["most_accurate"]) == (True, "a")
    assert {run["name"]: run["passed"] for run in said["runs"]} == {"a": True, "big": False}
    size = next(one for one in said["runs"][1]["criteria"] if one["name"].startswith("size"))
    assert (size["value"], size["limit"], size["passed"]) == (50, 20, False)
    assert main([*limits, "--all"]) == 3
    assert json.loads(capsys.readouterr().out)["passed"] is False
    assert main([*limits, "--engine", "ONNXRuntime"]) in (0, 3)  # in any case
    capsys.readouterr()
    assert main(["report", str(tmp_path), "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert [os.path.isfile(file) for file in files] == [True, True]  # noqa: PTH113


@needs("paddle2onnx", "onnxruntime")
def test_export_as_json_and_engines_in_any_case(tmp_path, capsys):
    spec = [InputSpec([None, 3, 8, 8], name="x")]
    program = export_paddle(TinyNet(), tmp_path / "p", input_spec=spec, name="inference")
    assert main(["export", str(program.path), str(tmp_path / "out"), "--forms", "ONNX", "--json"]) == 0
    (file,) = json.loads(capsys.readouterr().out)["files"]
    assert file["path"] == str(tmp_path / "out" / "model.onnx")
    assert file["max_abs_diff"] <= file["tolerance"]
    quick = ["--warmup", "0", "--repeats", "1", "--no-memory", "--json"]
    assert main(["bench", file["path"], "--engines", "OnnxRuntime", *quick]) == 0
    assert [row["engine"] for row in json.loads(capsys.readouterr().out)["latencies"]] == ["onnxruntime"]


def test_left_out_as_json(capsys):
    assert main(["backbones", "--left-out", "--json"]) == 0
    entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert any(entry["name"] == "alexnet" and "strides" in entry["reason"] for entry in entries)


@pytest.mark.parametrize("name", NAMES)
def test_the_installed_commands_are_this_program(name, monkeypatch, capsys):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    entries = dict(line.split(" = ") for line in setup["options.entry_points"]["console_scripts"].strip().splitlines())
    module, _, function = entries[name].partition(":")
    monkeypatch.setattr(sys, "argv", [f"/usr/bin/{name}", "--version"])
    with pytest.raises(SystemExit) as ended:
        getattr(importlib.import_module(module), function)()
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"{__version__}\n"
    monkeypatch.setattr(sys, "argv", [f"/usr/bin/{name}", "backbones", "nothing_like_it"])
    assert getattr(importlib.import_module(module), function)() == 1
    assert capsys.readouterr().err.startswith(f"{name} backbones: No backbone matches")


def test_exit_codes_are_documented(capsys):
    for arguments in (["--help"], ["gate", "--help"]):
        with pytest.raises(SystemExit):
            main(arguments)
        said = " ".join(capsys.readouterr().out.split())
        assert "0 done; 1 failed" in said
        assert "3 done, but a budget is exceeded; 130 interrupted" in said


def test_ctrl_c_ends_with_130_and_one_line(monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr("paddlelite_callbacks.cli.report.run", interrupted)
    assert main(["report", "somewhere"]) == 130
    assert capsys.readouterr().err == "python -m paddlelite_callbacks report: interrupted\n"


def test_help_of_every_command_needs_no_paddle():
    code = (
        "import sys\nfrom paddlelite_callbacks.__main__ import COMMANDS, main\n"
        "for name in COMMANDS:\n"
        "    try: main([name, '--help'])\n"
        "    except SystemExit: print(name, 'paddle' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [line for line in done.stdout.splitlines() if line.endswith(" True")] == []


@needs("shtab")
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_scripts(shell, capsys):
    assert main(["--print-completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in (*COMMANDS, "--size-mb", "paddlelite-callbacks"))


@needs("shtab")
def test_bash_completes_a_command_and_an_option(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "paddlelite_callbacks", "--print-completion", "bash"],
        capture_output=True,
        text=True,
        check=True,
    )
    (tmp_path / "c.sh").write_text(done.stdout)
    ask = (
        'source {}; COMP_WORDS=({}); COMP_CWORD={}; COMP_LINE="${{COMP_WORDS[*]}}"; '
        "f=$(complete -p paddlelite-callbacks | sed 's/.*-F \\([^ ]*\\).*/\\1/'); $f; echo \"${{COMPREPLY[@]}}\""
    )
    for words, place, wanted in (("ba", 1, "backbones"), ("gate --size", 2, "--size-mb")):
        line = ask.format(tmp_path / "c.sh", f"paddlelite-callbacks {words}", place)
        told = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
        assert wanted in told.stdout.split(), told.stderr


def test_without_shtab_the_remedy_is_told(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print-completion", "bash"]) == 1
    assert "pip install 'paddlelite_callbacks[terminal]'" in capsys.readouterr().err


@needs("rich")
def test_a_real_terminal():
    """Through a pseudo-terminal, as a person sees it."""
    parent, child = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "200"}
    done = subprocess.Popen(
        [sys.executable, "-m", "paddlelite_callbacks", "backbones", "mobilenet_v3_*"],
        stdout=child,
        stdin=subprocess.DEVNULL,
        env=environment,
    )
    os.close(child)
    said = b""
    try:
        while part := os.read(parent, 65536):
            said += part
    except OSError:  # Linux's word for the end
        pass
    assert done.wait(60) == 0
    text = said.decode()
    assert "mobilenet_v3_small" in text
    assert "|---|" not in text
    assert "\x1b[3" not in text
