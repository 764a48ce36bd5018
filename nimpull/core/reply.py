"""What a server answers: to a small request as a whole, to one for bytes its head; and how long it is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from nimpull.core.names import Url

_LENGTH: Final = re.compile(r"\d{1,19}", re.ASCII)  # bytes, below 2^64


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole small answer. Header names are lower case; ``url`` is where it finally came from.

    Any HTTP status is a Reply, 4xx and (beyond the retry budget) 5xx too: the source knows what it means.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: Url


@dataclass(frozen=True, slots=True)
class Head:
    """Status line and headers (lower-case names) of a data response; ``url`` is the final one.

    ``shared``: its connection carries other responses at the same time (HTTP/2).
    """

    status: int
    headers: Mapping[str, str]
    url: Url
    shared: bool = False


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
