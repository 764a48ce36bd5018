"""The body of an answer while it is still on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

import urllib3

_BLOCK: Final = 1 << 20  # bytes per read of a body that urllib3 unframes
_SKIPPED: Final = 16 << 10  # bytes of a body that nobody wants, read to keep its connection


class Stream(Protocol):
    """What a body is read from. Raises what the wire raises."""

    def ahead(self, view: memoryview) -> int:
        """Bytes that came with the head, as far as they fit: no waiting."""
        ...

    def receive(self, view: memoryview) -> int | None:
        """Some of the bytes after those; 0 = the end, None = none within a tick."""
        ...

    def at_end(self, *, bounded: bool) -> bool:
        """Whether nothing of the answer is left; ``bounded``: every byte that its head tells of was read."""
        ...

    def abort(self) -> None:
        """From another thread: a ``receive`` under way ends, where the socket can be reached."""
        ...

    def release(self) -> None:
        """The connection may carry the next request."""
        ...

    def drop(self) -> None:
        """Close the connection: what is left of the body must not reach the next request on it."""
        ...


class Pooled:
    """A response of urllib3, by its public interface alone."""

    def __init__(self, raw: urllib3.BaseHTTPResponse) -> None:
        self.raw = raw

    def ahead(self, view: memoryview) -> int:  # noqa: ARG002 - urllib3 shows nothing of it
        return 0

    def receive(self, view: memoryview) -> int | None:
        block = self.raw.read1(min(len(view), _BLOCK), decode_content=False)
        view[: len(block)] = block
        return len(block)

    def at_end(self, *, bounded: bool) -> bool:  # noqa: ARG002 - urllib3 knows its framing
        return not self.raw.read1(1, decode_content=False)

    def abort(self) -> None:
        """Without effect: urllib3 does not show its socket."""

    def release(self) -> None:
        self.raw.release_conn()

    def drop(self) -> None:
        self.raw.close()
        self.raw.release_conn()


def content_length(status: int, headers: Mapping[str, str]) -> int | None:
    """Bytes of the body, None where the head does not say (chunked, or until the close)."""
    if status in (204, 304) or status < 200:
        return 0
    if "transfer-encoding" in headers:
        return None
    text = headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() else None


def let_go(stream: Stream, length: int | None) -> None:
    """Nobody wants the body: keep the connection where that costs no more than what has come already."""
    if length is not None and length <= _SKIPPED:
        view = memoryview(bytearray(length))
        view = view[stream.ahead(view) :]
        while view and (count := stream.receive(view)):
            view = view[count:]
        if not view and stream.at_end(bounded=True):
            stream.release()
            return
    stream.drop()
