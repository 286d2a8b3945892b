"""CPU features."""

from __future__ import annotations

import os
import platform
from pathlib import Path

__all__ = ["cpu_info", "has_vnni"]

_WIDE = ("avx512_vnni", "avx_vnni", "amx_int8")  # add int8 products in 32 bits
_ONEDNN = ("openvino", "paddle-onednn")


def has_vnni(engine: str | None = None) -> bool:
    """Return whether int8 products accumulate in 32 bits here (no saturation).

    True on ARM too, whose kernels do not saturate. Where the system tells no instruction sets (Windows, macOS on
    Intel) the answer is no.

    Args:
        engine: OpenVINO and Paddle's oneDNN also obey ``ONEDNN_MAX_CPU_ISA``; ``None`` asks for the CPU alone.
    """
    if platform.machine().lower() in ("arm64", "aarch64"):
        return True
    cap = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    if engine in _ONEDNN and cap in ("SSE41", "AVX", "AVX2", "AVX512_CORE"):
        return False
    return any(flag in cpu_info().get("flags", "").split() for flag in _WIDE)


def cpu_info() -> dict[str, str]:
    """Return the fields of the first processor in ``/proc/cpuinfo``."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
