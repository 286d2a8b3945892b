"""Both READMEs are true: code blocks run, commands are those of CI, tables those of the committed results."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from installed import needs
from places import ROOT

READMES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README_zh.md")}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


PYTHON = blocks(READMES["README.md"], "python")
BASH = blocks(READMES["README.md"], "bash")


def packages_of(block: str) -> pytest.MarkDecorator:
    swaps = ["paddleclas"] if re.search(r"BackboneSwap\(\"|list_backbones", block) else []
    return needs(*swaps, *(["paddle2onnx"] if 'model.onnx"' in block else []))


@pytest.mark.slow
@pytest.mark.parametrize("number", [pytest.param(i, marks=packages_of(block)) for i, block in enumerate(PYTHON)])
def test_a_python_block_runs(number, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    script = tmp_path / "block.py"
    script.write_text(PYTHON[number], encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, f"{PYTHON[number]}\n{done.stderr[-3000:]}"


def test_both_readmes_hold_the_same_code_commands_and_tables():
    def without_comments(block: str) -> list[str]:
        return [re.sub(r"\s*#.*", "", line) for line in block.splitlines()]

    for language in ("python", "bash"):
        english, chinese = (blocks(text, language) for text in READMES.values())
        assert [without_comments(block) for block in chinese] == [without_comments(block) for block in english]
    rows = [re.findall(r"^\|.*\|$", text, flags=re.MULTILINE) for text in READMES.values()]
    figures = [[number for row in table for number in re.findall(r"\d+(?:\.\d+)?", row)] for table in rows]
    assert figures[0] == figures[1]


def test_the_commands_are_those_of_ci():
    install_and_run, install_and_test = BASH[0].splitlines(), BASH[1].splitlines()
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for command in install_and_test:
        assert command.replace("pip install", "pip install -q") in ci or command in ci, command
    assert install_and_run[-1] == ".venv/bin/python examples/digits.py"


def test_every_other_command_names_what_exists():
    for command in "\n".join(BASH).split():
        if command.startswith("examples/") or command.startswith("tests/"):
            assert (ROOT / command).exists(), command


def test_every_table_is_that_of_a_committed_result():
    for name, text in READMES.items():
        marked = re.findall(r"<!-- (\w+/\w+) -->\n(.*?)\n<!-- /\1 -->", text, flags=re.DOTALL)
        assert "digits/ladder" in [result for result, _ in marked]
        for result, table in marked:
            written = (ROOT / "examples" / "results" / f"{result}.md").read_text(encoding="utf-8")
            assert table == written.strip(), f"{name}: run python examples/results/into_readme.py"


def test_links_inside_the_repository_exist():
    for name, text in READMES.items():
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert target.startswith("http") or (ROOT / target).exists(), f"{name}: {target}"
