"""What a server answers: to a small request as a whole, to one for bytes its head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nimpull.core.names import Url


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
