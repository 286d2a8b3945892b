"""``doctor``: what it says of machines and installations that are known beforehand."""

from __future__ import annotations

import configparser
import json
import logging
import os
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from places import ROOT
from toy import TinyNet, fit, hapi_model

from paddlelite_callbacks import DistillCallback, doctor
from paddlelite_callbacks.__main__ import main
from paddlelite_callbacks.benchmark.doctor import (
    COSTS,
    EXTRAS,
    LEVELS,
    PROBE_STEPS,
    cpu_findings,
    package_findings,
    thread_findings,
    unmet_requirements,
)
from paddlelite_callbacks.utils import cpu

AMD = {"vendor_id": "AuthenticAMD", "model name": "AMD EPYC", "flags": "avx2"}
INTEL = {"vendor_id": "GenuineIntel", "model name": "Xeon", "flags": "avx2 avx512f avx512_vnni"}


def child(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "paddlelite_callbacks", "doctor", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=400,
        check=False,
    )


def test_the_whole_examination_of_this_machine_finds_nothing_broken(tmp_path):
    done = child(str(tmp_path), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout)
    levels = [finding["level"] for finding in said["findings"]]
    assert said["counts"] == {level: levels.count(level) for level in LEVELS}
    (engines,) = [finding for finding in said["findings"] if finding["topic"] == "engines"]
    assert engines["level"] == "ok"
    for step in ("convolution", "program", "paddle-engine", "paddle-onednn"):
        assert PROBE_STEPS[step] in engines["text"]
    assert list(tmp_path.iterdir()) == []


def test_each_finding_that_is_no_ok_has_a_remedy():
    for finding in doctor(probe=False):
        assert finding.level in LEVELS
        assert (finding.remedy is None) == (finding.level == "ok"), finding


def test_what_is_broken_ends_with_1(tmp_path, capsys):
    file = tmp_path / "a file"
    file.write_text("")
    assert main(["doctor", str(file / "below"), "--quick"]) == 1
    said = " ".join(capsys.readouterr().out.split())  # lines are wrapped
    assert f" error disk {file}/below cannot be written" in said
    assert "Remedy: give another folder" in said
    assert said.endswith("1 error")


