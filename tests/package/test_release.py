"""What is released: sdist and wheel are one package, hold nothing else, and are installed on each Python here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import packaging
import psutil
import pytest
from installed import needs
from places import ROOT

from paddlelite_callbacks import __version__

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# Dependencies that end before a Python, and the first such Python
ENDS = {"paddleclas": "3.12", "paddleslim": "3.13"}

REQUIREMENTS = """
from importlib.metadata import requires
from packaging.requirements import Requirement
for one in map(Requirement, requires("paddlelite_callbacks")):
    if one.marker is None or one.marker.evaluate({"extra": ""}):
        print(one.name)
"""


def run(*command, folder=None, **environment):
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, **environment},
    )
    return done.returncode, done.stdout, done.stderr


def python_of(version: str) -> str | None:
    """Return the path of that Python: of the PATH, or of pyenv."""
    places = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"))
    for found in (shutil.which(f"python{version}"), *map(str, places)):
        if found and run(found, "-c", "import venv")[0] == 0:
            return found
    return None


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """``(sdist, wheel of it, wheel of the tree)``."""
    folder = tmp_path_factory.mktemp("built")
    tree = folder / "tree"  # what an earlier build left in the repository would be packed too
    for name in ("paddlelite_callbacks", "models"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for flags in ((), ("--wheel",)):  # without flags: an sdist, and a wheel of the sdist
        code, _, said = run(sys.executable, "-m", "build", *flags, "--outdir", folder / f"of{len(flags)}", tree)
        assert code == 0, said
    (sdist,) = folder.glob("of0/*.tar.gz")
    return sdist, *(next(folder.glob(f"of{i}/*.whl")) for i in (0, 1))


def test_the_version_stands_everywhere():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(.*?)\](?: - (\d{4}-\d\d-\d\d))?$", changes, re.MULTILINE)
    version, day = next(heading for heading in headings if heading[0] != "Unreleased")
    assert version == __version__
    cited = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {version}\ndate-released: {day}\n" in cited
    text = (ROOT / ".github" / "releases" / f"v{version}.md").read_text(encoding="utf-8")
    assert text.startswith(f"paddlelite_callbacks {version}\n\n")
    assert f"v{version}" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.mark.skipif(not (ROOT / ".git").exists() or shutil.which("git") is None, reason="not a clone, or no git")
def test_a_clone_holds_no_links():
    """A link named ``.venv``, committed by mistake, would stop the README's first command."""
    code, listed, said = run("git", "ls-files", "--stage", folder=ROOT)
    assert code == 0, said
    assert not [line for line in listed.splitlines() if line.startswith("120000 ")]


@pytest.mark.slow
def test_sdist_and_wheel_are_the_package_and_nothing_else(built):
    sdist, *wheels = built
    contents = []
    for wheel in wheels:
        archive = zipfile.ZipFile(wheel)
        contents.append({name: archive.read(name) for name in archive.namelist() if not name.endswith("/RECORD")})
    assert contents[0] == contents[1]
    names = set(contents[0])
    own = f"paddlelite_callbacks-{__version__}"
    assert {name.partition("/")[0] for name in names} == {"paddlelite_callbacks", f"{own}.dist-info"}
    for name in ("models/__init__.py", "hapi/fit.py", "py.typed", "callbacks/session.py", "report/page.html"):
        assert f"paddlelite_callbacks/{name}" in names
    source = {path.relative_to(ROOT).as_posix() for path in (ROOT / "paddlelite_callbacks").rglob("*.py")}
    source |= {f"paddlelite_callbacks/{path.relative_to(ROOT)}" for path in (ROOT / "models").rglob("*.py")}
    source = {name for name in source if "/maintainer_tools/" not in name}
    assert {name for name in names if name.endswith(".py")} == source
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()} - {""}
    tops = {name.partition("/")[0] for name in packed}
    assert tops <= {
        "paddlelite_callbacks",
        "paddlelite_callbacks.egg-info",
        "models",
        "README.md",
        "LICENSE",
        "PKG-INFO",
        "pyproject.toml",
        "setup.cfg",
    }
    assert not [name for name in packed if "maintainer_tools" in name and not name.endswith(".egg-info/SOURCES.txt")]


