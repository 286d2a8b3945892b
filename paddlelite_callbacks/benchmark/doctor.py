"""Check installation and machine for problems, with remedies.

Only a child process imports Paddle, so that a broken installation can be examined.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from paddlelite_callbacks.benchmark.machine import clock_governor
from paddlelite_callbacks.utils.child_process import last_words, run_module
from paddlelite_callbacks.utils.cpu import MKL_VARIABLE, cpu_info, has_vnni, mkl_hint, usable_cores
from paddlelite_callbacks.utils.numbers import counted

__all__ = [
    "COSTS",
    "EXTRAS",
    "LEVELS",
    "Finding",
    "cpu_findings",
    "doctor",
    "package_findings",
    "thread_findings",
    "unmet_requirements",
]

LEVELS = ("ok", "hint", "warning", "error")  # by severity
_PACKAGE = "paddlelite_callbacks"
_GB = 1e9
_PROBE_SECONDS = 300
PROBE_STEPS = {  # steps of the child process in order, and what each verifies
    "numpy": "NumPy computes",
    "opencv": "OpenCV and NumPy are compatible",
    "paddle": "Paddle can be imported",
    "convolution": "Paddle's convolution gives what NumPy computes",
    "program": "paddle.jit.save writes a program",
    "paddle-engine": "Paddle Inference without oneDNN runs it",
    "paddle-onednn": "Paddle Inference with oneDNN runs it",
    "onnx": "paddle2onnx converts it",
    "onnxruntime": "ONNX Runtime runs it",
    "openvino": "OpenVINO runs it",
}
COSTS = {  # package -> what is lost without it
    "paddleclas": "BackboneSwap offers the networks of paddle.vision and of this package alone",
    "paddleslim": "PACTConfig(activation='paddleslim') is refused; the package's own quantizers need nothing",
    "paddle2onnx": "no model.onnx, so no ONNX Runtime, no OpenVINO and no int8 that computes in int8",
    "onnx": "no int8 and no fp16 ONNX files, and their cost is not counted",
    "onnxslim": "model.onnx keeps nodes that no engine needs: it loads more slowly",
    "onnxruntime": "exported ONNX files are not checked or timed on ONNX Runtime",
    "openvino": "exported ONNX files are not checked or timed on OpenVINO",
    "mnn": "no files for MNN, and the engine mnn cannot be used",
    "ncnn": "no files for ncnn are checked, and the engine ncnn cannot be used",
    "matplotlib": "reports have no pictures",
    "scikit-learn": "examples/digits.py has no data",
    "rich": "tables on a terminal are plain",
    "shtab": "the shell does not complete commands and options",
}
EXTRAS = ("deploy", "terminal", "edge", "examples")  # extras of users, not of developers


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Result of one check.

    Args:
        topic: ``"python"``, ``"packages"``, ``"engines"``, ``"cpu"``, ``"threads"``, ``"disk"``, ``"locale"``, ...
        level: ``"ok"``, ``"hint"`` (could be better), ``"warning"`` (a part fails or misleads) or ``"error"``.
        text: Finding in one sentence.
        remedy: Remedy; ``None`` where none is needed.
    """

    topic: str
    level: str
    text: str
    remedy: str | None = None


def doctor(folder: str | Path = ".", *, probe: bool = True) -> list[Finding]:
    """Check whether installation and machine fit this package.

    Args:
        folder: Folder for results.
        probe: Whether to start a child process that imports Paddle and runs a small network on every engine (about ten
            seconds); otherwise only versions and settings are checked.

    Returns:
        Findings in the order of the checks. Nothing is printed, and no files are left.

    Example:
        >>> from paddlelite_callbacks import doctor
        >>> troubles = [finding for finding in doctor(probe=False) if finding.level == "error"]
    """
    found = [
        *_python_findings(),
        *package_findings(_installed()),
        *(_probe_findings() if probe else ()),
        *cpu_findings(cpu_info(), os.environ, platform.machine()),
        *thread_findings(usable_cores(), _quota(), os.environ),
        *_load_findings(usable_cores()),
        *_place_findings(Path(folder)),
        *_locale_findings(),
    ]
    return found


