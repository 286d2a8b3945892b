"""Run exported files on an emulated ARM processor (qemu-user).

Needs Linux on x86-64 with ``apt-get``, ``dpkg-deb`` and internet access. Nothing is installed system-wide: packages
are unpacked into a separate folder, and qemu runs its programs without a chroot.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paddlelite_callbacks.utils.atomic_files import staged_file

__all__ = ["ArmEmulator", "ArmRun", "build_arm_root", "missing_for_arm"]

CPU = "cortex-a76"
_SUITE = "bookworm"  # Debian 12; tested with its qemu 7.2 and Python 3.11
_PACKAGES = ("python3.11-minimal", "libpython3.11-stdlib", "libstdc++6", "libgomp1")
_WHEELS = (  # onnxruntime 1.32 crashes in qemu 7.2
    *("numpy==1.26.4", "onnxruntime==1.20.1", "MNN==3.6.1", "ncnn==1.0.20261020"),
    *("filelock", "packaging"),
)
_PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64")
_READY = "ready.json"
_SECONDS = 1800
_CALLS = 6  # counted one by one; the first, which also prepares weights, is left out
_COUNTED = "INSTRUCTIONS "
_COUNTER_SOURCE = Path(__file__).with_name("instruction_counter.c")


@dataclass(frozen=True, kw_only=True)
class ArmRun:
    """Result of an engine on the emulated CPU.

    Args:
        outputs: Outputs of one call.
        instructions_m: Instructions per call in millions, a proxy for its cost; ``None`` if not counted. It ignores
            memory, caches and issue width and is not a latency.
    """

    outputs: list[np.ndarray]
    instructions_m: float | None = None


def missing_for_arm() -> str | None:
    """Return what `build_arm_root` needs and this machine lacks, or ``None``."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"the emulator is built on Linux for x86-64, this is {sys.platform} on {platform.machine()}"
    lacking = [program for program in ("apt-get", "dpkg-deb") if shutil.which(program) is None]
    return f"{' and '.join(lacking)} not found: a Debian or Ubuntu is needed" if lacking else None


def build_arm_root(folder: Path) -> ArmEmulator:
    """Download and unpack emulator, Python and engines, unless already there.

    Args:
        folder: Folder used only for this; the download is about 140 MB, the folder about 650 MB.

    Raises:
        RuntimeError: A download or an extraction failed; the message ends with the program's output.
    """
    folder = folder.absolute()
    if not (folder / _READY).is_file():
        if missing := missing_for_arm():
            raise RuntimeError(f"No ARM root can be built: {missing}.")
        folder.mkdir(parents=True, exist_ok=True)
        _unpack_debian(folder, "arm64", _PACKAGES, folder / "root")
        if shutil.which("qemu-aarch64") is None:
            _unpack_debian(folder, "amd64", ("qemu-user",), folder / "qemu")
        _install_wheels(folder)
        (folder / _READY).write_text(json.dumps({"wheels": _WHEELS}) + "\n", encoding="utf-8")
    if not _counter(folder).is_file():
        _build_counter(folder)
    return ArmEmulator(folder)


