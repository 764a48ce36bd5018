"""What the ways to show a run have in common: pace, a bounded backlog, sentences."""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

from nimpull.core.events import Event, Note, Phase, Planned, Waiting
from nimpull.core.names import display
from nimpull.core.reported import Snapshot
from nimpull.core.units import show_bytes, show_count, show_seconds
from nimpull.progress.tally import Tally

BACKLOG: Final = 4 << 20  # characters kept for a slow reader; the oldest lines are dropped and counted


class Sink(Protocol):
    """One way to show a run. Only ``write`` and ``close`` touch the stream: in the writing thread."""

    def tell(self, event: Event, now: float) -> None:
        """Something other than bytes happened. Called under the lock: quick, no writing."""
        ...

    def due(self, tally: Tally, now: float, *, last: bool) -> list[str]:
        """Take what is to be written now. Called under the lock."""
        ...

    def write(self, lines: list[str], snapshot: Snapshot) -> None:
        """Called outside the lock: may block."""
        ...

    def close(self) -> None: ...


class Backlog:
    """Lines for a reader that may be slow: the oldest go first, and are counted."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque()
        self._size = 0
        self._dropped = 0

    def add(self, line: str) -> None:
        self._lines.append(line)
        self._size += len(line)
        while self._size > BACKLOG:
            self._size -= len(self._lines.popleft())
            self._dropped += 1

    def take(self) -> tuple[list[str], int]:
        """The lines, and how many were dropped before them."""
        taken = list(self._lines), self._dropped
        self._lines.clear()
        self._size = self._dropped = 0
        return taken


class Pace:
    """Says when the next line is due, and keeps equal pauses of many workers to one line per interval."""

    def __init__(self, now: float, interval: float) -> None:
        self._interval = interval
        self._next = now + interval
        self._told: dict[str, float] = {}

    def due(self, now: float) -> bool:
        if now < self._next:
            return False
        self._next = now + self._interval
        self._told = {reason: when for reason, when in self._told.items() if now - when < self._interval}
        return True

    def first(self, reason: str, now: float) -> bool:
        if reason in self._told and now - self._told[reason] < self._interval:
            return False
        self._told[reason] = now
        return True


def sentence(event: Event) -> str:
    """An event as a line of a log, "" for one that has no line of its own."""
    match event:
        case Phase(name, detail):
            return f"{display(name)}: {display(detail)}" if detail else display(name)
        case Planned(files, total, present, files_present):
            return (
                f"plan: {show_count(files, 'file')}, {show_bytes(total)}; "
                f"here already: {show_count(files_present, 'file')}, {show_bytes(present)}"
            )
        case Waiting(reason, seconds):
            pause = f"waiting {show_seconds(seconds)}" if seconds else "trying again"
            return f"{pause}: {display(reason)}"
        case Note(text, level):
            return ("warning: " if level == "warning" else "") + display(text, 2000)
        case _:
            return ""


class Quiet:
    """Counts only."""

    def tell(self, event: Event, now: float) -> None:
        """Nobody reads."""

    def due(self, tally: Tally, now: float, *, last: bool) -> list[str]:
        del tally, now, last
        return []

    def write(self, lines: list[str], snapshot: Snapshot) -> None:
        """Nobody reads."""

    def close(self) -> None:
        """Nothing is open."""
