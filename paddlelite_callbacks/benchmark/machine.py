"""Describe the machine of a measurement and the noise of its latencies."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from paddlelite_callbacks.utils.cpu import VNNI_FLAGS, cpu_info, usable_cores
from paddlelite_callbacks.utils.numbers import counted

__all__ = ["Machine", "clock_governor", "noise_notes", "this_machine"]

_SPREAD = 0.2  # interquartile range relative to the median
_SHARE = 0.9  # of the wall clock that one busy thread should get

_MOST = 20  # instruction sets named; a record of somebody else may hold any number
_PACKAGES = (
    *("paddlepaddle", "paddlepaddle-gpu", "paddleclas", "paddleslim", "paddle2onnx", "onnxruntime", "openvino"),
    *("MNN", "ncnn", "pnnx"),
)
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Processor, system and package versions.

    Args:
        cpu: Name of the processor.
        cores: Number of logical cores this process may use.
        flags: Instruction sets that matter for speed.
        system: Operating system and architecture.
        python: Python version.
        packages: Versions of installed packages by name.
        governor: Clock rate governor (``"performance"`` keeps it constant); ``None`` where unknown.
    """

    cpu: str
    cores: int
    flags: tuple[str, ...]
    system: str
    python: str
    packages: dict[str, str]
    governor: str | None = None

    @property
    def processor(self) -> str:
        """CPU with its instruction sets, such as ``"AMD EPYC (avx2, no VNNI)"``."""
        if not self.flags:
            return self.cpu
        lacking = ", no VNNI" if "avx2" in self.flags and not VNNI_FLAGS & set(self.flags) else ""
        return f"{self.cpu} ({' '.join(self.flags[:_MOST])}{lacking})"


def this_machine() -> Machine:
    """Describe this machine; imports none of the packages that it lists."""
    info = cpu_info()
    flags = info.get("flags", info.get("Features", "")).split()
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return Machine(
        cpu=info.get("model name") or platform.processor() or platform.machine(),
        cores=usable_cores(),
        flags=tuple(flag for flag in _FLAGS if flag in flags),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        packages=versions,
        governor=clock_governor(),
    )


def noise_notes(
    setting: tuple[int, int],
    figures: Mapping[tuple[str, str], Mapping[str, float]],
    unsteady: Sequence[str],
    share: float,
) -> list[str]:
    """Return warnings about noisy measurements; none on a quiet machine.

    Args:
        setting: Threads and batch size.
        figures: Results of `summarise`, by engine and precision.
        unsteady: Engines whose time was still changing after the warm-up.
        share: CPU time of this process relative to the wall clock while timing.
    """
    where, notes = f"{counted(setting[0], 'thread')}, batch {setting[1]}", []
    noisy = [
        " ".join(key) for key, f in figures.items() if f["p75_ms"] - f["p25_ms"] > _SPREAD * max(f["p50_ms"], 1e-9)
    ]
    if noisy:
        notes.append(f"Noise ({where}): the quartiles of {', '.join(noisy)} lie more than {_SPREAD:.0%} apart.")
    if unsteady:
        notes.append(f"Noise ({where}): {', '.join(dict.fromkeys(unsteady))} had not become steady in the warm-up.")
    if setting[0] == 1 and share < _SHARE:
        notes.append(f"Noise ({where}): the timed process got {share:.0%} of a CPU; others were running.")
    governor = clock_governor()
    if governor not in (None, "performance"):
        notes.append(f"Noise: the CPU's governor is {governor!r}, so its clock rate changes; 'performance' holds it.")
    return notes


def clock_governor() -> str | None:
    """Return the clock rate governor; ``None`` where unknown."""
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip() or None
    except OSError:
        return None
