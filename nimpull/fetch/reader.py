"""Reading a file's bytes in order over as many responses as it takes."""

from __future__ import annotations

from collections.abc import Callable

from nimpull.core.ports import Cancel
from nimpull.core.ranges import Cause
from nimpull.errors import NetworkError
from nimpull.fetch.exchange import Exchange, Opened
from nimpull.fetch.failures import Patience, Stopped, failure

_PROGRESS = 64 << 10  # bytes; fewer, unless they are the last, are the trickle of a dying connection


class Reader:
    """One connection's view of a file: ``fill`` continues the open response, or opens another.

    ``progressed``: told the position after reads that brought bytes worth the name.
    """

    def __init__(
        self, exchange: Exchange, patience: Patience, stop: Cancel, progressed: Callable[[int], None]
    ) -> None:
        self._exchange = exchange
        self._patience = patience
        self._stop = stop
        self._progressed = progressed
        self._opened: Opened | None = None
        self._position = self._start = 0
        self._end: int | None = None
        self._dropped = False
        self._untold = 0

    def drop(self) -> None:
        """From another thread: let this connection go, and ask for the rest on another."""
        opened = self._opened
        if opened is not None:
            self._dropped = True
            opened.body.abort()

    def open(self, start: int, end: int | None, size: int | None) -> Opened:
        """Ask for bytes [start, end). Raises what :meth:`Exchange.open` raises."""
        self.close()
        opened = self._exchange.open(start, end, size, self._patience)
        self._opened, self._position, self._start = opened, start, start
        self._end = end if end is not None else opened.accept.size
        return opened

    def holds(self, position: int) -> bool:
        """Whether the open response goes on at ``position``."""
        return self._opened is not None and self._position == position and self._end != position

    def fill(self, view: memoryview, position: int, end: int, size: int) -> None:
        """All of ``view`` with the bytes at ``position``; a new response is asked for up to ``end``."""
        filled = 0
        while filled < len(view):
            if self._stop.is_set():
                raise Stopped
            if not self.holds(position + filled):
                whole = position + filled == 0 and end == size
                self.open(position + filled, None if whole else end, size)
            filled += self._read(view[filled:], position + filled)
        if self._position == self._end:
            self.finish()

    def read_some(self, view: memoryview) -> int:
        """What comes next of the open response; 0 = its end. No retry."""
        if self._opened is None:
            raise Stopped
        if self._stop.is_set():
            raise Stopped
        count = self._opened.body.readinto(view)
        self._position += count
        self._untold += count
        if self._untold >= _PROGRESS or (count and self._position == self._end):
            self._untold = 0
            self._progressed(self._position)
        return count

    def _read(self, view: memoryview, position: int) -> int:
        error: NetworkError | None = None
        try:
            count = self.read_some(view)
            if count:
                return count
        except NetworkError as caught:
            error = caught
        host = self._exchange.host
        self.close()
        if self._dropped:
            self._dropped = False
            return 0
        self._patience.wait_or_raise(
            error
            or NetworkError(
                f"{host}: the response ended early, at byte {position}",
                hint="Something between here and the registry cuts connections. Run again later.",
            ),
            brought=self._position - self._start,
        )
        return 0

    def finish(self) -> None:
        """All that was asked for is here: give the connection back. More bytes are IntegrityError."""
        opened, self._opened = self._opened, None
        if opened is None:
            return
        if opened.accept.bounded:
            opened.body.close(reuse=True)
            return
        try:
            more = opened.body.readinto(memoryview(bytearray(1)))
        except NetworkError:
            more = 0
        opened.body.close(reuse=not more)
        if more:
            raise failure(
                Cause.MISLED, "it sends more bytes than the file has", self._exchange.artifact, opened.host
            )

    def close(self) -> None:
        if self._opened is not None:
            self._opened.body.close()
            self._opened = None
