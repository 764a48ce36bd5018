"""Calls on a volume that fail, hang or end the process: what volume_faults.c does, from Python."""

from __future__ import annotations

import atexit
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
COMPILER = shutil.which("cc")
WITHOUT = "a C compiler makes the library that lets calls fail"
#: Calls that change a volume: between any two of them a reader, or a crash, finds another state.
CHANGES = (
    "write",
    "pwrite64",
    "fsync",
    "fdatasync",
    "syncfs",
    "ftruncate64",
    "rename",
    "renameat",
    "linkat",
    "symlinkat",
    "unlink",
    "unlinkat",
    "mkdir",
    "mkdirat",
    "rmdir",
    "chmod",
    "fchmod",
)


@dataclass(frozen=True, slots=True)
class VolumeFault:
    """Calls number ``first`` to ``last`` of ``calls`` on paths that contain ``path``.

    ``action``: "kill", "term", "hang", or an errno.
    """

    action: str | int
    calls: tuple[str, ...] = CHANGES
    first: int = 1
    last: int = 1 << 31
    path: str = "/"

    def __str__(self) -> str:
        return f"{','.join(self.calls)} {self.action} {self.first} {self.last} {self.path}"


def faulty(*faults: VolumeFault, log: Path | None = None) -> dict[str, str]:
    """The environment of a process whose calls meet ``faults``; ``log``: see :func:`read_log`."""
    known = {"LD_PRELOAD": str(_library()), "VOLUME_FAULTS": "\n".join(map(str, faults))}
    return known | ({"VOLUME_LOG": str(log)} if log else {})


@dataclass(frozen=True, slots=True)
class Call:
    """A call as the log has it. ``time``: monotonic, seconds."""

    time: float
    name: str
    path: str


def read_log(log: Path) -> list[Call]:
    """Every call so far; nothing before the first one."""
    lines = log.read_text().splitlines() if log.exists() else []
    fields = (line.split(" ", 2) for line in lines)
    return [Call(float(moment), name, path) for moment, name, path in fields]


@cache
def _library() -> Path:
    scratch = tempfile.mkdtemp(prefix="nimpull-faults-")
    atexit.register(shutil.rmtree, scratch)
    library = Path(scratch, "volume_faults.so")
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
    return library