def _python_findings() -> Iterator[Finding]:
    version, system = platform.python_version(), f"{platform.system()} {platform.machine()}"
    if not (3, 10) <= sys.version_info[:2] <= (3, 13) or sys.maxsize < 2**32:
        bits = "" if sys.maxsize > 2**32 else ", 32 bits"
        yield Finding(
            topic="python",
            level="error",
            text=f"Python {version}{bits} is not supported by Paddle 3.3.",
            remedy="use Python 3.11, 64 bits",
        )
        return
    missing = {(3, 12): "paddleclas", (3, 13): "paddleclas, paddleslim and paddle2onnx"}.get(sys.version_info[:2])
    if missing:
        yield Finding(
            topic="python",
            level="hint",
            text=f"Python {version} on {system}; {missing} cannot be installed on it.",
            remedy="use Python 3.10 or 3.11 if you need them (see the packages below)",
        )
    else:
        yield Finding(topic="python", level="ok", text=f"Python {version} on {system}")
    if platform.system() != "Linux":
        yield Finding(
            topic="python",
            level="warning",
            text=f"{platform.system()} is not tested.",
            remedy="use Linux, or a container, if something fails",
        )


def _installed() -> dict[str, str]:
    """Return the versions of all installed packages by canonical name."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        with suppress(Exception):  # a half-deleted package has no metadata
            found.setdefault(canonicalize_name(distribution.metadata["Name"]), distribution.version)
    return found


def unmet_requirements(requirements: list[str], installed: Mapping[str, str], extra: str = "") -> dict[str, str | None]:
    """Return incompatible versions (``None`` if missing) by requirement.

    Args:
        requirements: Result of ``importlib.metadata.requires``.
        installed: Versions by canonical name.
        extra: Extra whose requirements are checked; ``""`` for the unconditional ones.
    """
    unmet: dict[str, str | None] = {}
    for text in requirements:
        asked = Requirement(text)
        if asked.marker is not None:
            if not asked.marker.evaluate({"extra": extra}):
                continue
            if extra and asked.marker.evaluate({"extra": ""}):
                continue  # required without the extra, too
        elif extra:
            continue
        name = canonicalize_name(asked.name)
        version = installed.get(name) or installed.get(f"{name}-gpu")
        if version is None or not asked.specifier.contains(version, prereleases=True):
            unmet[f"{asked.name}{asked.specifier}"] = version
    return unmet


def package_findings(installed: Mapping[str, str]) -> Iterator[Finding]:
    """Compare installed versions with the requirements of this package.

    Yields:
        One finding per missing or incompatible package, or one that all are compatible.
    """
    try:
        requirements = importlib.metadata.requires(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding(
            topic="packages",
            level="hint",
            text=f"{_PACKAGE} is used from its folder, not installed: versions cannot be compared.",
            remedy="pip install -e '.[deploy]'",
        )
        return
    clean = True
    for extra in ("", *EXTRAS):
        for asked, version in unmet_requirements(requirements, installed, extra).items():
            clean = False
            yield _unmet(Requirement(asked).name, asked, version, extra)
    if {"paddlepaddle", "paddlepaddle-gpu"} <= installed.keys():
        clean = False
        yield Finding(
            topic="packages",
            level="warning",
            text="paddlepaddle and paddlepaddle-gpu are both installed; they overwrite each other's files.",
            remedy="pip uninstall both, then install one",
        )
    here = {Requirement(text).name for text in requirements if _asked_here(Requirement(text))}
    for name in ("paddleclas", "paddleslim", "paddle2onnx"):
        if name not in installed and name not in here:  # its marker excludes this Python
            clean = False
            yield Finding(
                topic="packages",
                level="hint",
                text=f"{name} cannot be installed on Python {platform.python_version()}: {COSTS[name]}.",
                remedy="use Python 3.11 if you need it",
            )
    if clean:
        names = [name for name in ("paddlepaddle", "numpy", *COSTS) if name in installed]
        yield Finding(
            topic="packages", level="ok", text=", ".join(f"{name} {installed[name]}" for name in names) + " fit"
        )


def _asked_here(asked: Requirement) -> bool:
    return asked.marker is None or any(asked.marker.evaluate({"extra": extra}) for extra in ("", *EXTRAS))


def _unmet(name: str, asked: str, version: str | None, extra: str) -> Finding:
    cost = COSTS.get(canonicalize_name(name))
    remedy = f"pip install '{_PACKAGE}[{extra}]'" if extra else f"pip install '{asked}'"
    if version is not None:
        return Finding(
            topic="packages",
            level="warning",
            text=f"{name} {version} is installed, {asked} is required; other versions are not tested.",
            remedy=f"pip install '{asked}'",
        )
    if cost is None:
        return Finding(topic="packages", level="error", text=f"{asked} is missing.", remedy=remedy)
    return Finding(
        topic="packages", level="hint" if extra else "warning", text=f"{name} is missing: {cost}.", remedy=remedy
    )


def _probe_findings() -> Iterator[Finding]:
    """Run `doctor_probe` in a child process and report its steps."""
    try:
        done = run_module("benchmark.doctor_probe", seconds=_PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        text = f"A small network was not exported and run within {_PROBE_SECONDS} s."
        yield Finding(topic="engines", level="error", text=text, remedy="free the machine and try again")
        return
    results: dict[str, str | None] = {}
    for line in done.stdout.splitlines():
        with suppress(ValueError, TypeError, KeyError):
            entry = json.loads(line)
            results[entry["step"]] = entry["error"]
    good = [text for step, text in PROBE_STEPS.items() if step in results and results[step] is None]
    if good:
        yield Finding(topic="engines", level="ok", text="; ".join(good))
    for step, error in results.items():
        if error and not error.startswith("absent"):
            yield _failed_step(step, error)
    if len(results) < len(PROBE_STEPS):
        step = next(step for step in PROBE_STEPS if step not in results)
        yield _failed_step(step, f"the process ended: {last_words(done)}")


_FATAL = ("numpy", "paddle", "convolution", "program")
_PROBE_REMEDIES = {
    "numpy": "pip install 'numpy<2' (on Python 3.13 'numpy>=2.1,<2.4')",
    "paddle": "pip install --force-reinstall 'paddlepaddle>=3.3.1,<3.4' (its wheels need a processor with AVX)",
    "opencv": "pip install 'numpy<2', or an opencv-python-headless built for your NumPy; on a bare Debian "
    "apt-get install libgl1 libglib2.0-0 libgomp1",
    "paddle-engine": "leave it out: BenchOptions(engines=[...])",
    "paddle-onednn": "leave it out: BenchOptions(engines=['paddle', 'onnxruntime', 'openvino'])",
}


def _failed_step(step: str, error: str) -> Finding:
    remedy = _PROBE_REMEDIES.get(step, f"pip install --force-reinstall '{_PACKAGE}[deploy]'")
    level = "error" if step in _FATAL else "warning"
    return Finding(topic="engines", level=level, text=f"Failed: {PROBE_STEPS[step]} ({error}).", remedy=remedy)


def cpu_findings(info: Mapping[str, str], environment: Mapping[str, str], machine: str) -> Iterator[Finding]:
    """Report what the instruction sets mean for int8, and MKL's slow path.

    Args:
        info: Result of `cpu_info`.
        environment: Environment variables.
        machine: Result of ``platform.machine()``.

    Yields:
        The findings.
    """
    name, flags = info.get("model name") or machine, info.get("flags", "").split()
    arm = machine.lower() in ("arm64", "aarch64")
    if not flags and not arm:
        yield Finding(topic="cpu", level="hint", text=f"{name}: the system reports no instruction sets.")
    elif arm or has_vnni(flags=flags):
        text = f"{name}: int8 products are summed in 32 bits, so int8 files are exact here and fast."
        yield Finding(topic="cpu", level="ok", text=text)
    elif "avx2" in flags:
        yield Finding(
            topic="cpu",
            level="hint",
            text=f"{name}: AVX2 without VNNI. Sums of two int8 products saturate at 16 bits, so weights of the full "
            "8-bit range may give other outputs here, and int8 gains less speed.",
            remedy="keep reduce_range=True (the default of PACTConfig), whose files are exact on every CPU",
        )
    else:
        yield Finding(
            topic="cpu",
            level="warning",
            text=f"{name} has no AVX2: engines are slow on it and int8 is not accelerated.",
            remedy="train and measure on a processor with AVX2",
        )
    cap = environment.get("ONEDNN_MAX_CPU_ISA") or environment.get("DNNL_MAX_CPU_ISA")
    if cap:
        yield Finding(
            topic="cpu",
            level="hint",
            text=f"ONEDNN_MAX_CPU_ISA={cap} limits Paddle's oneDNN and OpenVINO but not ONNX Runtime: their latencies "
            "are not comparable.",
            remedy="unset it, unless you test files for an older processor",
        )
    if (hint := mkl_hint(info, environment)) is not None:
        text, _, remedy = hint.partition(": ")
        yield Finding(topic="mkl", level="hint", text=f"{text}.", remedy=remedy.rstrip("."))
    elif environment.get(MKL_VARIABLE) and info.get("vendor_id") == "GenuineIntel" and "avx512f" in flags:
        yield Finding(
            topic="mkl",
            level="hint",
            text=f"{MKL_VARIABLE} is set on an Intel processor: older MKLs then leave AVX-512 unused.",
            remedy=f"unset {MKL_VARIABLE}; it is meant for AMD",
        )


def _quota() -> float | None:
    """Return the CPU quota of the container in cores; ``None`` without a limit."""
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError, ZeroDivisionError):
        folder = Path("/sys/fs/cgroup/cpu")
        quota_us = int((folder / "cpu.cfs_quota_us").read_text())
        return quota_us / int((folder / "cpu.cfs_period_us").read_text()) if quota_us > 0 else None
    return None


def thread_findings(cores: int, quota: float | None, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Compare the number of threads with the available cores.

    Args:
        cores: Number of cores this process may use.
        quota: CPU quota of the container in cores; ``None`` without a limit.
        environment: Environment variables.

    Yields:
        One finding.
    """
    given = environment.get("OMP_NUM_THREADS", "")
    usable = cores if quota is None else min(cores, max(1, math.floor(quota)))
    said = f"{cores} cores" + ("" if quota is None else f", of which the container grants the time of {quota:g}")
    first = given.split(",")[0].strip()
    if given and not (first.isdigit() and int(first) > 0):
        yield Finding(
            topic="threads",
            level="warning",
            text=f"OMP_NUM_THREADS={given!r} is not a number of threads.",
            remedy=f"export OMP_NUM_THREADS={usable}",
        )
    elif (threads := int(first) if given else cores) > usable:
        named = f"OMP_NUM_THREADS={given}" if given else "without OMP_NUM_THREADS"
        yield Finding(
            topic="threads",
            level="warning",
            text=f"{said}; {named} {threads} threads start: they wait for each other, training is slower and times "
            "are noisy.",
            remedy=f"export OMP_NUM_THREADS={usable}",
        )
    elif not given and usable > 1:
        yield Finding(
            topic="threads",
            level="hint",
            text=f"{said}; OMP_NUM_THREADS is not set. Small pictures and batches train faster on one thread "
            "(ResNet18, 32x32, batch 32: 0.39 s a step with one, 0.67 s with two).",
            remedy="try export OMP_NUM_THREADS=1",
        )
    else:
        yield Finding(topic="threads", level="ok", text=f"{said}, {counted(threads, 'thread')}")


