"""Processes on a file system of a given size."""

from __future__ import annotations

import shutil
import subprocess
import sys

from places import HELPERS


def _alone() -> bool:
    """Whether a user may have a mount name space here."""
    command = ["unshare", "--map-root-user", "--mount", "true"]
    return shutil.which("unshare") is not None and not subprocess.run(command, check=False, stderr=-3).returncode


ALONE = _alone()


def on_a_disk_of(kilobytes: int, folder, code: str) -> subprocess.CompletedProcess:
    """Run ``code`` where ``folder`` is a file system of that size, in a mount name space of its own."""
    mount = f'mount -t tmpfs -o size={kilobytes}k tmpfs "$1" && exec "$2" -W ignore -c "$3" "$1"'
    alone = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    return subprocess.run(
        [*alone, str(folder), sys.executable, code],
        cwd=HELPERS,
        capture_output=True,
        text=True,
        check=False,
    )
