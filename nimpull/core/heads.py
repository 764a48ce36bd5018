"""What the head of an answer says about its body."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

_LENGTH: Final = re.compile(r"\d{1,19}", re.ASCII)  # bytes, below 2^64


def content_length(fields: Sequence[str]) -> int | None:
    """Bytes, of the values of all Content-Length fields; None without one.

    Raises ValueError for several, even equal ones (RFC 9110, 8.6, lets a recipient refuse them: something on
    the way joined two answers), and for what is no number that a file can have.
    """
    if not fields:
        return None
    if len(fields) > 1 or not _LENGTH.fullmatch(fields[0].strip()):
        raise ValueError("its answer has no one length")
    return int(fields[0])