class ArmEmulator:
    """An emulated Cortex-A76 with ONNX Runtime, MNN and ncnn.

    Args:
        folder: Folder of `build_arm_root`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        system = shutil.which("qemu-aarch64")
        self._qemu = Path(system) if system else folder / "qemu" / "usr" / "bin" / "qemu-aarch64"

    @property
    def version(self) -> str:
        """Version of the emulator on one line."""
        return self._started([str(self._qemu), "--version"]).stdout.splitlines()[0]

    def run(self, engine: str, files: Sequence[Path], inputs: Sequence[np.ndarray], *, count: bool = False) -> ArmRun:
        """Load a network from ``files`` and run it.

        Args:
            engine: ``"onnxruntime"`` (an ONNX file), ``"mnn"`` or ``"ncnn"`` (result of `native_file`).
            files: Files of the network; the first is the one to open.
            inputs: Input arrays in the order of the file.
            count: Whether to count instructions: the median of five calls, after a first that also prepares weights.
                Start and loading are not counted.

        Raises:
            RuntimeError: The engine failed, or the emulator crashed.
        """
        if not count or not _counter(self._folder).is_file():
            return ArmRun(outputs=self._called(engine, files, inputs, runs=1, counted=False)[0])
        outputs, counts = self._called(engine, files, inputs, runs=_CALLS, counted=True)
        each = np.diff(counts)[1:]  # of each call but the first
        return ArmRun(outputs=outputs, instructions_m=float(np.median(each)) / 1e6 if len(each) else None)

    def _called(
        self, engine: str, files: Sequence[Path], inputs: Sequence[np.ndarray], *, runs: int, counted: bool
    ) -> tuple[list[np.ndarray], list[int]]:
        with tempfile.TemporaryDirectory() as work:
            given, got = Path(work) / "inputs.npz", Path(work) / "outputs.npz"
            np.savez(given, *inputs)
            arguments = [engine, str(runs), str(given), str(got), *(str(file.absolute()) for file in files)]
            done = self._python(["-m", "paddlelite_callbacks.maintainer_tools.arm_child", *arguments], counted=counted)
            if done.returncode or not got.is_file():
                said = (done.stderr.strip() or done.stdout.strip()).splitlines()
                end = "ended" if done.returncode >= 0 else "crashed"
                raise RuntimeError(
                    f"{engine} on the emulated {CPU} {end} with {done.returncode}: {said[-1][-300:] if said else ''}"
                )
            with np.load(got) as stored:
                outputs = [stored[key] for key in stored.files]
        said = [line for line in done.stderr.splitlines() if line.startswith(_COUNTED)]
        return outputs, [int(line.removeprefix(_COUNTED)) for line in said]

    def _python(self, arguments: Sequence[str], *, counted: bool) -> subprocess.CompletedProcess[str]:
        root, package = self._folder / "root", Path(__file__).absolute().parents[2]
        variables = {
            "PYTHONHOME": root / "usr",
            "PYTHONPATH": f"{package}:{root / 'site'}",
            "PYTHONNOUSERSITE": 1,
            "PYTHONDONTWRITEBYTECODE": 1,
            "PYTHONHASHSEED": 0,  # else the same call takes another number of instructions in each process
            "LD_LIBRARY_PATH": "/lib/aarch64-linux-gnu",
            "OMP_NUM_THREADS": 1,
        }
        plugin = ["-plugin", str(_counter(self._folder))] if counted else []
        given = [part for name, value in variables.items() for part in ("-E", f"{name}={value}")]
        python = [str(root / "usr" / "bin" / "python3.11"), "-W", "ignore"]
        return self._started([str(self._qemu), *plugin, "-cpu", CPU, "-L", str(root), *given, *python, *arguments])

    def _started(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        libraries = self._folder / "qemu" / "usr" / "lib" / "x86_64-linux-gnu"
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "OPENBLAS"))}
        environment = {**clean, "LD_LIBRARY_PATH": str(libraries)} if libraries.is_dir() else clean
        try:
            return subprocess.run(
                command, capture_output=True, text=True, timeout=_SECONDS, check=False, env=environment, cwd="/"
            )
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"The emulator did not finish in {_SECONDS} s: {command[-6:]}.") from error


def _unpack_debian(folder: Path, architecture: str, packages: Sequence[str], target: Path) -> None:
    """Download and unpack ``packages`` with dependencies, with a separate apt state."""
    apt = folder / f"apt-{architecture}"
    for name in ("state/lists/partial", "cache/archives/partial", "etc/preferences.d"):
        (apt / name).mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    (apt / "etc" / "sources.list").write_text(f"deb http://deb.debian.org/debian {_SUITE} main\n", encoding="ascii")
    lines = {
        "APT::Architecture": architecture,
        "Dir::State": apt / "state",
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt / "cache",
        "Dir::Etc::sourcelist": apt / "etc" / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::Etc::preferencesparts": apt / "etc" / "preferences.d",
        "APT::Sandbox::User": "root",
    }
    text = "".join(f'{name} "{value}";\n' for name, value in lines.items())
    (apt / "apt.conf").write_text(f'APT::Architectures {{ "{architecture}"; }};\n{text}', encoding="utf-8")
    environment = {**os.environ, "APT_CONFIG": str(apt / "apt.conf")}
    _checked(["apt-get", "update"], environment)
    wanted = ["install", "--download-only", "--yes", "--no-install-recommends", *packages]
    _checked(["apt-get", *wanted], environment)
    for file in sorted((apt / "cache" / "archives").glob("*.deb")):
        _checked(["dpkg-deb", "--extract", str(file), str(target)], environment)


def _install_wheels(folder: Path) -> None:
    platforms = [part for name in _PLATFORMS for part in ("--platform", name)]
    options = [
        "--only-binary=:all:",
        "--no-deps",
        "--python-version",
        "3.11",
        "--target",
        str(folder / "root" / "site"),
    ]
    python = next((p for p in (sys.executable, shutil.which("python3")) if p and _has_pip(p)), sys.executable)
    _checked([python, "-m", "pip", "install", "--quiet", "--upgrade", *options, *platforms, *_WHEELS], dict(os.environ))


def _has_pip(python: str) -> bool:
    return subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0


def _counter(folder: Path) -> Path:
    """Return the path of the counting plugin, by the digest of its source."""
    return folder / f"counter-{hashlib.sha256(_COUNTER_SOURCE.read_bytes()).hexdigest()[:12]}.so"


def _build_counter(folder: Path) -> None:
    """Compile the plugin; without a C compiler instructions are not counted."""
    if (compiler := shutil.which("cc") or shutil.which("gcc")) is None:
        return
    with staged_file(_counter(folder)) as partial:
        _checked([compiler, "-shared", "-fPIC", "-O2", "-o", str(partial), str(_COUNTER_SOURCE)], dict(os.environ))


def _checked(command: Sequence[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:3])} ended with {done.returncode}: {done.stderr.strip()[-400:]}")
