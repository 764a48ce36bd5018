"""What is new to show, and how it is put into words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from nimpull.core.events import Event, Note, Phase, Planned, Waiting
from nimpull.core.names import display
from nimpull.core.report import ProgressSummary
from nimpull.core.units import show_bytes, show_count, show_seconds


@dataclass(frozen=True, slots=True)
class Update:
    """``events``: each with its time (since the epoch), without bytes and repeated pauses; ``dropped``: how
    many before them were dropped unread. ``due``: an interval is over; ``last``: the run is.
    """

    events: tuple[tuple[float, Event], ...]
    dropped: int
    progress: ProgressSummary
    time: float
    due: bool
    last: bool


class View(Protocol):
    """One way to show a run; used by the writing thread alone, so it may block. ``close``: the last call."""

    def show(self, update: Update) -> None: ...

    def close(self) -> None:
        return  # views of lines hold nothing back


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
