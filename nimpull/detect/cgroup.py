"""How much memory and CPU this process may use: the limits of its control group."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

#: v1 says "no limit" with a number near 2^63 (kernel, cgroup-v1/memory.rst).
_NO_LIMIT: Final = 1 << 60


def memory_limit(*, root: str = "/") -> int | None:
    """Bytes, page cache included; None = no limit that can be read. ``root``: where sys and proc are.

    The smallest limit on the way up counts (kernel, cgroup-v2.rst, memory.max); in a container with a
    namespace of its own the group is ``/``.
    """
    limits = [
        limit
        for controller, name in (("", "memory.max"), ("memory", "memory.limit_in_bytes"))
        for directory in _directories(Path(root), controller)
        if (limit := _number(_text(directory / name))) is not None
    ]
    return min(limits, default=None)


def cpu_limit(*, root: str = "/") -> float | None:
    """Processors, parts of one included; None = no limit that can be read. ``root``: where sys and proc are.

    ``cpu.max`` is "quota period" or "max period" in microseconds (kernel, cgroup-v2.rst); v1 has a file for
    each, and -1 for no limit (kernel, scheduler/sched-bwc.rst).
    """
    quotas = [_text(directory / "cpu.max").split() for directory in _directories(Path(root), "")]
    quotas += [
        [_text(directory / "cpu.cfs_quota_us"), _text(directory / "cpu.cfs_period_us")]
        for directory in _directories(Path(root), "cpu")
    ]
    numbers = [tuple(map(_number, quota)) for quota in quotas if len(quota) == 2]
    return min((quota / period for quota, period in numbers if quota and period), default=None)


def processors(*, root: str = "/") -> int:
    """Threads that can compute at the same time: what scheduler and control group allow, at least 1."""
    allowed = len(os.sched_getaffinity(0))
    limit = cpu_limit(root=root)
    return allowed if limit is None else max(1, min(allowed, math.ceil(limit)))


def _directories(base: Path, controller: str) -> Iterator[Path]:
    """Those of this process' group and the groups above it; ``controller`` "" = version 2's hierarchy."""
    mount = base / "sys/fs/cgroup" / controller
    group = _group(base, controller)
    for directory in (group, *group.parents):
        yield mount / directory


def _group(base: Path, controller: str) -> Path:
    """The group's path below the mount, from lines ``<id>:<controllers>:<path>`` (cgroups(7))."""
    for line in _text(base / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controller in controllers.split(","):
            return Path(path.lstrip("/"))
    return Path()


def _text(path: Path) -> str:
    """ "" where it cannot be read."""
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""


def _number(text: str) -> int | None:
    """None for no limit, whatever the word for it."""
    return int(text) if text.isascii() and text.isdigit() and int(text) < _NO_LIMIT else None