def _load_findings(cores: int) -> Iterator[Finding]:
    if hasattr(os, "getloadavg") and (load := os.getloadavg()[0]) > cores:
        yield Finding(
            topic="load",
            level="hint",
            text=f"{load:.1f} processes want {cores} cores: measured latencies will be noisy.",
            remedy="measure while nothing else runs",
        )
    if (governor := clock_governor()) not in (None, "performance"):
        yield Finding(
            topic="load",
            level="hint",
            text=f"The CPU's governor is {governor!r}: its clock rate changes, and latencies with it.",
            remedy="cpupower frequency-set -g performance",
        )
    free = psutil.virtual_memory().available / _GB
    if free < 2:
        yield Finding(
            topic="memory",
            level="warning",
            text=f"{free:.1f} GB of memory are free; an export of a large network needs more.",
            remedy="end other programs, or use a larger machine",
        )


def _place_findings(folder: Path) -> Iterator[Finding]:
    yield from _folder_findings("disk", folder, 1.0, "Results go there", "give another folder, or free the disk")
    home = Path(os.environ.get("HOME") or os.path.expanduser("~"))  # noqa: PTH111
    yield from _folder_findings(
        "home",
        home,
        0.5,
        "Downloaded weights and caches of Paddle and matplotlib go there",
        "export HOME=/a/folder/that/can/be/written",
    )
    named = os.environ.get("TMPDIR")
    place = Path(named or tempfile.gettempdir())
    yield from _folder_findings(
        "tmpdir",
        place,
        0.5,
        "Exports are built there; if it is not writable, Python silently uses another folder",
        "export TMPDIR=/a/folder/on/a/large/disk",
    )
    shared = Path("/dev/shm")
    if shared.is_dir() and (free := shutil.disk_usage(shared).free / _GB) < 0.25:
        yield Finding(
            topic="shm",
            level="warning",
            text=f"/dev/shm has {free:.2f} GB: a DataLoader with num_workers > 0 passes its batches there and crashes.",
            remedy="docker run --shm-size=1g, or num_workers=0",
        )


