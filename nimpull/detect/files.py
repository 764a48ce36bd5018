"""Small kernel files under a root that a test can replace."""

from __future__ import annotations

import os
from pathlib import PurePath
from typing import Final

_LIMIT: Final = 16384  # bytes; /proc/meminfo, the longest of them, has about 1500


def read_text(root: str, path: str | PurePath) -> str:
    """The text of ``root``/``path``, or "" where it is missing or may not be read."""
    try:
        with open(os.path.join(root, path), encoding="utf-8", errors="replace") as file:
            return file.read(_LIMIT)
    except OSError:
        return ""


def entries(root: str, path: str) -> tuple[str, ...]:
    """The names in a directory, sorted; none where it is missing or may not be read."""
    try:
        return tuple(sorted(os.listdir(os.path.join(root, path))))
    except OSError:
        return ()
