"""What happens during a run, as values: the fetch engine tells, progress shows."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from nimpull.core.artifacts import Outcome


class Level(IntEnum):
    """How much of a run is logged: what is at or above it."""

    DEBUG = 10
    INFO = 20
    WARNING = 30
    ERROR = 40


@dataclass(frozen=True, slots=True)
class Phase:
    """A new step of the job began ("listing", "fetching", "verifying", …)."""

    name: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Planned:
    """The work is known: ``files`` and bytes in ``total``, of which ``present`` bytes need no fetch."""

    files: int
    total: int
    present: int
    files_present: int = 0


@dataclass(frozen=True, slots=True)
class Advanced:
    """``count`` bytes arrived and were written (negative: a chunk was dropped and will come again).

    ``connection``: a small number that is one connection's as long as it is open, None = unknown;
    ``host``: where it leads.
    """

    count: int
    connection: int | None = None
    host: str = ""


@dataclass(frozen=True, slots=True)
class Finished:
    """One artifact is committed."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Waiting:
    """A worker or host pauses ``seconds`` before it goes on; ``reason`` is safe to print."""

    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Spent:
    """A worker was busy with ``work`` for ``seconds``, beside others: no wall time.

    ``work``: ``hash`` (also of what an earlier run left) or ``sync`` (until bytes or names are durable). Told
    once for a file or a batch, not for each block. Pauses are :class:`Waiting`.
    """

    work: Literal["hash", "sync"]
    seconds: float


@dataclass(frozen=True, slots=True)
class Note:
    """Something a reader of the log should know; ``text`` is safe to print. ``level``: info or warning."""

    text: str
    level: str = "info"


def level_of(event: Event) -> Level:
    """A pause is a warning: it has a reason that someone may want to know."""
    if isinstance(event, Waiting):
        return Level.WARNING
    return Level.WARNING if isinstance(event, Note) and event.level == "warning" else Level.INFO


Event = Phase | Planned | Advanced | Finished | Waiting | Spent | Note