def _folder_findings(topic: str, folder: Path, least: float, use: str, remedy: str) -> Iterator[Finding]:
    near = next((place for place in (folder, *folder.absolute().parents) if place.exists()), folder)
    try:
        if topic != "disk" and not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}")
        with tempfile.TemporaryFile(dir=near):
            pass
        free = shutil.disk_usage(near).free / _GB
    except OSError as error:
        level = "error" if topic == "disk" else "warning"
        why = error.strerror or str(error)
        yield Finding(topic=topic, level=level, text=f"{folder} cannot be written ({why}). {use}.", remedy=remedy)
        return
    if free < least:
        text = f"{folder} has {free:.2f} GB free, {least:g} GB are needed. {use}."
        yield Finding(topic=topic, level="warning", text=text, remedy=remedy)
    else:
        yield Finding(topic=topic, level="ok", text=f"{folder}: {free:.0f} GB free")


def _locale_findings() -> Iterator[Finding]:
    encoding = sys.getfilesystemencoding().lower().replace("-", "")
    if encoding == "utf8" and not (sys.flags.utf8_mode and os.environ.get("PYTHONUTF8") == "0"):
        yield Finding(topic="locale", level="ok", text="file names are UTF-8")
        return
    yield Finding(
        topic="locale",
        level="warning",
        text="The locale is not UTF-8: Paddle, ONNX Runtime and OpenVINO cannot open paths with other letters.",
        remedy="export PYTHONUTF8=1 (or LC_ALL=C.UTF-8)",
    )
