"""What the figures were measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Machine", "this_machine"]

_PACKAGES = ("paddlepaddle", "paddlepaddle-gpu", "paddleclas", "paddleslim", "paddle2onnx", "onnxruntime", "openvino")
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Processor, system and versions.

    Args:
        cpu: its name.
        cores: logical cores this process may use.
        flags: instruction sets that matter for speed.
        system: operating system and architecture.
        python: version.
        packages: versions by name, of those installed.
    """

    cpu: str
    cores: int
    flags: tuple[str, ...]
    system: str
    python: str
    packages: dict[str, str]


def this_machine() -> Machine:
    """Describe the machine that this runs on; imports none of the packages it names."""
    info = _cpu_info()
    flags = info.get("flags", info.get("Features", "")).split()
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return Machine(
        cpu=info.get("model name") or platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        flags=tuple(flag for flag in _FLAGS if flag in flags),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        packages=versions,
    )


def _cpu_info() -> dict[str, str]:
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
