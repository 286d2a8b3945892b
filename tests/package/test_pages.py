"""READMEs and docs are true: code blocks run, commands are those of CI, tables those of the committed results."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from installed import needs
from places import ROOT
from warm_converter import run_script

PAGES = runpy.run_path(str(ROOT / "examples" / "results" / "into_pages.py"), run_name="pages")
REDRAW = runpy.run_path(str(ROOT / "examples" / "results" / "redraw.py"), run_name="redraw")
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES["pages"]()}


def is_chinese(name: str) -> bool:
    return name.endswith(("_zh.md", ".zh.md"))


def chinese_of(name: str) -> str:
    return "README_zh.md" if name == "README.md" else f"{name.removesuffix('.md')}.zh.md"


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


ENGLISH = {name: text for name, text in TEXTS.items() if not is_chinese(name)}
PYTHON = list(dict.fromkeys(block for text in ENGLISH.values() for block in blocks(text, "python")))
PYTHON = [block for block in PYTHON if re.search(r"^(import|from) ", block, flags=re.MULTILINE)]
BASH = blocks(TEXTS["README.md"], "bash")


def packages_of(block: str) -> pytest.MarkDecorator:
    swaps = ["paddleclas"] if re.search(r"BackboneSwap\(\"|list_backbones", block) else []
    others = [name for name in ("paddleseg", "ppdet") if f"from {name}" in block]  # see test_own_loops for the rest
    others += ["MNN", "ncnn", "pnnx"] if "edge_files" in block else []
    others += [name for name in ("visualdl", "wandb") if f"callbacks.{name}" in block.lower()]
    others += ["tensorboardX"] if "from tensorboardX" in block else []
    return needs(*swaps, *others, *(["paddle2onnx"] if re.search(r'model(\.int8)?\.onnx"', block) else []))


@pytest.mark.slow
@pytest.mark.parametrize("number", [pytest.param(i, marks=packages_of(block)) for i, block in enumerate(PYTHON)])
def test_a_python_block_runs(number, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    script = tmp_path / "block.py"
    script.write_text(PYTHON[number], encoding="utf-8")
    done = run_script(script, cwd=tmp_path, environment=environment)
    assert done.returncode == 0, f"{PYTHON[number]}\n{done.stderr[-3000:]}"


def test_a_block_without_imports_is_one_line_that_another_block_holds():
    """What is left out of the run is a reminder of what is run elsewhere, not a block of its own."""
    for name, text in ENGLISH.items():
        for block in blocks(text, "python"):
            if block not in PYTHON:
                assert block.strip() == (
                    "model.fit(data, callbacks=[DistillCallback(teacher), PACTQuantCallback(), "
                    'ExportBenchCallback("out")])'
                ), f"{name}: {block}"


@pytest.mark.parametrize("name", ENGLISH)
def test_both_languages_hold_the_same_code_commands_and_tables(name):
    def without_comments(block: str) -> list[str]:
        return [re.sub(r"\s*#.*", "", line) for line in block.splitlines()]

    texts = [TEXTS[name], TEXTS[chinese_of(name)]]
    if name == "docs/reference/api.md":  # docstrings are English; the Chinese page lists the names
        return
    for language in ("python", "bash"):
        english, chinese = (blocks(text, language) for text in texts)
        assert [without_comments(block) for block in chinese] == [without_comments(block) for block in english]
    rows = [re.findall(r"^\|.*\|$", text, flags=re.MULTILINE) for text in texts]
    numbers = [[number for row in table for number in re.findall(r"\d+(?:\.\d+)?", row)] for table in rows]
    assert numbers[0] == numbers[1]
    assert [
        len(re.findall(rf"^{level} ", t, flags=re.MULTILINE)) for level in ("#", "##", "###") for t in texts[:1]
    ] == [len(re.findall(rf"^{level} ", t, flags=re.MULTILINE)) for level in ("#", "##", "###") for t in texts[1:]]


def test_the_readme_is_short():
    for name in ("README.md", "README_zh.md"):
        assert len(TEXTS[name].splitlines()) <= 230, name


def test_the_commands_are_those_of_ci():
    install_and_run, install_and_test = BASH[0].splitlines(), BASH[1].splitlines()
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for command in install_and_test:
        assert command.replace("pip install", "pip install -q") in ci or command in ci, command
    assert install_and_run[-1] == ".venv/bin/python examples/digits.py"


@pytest.mark.parametrize("name", [*ENGLISH, "CONTRIBUTING.md"])
def test_every_other_command_names_what_exists(name):
    text = TEXTS.get(name) or (ROOT / name).read_text(encoding="utf-8")
    named = re.findall(r"(?<![\w/])((?:examples|tests)/[\w./-]+)", text)
    for path in named:
        assert (ROOT / path.rstrip("./")).exists(), f"{name}: {path}"


def test_every_table_is_that_of_a_committed_result():
    assert "<!-- digits/ladder -->" in TEXTS["README.md"]
    for name, text in TEXTS.items():
        assert PAGES["filled"](text) == text, f"{name}: run python examples/results/into_pages.py"


def test_a_mark_without_a_result_or_a_row_is_named():
    filled = PAGES["filled"]
    with pytest.raises(ValueError, match="no result 'digits/nothing'"):
        filled("<!-- digits/nothing -->\n<!-- /digits/nothing -->")
    with pytest.raises(ValueError, match="no row 'nobody'"):
        filled("<!-- few_labels/table#nobody -->\n<!-- /few_labels/table#nobody -->")
    once = filled("a\n<!-- few_labels/table#kl -->\nold\n<!-- /few_labels/table#kl -->\nb")
    assert (once.split("\n")[0], once.split("\n")[-1]) == ("a", "b")
    assert "| kl | 89" in once
    assert "old" not in once
    assert filled(once) == once


def anchors(text: str) -> set[str]:
    """Anchors of headings: as given in braces, else as MkDocs and GitHub make them of English words."""
    found = set()
    for title in re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), flags=re.MULTILINE):
        given = re.search(r"\{#([\w-]+)\}", title)
        plain = re.sub(r"[^\w\s-]", "", title.lower()).strip()
        found.add(given[1] if given else re.sub(r"\s+", "-", plain))
    return found


@pytest.mark.parametrize("name", [*TEXTS, "CONTRIBUTING.md"])
def test_links_inside_the_repository_exist(name):
    text = TEXTS.get(name) or (ROOT / name).read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", text):
        if target.startswith("http"):
            continue
        path = (ROOT / name).parent / target if target else ROOT / name
        assert path.exists(), f"{name}: {target}"
        if anchor and not is_chinese(name):
            assert anchor in anchors(path.read_text(encoding="utf-8")), f"{name}: {target}#{anchor}"


def test_every_loss_and_method_has_a_card():
    from paddlelite_callbacks.distill.losses.registry import LOSSES

    cards = {Path(name).stem for name in ENGLISH if name.startswith("docs/methods/")}
    assert set(LOSSES) - {"l2"} | {"afd", "ema", "pact", "lsq", "ptq", "reduce_range"} | {"index"} == cards


def test_every_public_name_is_in_the_reference():
    import paddlelite_callbacks

    api = TEXTS["docs/reference/api.md"]
    for name in paddlelite_callbacks.__all__:
        if name != "__version__":
            assert re.search(rf"\b{re.escape(name)}\b", api), name


@needs("mkdocs", "mkdocstrings", "nbconvert")
def test_the_site_builds_strictly(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "DistillCallback" in (tmp_path / "site" / "reference" / "api" / "index.html").read_text(encoding="utf-8")
    assert (tmp_path / "site" / "zh" / "guides" / "distillation" / "index.html").is_file()
    for language, said in (("", "The teacher is frozen"), ("zh", "\u6559\u5e08\u88ab\u51bb\u7ed3")):
        folder = tmp_path / "site" / language / "notebooks"
        page = (folder / "first-ladder" / "index.html").read_text(encoding="utf-8")
        assert said in page
        assert said in (folder / "first-ladder.ipynb").read_text(encoding="utf-8")
        assert 'href="../own-pictures/"' in page
        assert 'href="../first-ladder.ipynb" download' in page


@pytest.mark.parametrize("ladder", REDRAW["ladders"](), ids=lambda path: path.name)
def test_a_committed_ladder_is_that_of_its_lines(ladder, tmp_path):
    """Table and figures to the letter; of the picture lines and bubbles, and the letters up to their edges.

    Another release of matplotlib may place letters a pixel elsewhere: then only what has a colour is compared.
    """
    np, image = pytest.importorskip("numpy"), pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    from paddlelite_callbacks.report.record import read_records

    REDRAW["redraw"](ladder, tmp_path)
    tables = [(folder / "ladder.md").read_text(encoding="utf-8") for folder in (tmp_path, ladder)]
    assert tables[0] == tables[1], f"{ladder.name}: run python examples/results/redraw.py"
    assert read_records(tmp_path / "ladder.jsonl") == read_records(ladder / "ladder.jsonl")
    pictures = [image.open(folder / "ladder.png") for folder in (tmp_path, ladder)]
    drawn, stored = (np.asarray(picture.convert("RGB"), float) for picture in pictures)
    assert drawn.shape == stored.shape
    colour = [np.ptp(pixels, axis=2) for pixels in (drawn, stored)]
    assert np.abs(colour[0] - colour[1]).mean() < 0.25 * colour[1].mean()  # shifted by 8 pixels: 1.05
    if len({re.findall(r"\d+\.\d+", picture.info["Software"])[0] for picture in pictures}) == 1:
        assert np.abs(drawn - stored).mean() < 1
