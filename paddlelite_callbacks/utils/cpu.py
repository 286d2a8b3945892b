"""Detect CPU features."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Collection, Mapping
from pathlib import Path

__all__ = [
    "MKL_VARIABLE",
    "VNNI_FLAGS",
    "cpu_info",
    "has_vnni",
    "is_amd",
    "log_mkl_hint",
    "mkl_environment",
    "mkl_hint",
    "usable_cores",
]

_log = logging.getLogger(__name__)

MKL_VARIABLE = "MKL_DEBUG_CPU_TYPE"  # read when MKL is loaded, with "import paddle"
_AVX2_PATH = "5"
_hinted: set[str] = set()

VNNI_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
"""Instruction sets that add int8 products in 32 bits."""

_ONEDNN = ("openvino", "paddle-onednn")


def has_vnni(engine: str | None = None, *, flags: Collection[str] | None = None) -> bool:
    """Whether int8 products accumulate in 32 bits (no saturation) here.

    Also true on ARM, whose kernels do not saturate; false where the instruction sets are unknown (Windows, macOS on
    Intel).

    Args:
        engine: OpenVINO and Paddle's oneDNN also obey ``ONEDNN_MAX_CPU_ISA``; ``None`` for the CPU alone.
        flags: Instruction sets; ``None`` for this machine's.
    """
    if platform.machine().lower() in ("arm64", "aarch64"):
        return True
    cap = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    if engine in _ONEDNN and cap in ("SSE41", "AVX", "AVX2", "AVX512_CORE"):
        return False
    return not VNNI_FLAGS.isdisjoint(cpu_info().get("flags", "").split() if flags is None else flags)


def cpu_info() -> dict[str, str]:
    """Return the fields of the first processor in ``/proc/cpuinfo``."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def usable_cores() -> int:
    """Return the number of logical cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_amd(info: Mapping[str, str] | None = None) -> bool:
    """Whether the processor is an AMD one.

    Args:
        info: Result of `cpu_info`; ``None`` for this machine's.
    """
    return (cpu_info() if info is None else info).get("vendor_id", "") == "AuthenticAMD"


def mkl_hint(info: Mapping[str, str] | None = None, environment: Mapping[str, str] | None = None) -> str | None:
    """Return why MKL is slow on an AMD CPU, and the remedy; ``None`` elsewhere.

    The MKL inside Paddle takes its slowest code path on processors of other makers than Intel.

    Args:
        info: Result of `cpu_info`; ``None`` for this machine's.
        environment: Environment variables; ``None`` for this process's.
    """
    given = os.environ if environment is None else environment
    if not is_amd(info) or given.get(MKL_VARIABLE):
        return None
    return (
        f"Paddle's MKL takes its slow path on this AMD processor: set {MKL_VARIABLE}={_AVX2_PATH} in the environment "
        "before Python starts (or before 'import paddle'); training on the CPU becomes about twice as fast."
    )


def log_mkl_hint() -> None:
    """Log `mkl_hint` as a warning, once per process."""
    if (hint := mkl_hint()) is not None and hint not in _hinted:
        _hinted.add(hint)
        _log.warning("%s", hint)


def mkl_environment() -> dict[str, str]:
    """Return environment variables for fast MKL, to be set before importing Paddle.

    Empty where nothing needs setting: on Intel the variable would hide AVX-512 from MKL, and a value set by the user is
    kept.

    Example:
        >>> os.environ.update(mkl_environment())
        >>> import paddle
    """
    return {} if mkl_hint() is None else {MKL_VARIABLE: _AVX2_PATH}
