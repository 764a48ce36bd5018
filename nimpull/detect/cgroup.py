"""How much memory this process may use: the limit of its control group."""

from __future__ import annotations

from pathlib import Path
from typing import Final

#: v1 says "no limit" with a number near 2^63 (kernel, cgroup-v1/memory.rst).
_NO_LIMIT: Final = 1 << 60


def memory_limit(*, root: str = "/") -> int | None:
    """Bytes, page cache included; None = no limit that can be read. ``root``: where sys and proc are.

    The smallest limit on the way up counts (kernel, cgroup-v2.rst, memory.max); in a container with a
    namespace of its own the group is ``/``.
    """
    base = Path(root)
    limits = [
        limit
        for mount, name, group in (
            ("sys/fs/cgroup", "memory.max", _group(base, "")),
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes", _group(base, "memory")),
        )
        for directory in (group, *group.parents)
        if (limit := _limit(base / mount / directory / name)) is not None
    ]
    return min(limits, default=None)


def _group(base: Path, controller: str) -> Path:
    """The group's path below the mount, from lines ``<id>:<controllers>:<path>`` (cgroups(7))."""
    try:
        lines = (base / "proc/self/cgroup").read_text("utf-8", "replace").splitlines()
    except OSError:
        return Path()
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controller in controllers.split(","):
            return Path(path.lstrip("/"))
    return Path()


def _limit(path: Path) -> int | None:
    try:
        text = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isdigit() and int(text) < _NO_LIMIT else None
