"""What this process may use: memory and CPU by its control group, open files by its own limit."""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import PurePath
from typing import Final

from nimpull.detect.files import read_text

#: v1 says "no limit" with a number near 2^63 (kernel, cgroup-v1/memory.rst).
_NO_LIMIT: Final = 1 << 60


def memory_limit(*, root: str = "/") -> int | None:
    """Bytes, page cache included; None = no limit that can be read. ``root``: where sys and proc are.

    The smallest limit on the way up counts (kernel, cgroup-v2.rst, memory.max); in a container with a
    namespace of its own the group is ``/``.
    """
    limits = [
        limit
        # Both versions may be mounted at a time (hybrid): whichever limits, limits.
        for controller, name in (("", "memory.max"), ("memory", "memory.limit_in_bytes"))
        for directory in _directories(root, controller)
        if (limit := _number(read_text(root, directory / name).strip())) is not None
    ]
    return min(limits, default=None)


def cpu_limit(*, root: str = "/") -> float | None:
    """Processors, parts of one included; None = no limit that can be read. ``root``: where sys and proc are.

    ``cpu.max`` is "quota period" or "max period" in microseconds (kernel, cgroup-v2.rst); v1 has a file for
    each, and -1 for no limit (kernel, scheduler/sched-bwc.rst).
    """
    quotas = [read_text(root, directory / "cpu.max").split() for directory in _directories(root, "")]
    quotas += [
        [read_text(root, directory / f"cpu.cfs_{what}_us").strip() for what in ("quota", "period")]
        for directory in _directories(root, "cpu")
    ]
    numbers = [tuple(map(_number, quota)) for quota in quotas if len(quota) == 2]
    return min((quota / period for quota, period in numbers if quota and period), default=None)


def processors(*, root: str = "/") -> int:
    """Threads that can compute at the same time: what scheduler and control group allow, at least 1."""
    allowed = len(os.sched_getaffinity(0))
    limit = cpu_limit(root=root)
    return allowed if limit is None else max(1, min(allowed, math.ceil(limit)))


def open_files() -> int | None:
    """The limit, raised from the soft to the hard one where that may be; None = there is none (getrlimit(2)).

    The soft limit is kept low for select(2), which is not used here on descriptors of files and connections.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # more than the kernel grants
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return None if soft == resource.RLIM_INFINITY else soft


def _directories(root: str, controller: str) -> Iterator[PurePath]:
    """Below ``root``: of this process' group and the groups above it; ``controller`` "" = version 2's."""
    group = _group(root, controller)
    for directory in (group, *group.parents):
        yield PurePath("sys/fs/cgroup", controller, directory)


def _group(root: str, controller: str) -> PurePath:
    """The group's path below the mount, from lines ``<id>:<controllers>:<path>`` (cgroups(7))."""
    for line in read_text(root, "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controller in controllers.split(","):
            return PurePath(path.lstrip("/"))
    return PurePath()


def _number(text: str) -> int | None:
    """None for no limit, whatever the word for it."""
    return int(text) if text.isascii() and text.isdigit() and int(text) < _NO_LIMIT else None
