"""What a data response means for the range that was asked for, decided from its head alone.

The rules are those of RFC 9110: Content-Range (14.4), 206 (15.3.7), ETag (8.8.3).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from nimpull.core.names import display
from nimpull.core.patience import BUSY, asked_pause

_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.IGNORECASE)
_NUMBER: Final = re.compile(r"\d{1,19}")
_MARKUP: Final = frozenset({"text/html", "application/xhtml+xml"})

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Bytes [start, end) are on disk, as far as an earlier run knew.

    ``digest`` (16 to 32 bytes): of the file's bytes [0, end) when they were written, by the algorithm of the
    artifact's digest, blake3 where the listing has none. ``start``: the end of the checkpoint before.
    """

    start: int
    end: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class ContentRange:
    """Bytes [start, end) of ``total`` (None = the server does not say)."""

    start: int
    end: int
    total: int | None


@dataclass(frozen=True, slots=True)
class Asked:
    """The request a response answers: bytes [start, end) of a file of ``size`` bytes, None = not known.

    ``validator``: the strong ETag of the bytes already here, "" = none. ``markup``: an HTML page is what the
    file is meant to be.
    """

    start: int
    end: int | None
    size: int | None
    validator: str = ""
    markup: bool = False

    @property
    def ranged(self) -> bool:
        return self.start > 0 or self.end is not None


class Cause(StrEnum):
    """Why a response head cannot be used (RFC 9110, sections 14 and 15)."""

    EXPIRED = "expired"  # 403: a presigned URL's usual end
    UNAUTHORIZED = "unauthorized"  # 401
    CHANGED = "changed"  # another ETag than the bytes already here
    UNSATISFIED = "unsatisfied"  # 416
    MISSING = "missing"  # 404, 410
    MISLED = "misled"  # the head contradicts what was asked for
    MARKUP = "markup"  # a web page in place of the file
    REFUSED = "refused"  # any other status


_RELOCATING: Final = {401: Cause.UNAUTHORIZED, 403: Cause.EXPIRED, 416: Cause.UNSATISFIED}


@dataclass(frozen=True, slots=True)
class Accept:
    """The body is the bytes asked for. ``size``: of the whole file; ``bounded``: the body's own length is
    known to end where it should; ``validator``: a strong ETag or ""; ``etag``: unquoted, weak or not."""

    size: int | None
    bounded: bool
    validator: str
    etag: str


@dataclass(frozen=True, slots=True)
class Restart:
    """The server ignores ranges: the body is the file from its first byte."""

    reason: str


@dataclass(frozen=True, slots=True)
class Relocate:
    """Ask the source for a new location; how often, is the caller's to bound."""

    cause: Cause
    reason: str


@dataclass(frozen=True, slots=True)
class Wait:
    """The host is busy; ``seconds``: the pause it asks for, None = it does not say."""

    seconds: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Fail:
    """No other attempt can do better. ``reason``: for people, with what the server said."""

    cause: Cause
    reason: str


Verdict = Accept | Restart | Relocate | Wait | Fail


def judge(asked: Asked, status: int, headers: Mapping[str, str], now: float) -> Verdict:
    """What to do with a response; ``headers`` have lower-case names, ``now``: seconds since the epoch."""
    if status in BUSY:
        return Wait(asked_pause(headers, now), f"HTTP {status}")
    if status in _RELOCATING:
        return Relocate(_RELOCATING[status], f"HTTP {status}")
    if status not in (200, 206):
        return Fail(Cause.MISSING if status in (404, 410) else Cause.REFUSED, f"HTTP {status}")
    return _content(asked, status, headers)


def _content(asked: Asked, status: int, headers: Mapping[str, str]) -> Verdict:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in _MARKUP and not asked.markup:
        return Fail(Cause.MARKUP, f"a page of type {kind} in place of the file")
    if status == 200 and asked.ranged:
        return Restart("HTTP 200 to a range request")
    validator = strong_validator(headers.get("etag", ""))
    if asked.validator and validator and validator != asked.validator:
        return Relocate(Cause.CHANGED, "its ETag is another than before")
    return _whole(asked, headers) if status == 200 else _part(asked, kind, headers)


def _whole(asked: Asked, headers: Mapping[str, str]) -> Verdict:
    length = _number(headers.get("content-length", ""))
    if asked.size is not None and length is not None and length != asked.size:
        return Fail(Cause.MISLED, f"it sends {length} bytes where the listing says {asked.size}")
    return _accept(asked.size if asked.size is not None else length, length is not None, headers)


def _part(asked: Asked, kind: str, headers: Mapping[str, str]) -> Verdict:
    text = headers.get("content-range", "")
    if kind == "multipart/byteranges":
        return Fail(Cause.MISLED, "it answers one range with several")
    found = parse_content_range(text)
    if found is None:
        return Fail(Cause.MISLED, f"no usable Content-Range: “{display(text, 80)}”")
    size = asked.size if asked.size is not None else found.total
    end = asked.end if asked.end is not None else size
    if found.start != asked.start or (end is not None and found.end != end):
        return Fail(Cause.MISLED, f"it sends “{display(text, 80)}” for bytes {asked.start}-{_last(end)}")
    if found.total is not None and size is not None and found.total != size:
        return Fail(Cause.MISLED, f"it has {found.total} bytes where {size} were expected")
    length = _number(headers.get("content-length", ""))
    if length is not None and length != found.end - found.start:
        return Fail(Cause.MISLED, "Content-Length and Content-Range disagree")
    return _accept(size, length is not None, headers)


def _accept(size: int | None, bounded: bool, headers: Mapping[str, str]) -> Accept:
    etag = headers.get("etag", "").strip()
    return Accept(size, bounded, strong_validator(etag), etag.removeprefix("W/").strip('"'))


def _last(end: int | None) -> str:
    return "" if end is None else str(end - 1)


def _number(text: str) -> int | None:
    return int(text) if _NUMBER.fullmatch(text.strip()) else None


def strong_validator(etag: str) -> str:
    """The ETag if it is a strong one (RFC 9110, 8.8.1), else ""."""
    text = etag.strip()
    return text if len(text) > 2 and text[0] == text[-1] == '"' else ""


def parse_content_range(text: str) -> ContentRange | None:
    """A satisfied ``bytes a-b/total``; None for anything else, and for a range that contradicts itself."""
    found = _CONTENT_RANGE.fullmatch(text.strip())
    if not found:
        return None
    start, last = int(found[1]), int(found[2])
    total = None if found[3] == "*" else int(found[3])
    if last < start or (total is not None and last >= total):
        return None
    return ContentRange(start, last + 1, total)


def gaps(size: int, present: Iterable[Span]) -> tuple[Span, ...]:
    """What of [0, size) no span of ``present`` covers, in order."""
    missing: list[Span] = []
    position = 0
    for start, end in sorted(present):
        if start > position:
            missing.append((position, min(start, size)))
        position = max(position, end)
    if position < size:
        missing.append((position, size))
    return tuple(span for span in missing if span[0] < span[1])


def disjoint(spans: Iterable[Span], size: int) -> tuple[Span, ...]:
    """Those of ``spans`` that lie within [0, size) and do not overlap an earlier one, in order."""
    kept: list[Span] = []
    for start, end in sorted(set(spans)):
        if 0 <= (kept[-1][1] if kept else 0) <= start < end <= size:
            kept.append((start, end))
    return tuple(kept)


def first_segment(span: Span, grain: int) -> Span:
    """The head of ``span`` up to the next multiple of ``grain`` bytes."""
    start, end = span
    return start, min(end, (start // grain + 1) * grain)
