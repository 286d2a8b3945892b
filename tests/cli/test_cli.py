"""``python -m paddlelite_callbacks``."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from paddlelite_callbacks.__main__ import COMMANDS, main


def test_backbones_as_a_table(capsys):
    assert main(["backbones", "MobileNetV3_*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| name | params M (trunk) | MACs M (trunk) |")
    assert len(lines) == 2 + 10


def test_backbones_as_json_and_filtered(capsys):
    assert main(["backbones", "--source", "paddle.vision", "--max-parameters", "3", "--json"]) == 0
    entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert entries
    assert all(e["source"] == "paddle.vision" and e["trunk_parameters"] <= 3e6 for e in entries)
    assert {"name", "macs", "taps", "licence", "weights"} <= entries[0].keys()


def test_left_out_says_why(capsys):
    assert main(["backbones", "--left-out"]) == 0
    assert "alexnet: its trunk has maps of strides" in capsys.readouterr().out


def test_what_cannot_be_done_is_one_line_on_the_error_stream(capsys):
    assert main(["backbones", "PPLCNet_x3"]) == 1
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith("python -m paddlelite_callbacks backbones: No backbone matches 'PPLCNet_x3'")
    assert streams.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["backbones", "--source", "nobody"]])
def test_wrong_arguments_end_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: python -m paddlelite_callbacks" in capsys.readouterr().err


def test_help_names_every_command_and_imports_nothing():
    code = (
        "import runpy, sys; sys.argv[1:] = ['--help']\n"
        "try: runpy.run_module('paddlelite_callbacks', run_name='__main__')\n"
        "finally: print('paddle' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(name in done.stdout and command.summary.split()[0] in done.stdout for name, command in COMMANDS.items())
    assert done.stdout.splitlines()[-1] == "False"


def test_every_command_loads_and_explains_its_arguments(capsys):
    for name in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            main([name, "--help"])
        assert ended.value.code == 0
        assert f"usage: python -m paddlelite_callbacks {name}" in capsys.readouterr().out


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m paddlelite_callbacks backbones | head -1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == ""