@pytest.mark.slow
@needs("twine")
def test_twine_finds_nothing_to_say(built):
    code, said, error = run(sys.executable, "-m", "twine", "check", "--strict", *built)
    assert code == 0, said + error
    assert "warning" not in (said + error).lower()


@pytest.mark.slow
@pytest.mark.parametrize("version", PYTHONS)
def test_the_wheel_is_installed_on(version, built, tmp_path):
    """Without its dependencies, but for what `doctor` needs: it says which are missing, those of this Python alone."""
    python = python_of(version)
    if python is None:
        pytest.skip(f"Python {version} is not on this machine, neither in the PATH nor in ~/.pyenv/versions")
    assert run(python, "-m", "venv", "--without-pip", tmp_path / "env")[0] == 0
    new = tmp_path / "env" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(new), "install", "--no-deps", "--no-index", "-q", built[1]]
    code, _, said = run(*pip)
    assert code == 0, said
    site = run(new, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")[1].strip()
    for package in (psutil, packaging):  # of the stable ABI and of no ABI
        shutil.copytree(Path(package.__file__).parent, Path(site) / package.__name__)
    for program in ("paddlelite-callbacks", "plcb"):
        assert run(new.with_name(program), "--version", folder=tmp_path) == (0, f"{__version__}\n", "")
    code, said, _ = run(new, "-c", "import paddlelite_callbacks as p; print(p.__file__, len(dir(p)))", folder=tmp_path)
    assert code == 0
    assert said.startswith(site)
    code, said, _ = run(new, "-m", "paddlelite_callbacks", "doctor", "--json", folder=tmp_path)
    assert code == 1
    told = json.dumps(json.loads(said))
    assert "paddlepaddle" in told
    wanted = run(new, "-c", REQUIREMENTS)[1].split()
    assert {"paddlepaddle", "numpy", "jinja2", "psutil", "packaging", "filelock", "tqdm", "pycocotools"} <= set(wanted)
    for package, end in ENDS.items():
        assert (package in wanted) == (tuple(map(int, version.split("."))) < tuple(map(int, end.split("."))))


TWO_STEPS = """
import sys
import paddle
import paddlelite_callbacks
from paddlelite_callbacks import BenchOptions, DistillCallback, ExportBenchCallback, PACTQuantCallback
from paddlelite_callbacks.models import LiteHRNet

assert paddlelite_callbacks.__file__.startswith(sys.argv[1]), paddlelite_callbacks.__file__
data = paddle.io.TensorDataset([paddle.randn([8, 3, 16, 16]), paddle.randint(0, 4, [8])])
nn = paddle.nn
make = lambda: nn.Sequential(nn.Conv2D(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2D(1), nn.Flatten(), nn.Linear(8, 4))
model = paddle.Model(make())
optimizer = paddle.optimizer.Adam(parameters=model.parameters())
model.prepare(optimizer, nn.CrossEntropyLoss(), paddle.metric.Accuracy())
bench = BenchOptions(warmup=0, repeats=1, peak_memory=False, roofline=False)
export = ExportBenchCallback("out", name="run", benchmark=bench, verbose=0)
model.fit(data, data, batch_size=4, verbose=0, callbacks=[DistillCallback(make()), PACTQuantCallback(), export])
assert all(check.passed for check in export.record.checks)
print(sorted(artefact.path.rpartition("/")[2] for artefact in export.record.artefacts))
"""


@pytest.mark.slow
@needs("paddle2onnx", "onnxruntime")
def test_the_wheel_trains_and_exports(built, tmp_path):
    """All of its code, with the dependencies of the environment of the tests, from a folder of its own."""
    target = tmp_path / "installed"
    code, _, said = run(
        sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", target, built[1]
    )
    assert code == 0, said
    (tmp_path / "two_steps.py").write_text(TWO_STEPS, encoding="utf-8")
    command = [sys.executable, "-W", "ignore", "two_steps.py", target]
    code, said, error = run(*command, folder=tmp_path, PYTHONPATH=str(target), OMP_NUM_THREADS="1")
    assert code == 0, error[-3000:]
    assert "model.int8.onnx" in said
    assert (tmp_path / "out" / "report.html").is_file()