@pytest.mark.parametrize(
    ("environment", "topic", "said"),
    [
        ({"TMPDIR": "/nowhere/at all"}, "tmpdir", "/nowhere/at all cannot be written"),
        ({"HOME": "/nowhere"}, "home", "/nowhere cannot be written"),
        ({"OMP_NUM_THREADS": "many"}, "threads", "OMP_NUM_THREADS='many' is not a number of threads"),
        ({"OMP_NUM_THREADS": "9999"}, "threads", "OMP_NUM_THREADS=9999 9999 threads start"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "locale", "The locale is not UTF-8"),
        ({"ONEDNN_MAX_CPU_ISA": "AVX2"}, "cpu", "ONEDNN_MAX_CPU_ISA=AVX2 limits"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_of_a_process(environment, topic, said):
    done = child("--quick", "--strict", "--json", **environment)
    findings = [f for f in json.loads(done.stdout)["findings"] if f["topic"] == topic and said in f["text"]]
    assert len(findings) == 1, done.stdout
    assert findings[0]["remedy"]
    assert done.returncode == (1 if findings[0]["level"] == "warning" else done.returncode)


def test_a_paddle_that_cannot_be_imported_is_an_error_and_no_crash(tmp_path):
    """A module of that name in front of the real one, as a broken installation is."""
    (tmp_path / "paddle").mkdir()
    (tmp_path / "paddle" / "__init__.py").write_text("raise ImportError('libfoo.so.1: no such file')")
    done = child("--json", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1, done.stderr
    (broken,) = [f for f in json.loads(done.stdout)["findings"] if f["level"] == "error"]
    assert "libfoo.so.1: no such file" in broken["text"]
    assert "paddlepaddle>=3.3.1" in broken["remedy"]


def test_a_paddle_that_kills_its_process_is_named(tmp_path):
    (tmp_path / "paddle").mkdir()
    (tmp_path / "paddle" / "__init__.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    done = child("--json", PYTHONPATH=str(tmp_path))
    (broken,) = [f for f in json.loads(done.stdout)["findings"] if f["level"] == "error"]
    assert "killed by SIGILL" in broken["text"]
    assert "AVX" in broken["remedy"]


def test_requirements_are_compared_as_pip_does():
    asked = ["a>=1.2,<2", "b", "c==1; python_version < '3'", "d>=5; extra == 'deploy'", "paddlepaddle>=3.3.1"]
    installed = {"a": "2.0", "d": "4", "paddlepaddle-gpu": "3.3.1"}
    assert unmet_requirements(asked, installed) == {"a<2,>=1.2": "2.0", "b": None}
    assert unmet_requirements(asked, installed, "deploy") == {"d>=5": "4"}
    assert unmet_requirements(asked, {"a": "1.9", "b": "0", "paddlepaddle": "3.4.0rc0"}) == {}


def test_missing_packages_say_what_they_cost():
    found = list(package_findings({"paddlepaddle": "3.3.1"}))
    texts = {finding.text.split()[0]: finding for finding in found}
    assert texts["onnxruntime"].level == "hint"
    assert "not checked or timed on ONNX Runtime" in texts["onnxruntime"].text
    assert texts["onnxruntime"].remedy == "pip install 'paddlelite_callbacks[deploy]'"
    assert any(finding.level == "error" and finding.text.startswith("numpy") for finding in found)
    assert all(finding.remedy for finding in found)


def test_every_optional_package_of_setup_has_its_cost():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    assert {*EXTRAS} == {*extras} - {"dev", "docs"}
    for extra in EXTRAS:
        lines = [line for line in extras[extra].splitlines() if line and not line.startswith("#")]
        for line in lines:
            assert canonicalize_name(Requirement(line).name) in COSTS, line


@pytest.mark.parametrize(
    ("info", "machine", "level", "said"),
    [
        (INTEL, "x86_64", "ok", "summed in 32 bits"),
        (AMD, "x86_64", "hint", "AVX2 without VNNI"),
        ({**AMD, "flags": "avx2 avx512_vnni"}, "x86_64", "ok", "summed in 32 bits"),
        ({"flags": "sse4_1"}, "x86_64", "warning", "has no AVX2"),
        ({}, "aarch64", "ok", "summed in 32 bits"),
        ({}, "x86_64", "hint", "reports no instruction sets"),
    ],
)
def test_what_the_instruction_sets_mean_for_int8(info, machine, level, said):
    first = next(cpu_findings(info, {"MKL_DEBUG_CPU_TYPE": "5"}, machine))
    assert (first.level, said in first.text) == (level, True)


@pytest.mark.parametrize(
    ("info", "environment", "hinted"),
    [(AMD, {}, True), (AMD, {"MKL_DEBUG_CPU_TYPE": "5"}, False), (INTEL, {}, False), ({}, {}, False)],
)
def test_mkl_is_spoken_of_on_amd_alone(info, environment, hinted):
    assert (cpu.mkl_hint(info, environment) is not None) == hinted
    found = [f for f in cpu_findings(info, environment, "x86_64") if f.topic == "mkl"]
    assert len(found) == hinted
    if hinted:
        assert "MKL_DEBUG_CPU_TYPE=5" in found[0].remedy


@pytest.mark.parametrize(
    ("cores", "quota", "environment", "level"),
    [
        (4, None, {}, "hint"),
        (4, None, {"OMP_NUM_THREADS": "4"}, "ok"),
        (4, None, {"OMP_NUM_THREADS": "5"}, "warning"),
        (64, 2.0, {}, "warning"),
        (64, 2.0, {"OMP_NUM_THREADS": "2,1"}, "ok"),
        (1, 0.5, {}, "ok"),
        (4, None, {"OMP_NUM_THREADS": "0"}, "warning"),
    ],
)
def test_threads_and_cores(cores, quota, environment, level):
    (finding,) = thread_findings(cores, quota, environment)
    assert finding.level == level


def test_the_hint_comes_once_in_a_process_at_train_begin(monkeypatch, caplog):
    """The processor is another's here; what is asked is when and how often it is said."""
    monkeypatch.setattr(cpu, "cpu_info", lambda: AMD)
    monkeypatch.setattr(cpu, "_hinted", set())
    monkeypatch.delenv(cpu.MKL_VARIABLE, raising=False)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            fit(hapi_model(TinyNet()), [DistillCallback(TinyNet())])
    assert len([record for record in caplog.records if "MKL_DEBUG_CPU_TYPE=5" in record.getMessage()]) == 1
    assert cpu.mkl_environment() == {cpu.MKL_VARIABLE: "5"}
    monkeypatch.setenv(cpu.MKL_VARIABLE, "1")
    assert cpu.mkl_environment() == {}
