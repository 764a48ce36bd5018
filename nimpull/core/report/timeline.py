"""When what came, and where the time went: rates, pauses and phases of one run, in seconds since it began."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

#: Of a phase as it is told, the word for it in ``secondsByPhase``; others have their own first word.
_PHASES: Final = {"listing": "list", "checking": "check", "fetching": "fetch", "waiting": "wait"}


@dataclass(frozen=True, slots=True)
class RateLine:
    """Bytes per second, one for each interval. ``connection``: None = all of that host."""

    host: str
    rates: tuple[int, ...]
    connection: int | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """From ``at`` on, for ``seconds`` (0 = tried again at once); ``times``: so often in that interval."""

    at: float
    seconds: float
    reason: str
    times: int = 1


@dataclass(frozen=True, slots=True)
class PhaseSpan:
    phase: str
    at: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """``rates``: bytes per second that came over the network in each ``interval`` (seconds).

    ``connections`` have an interval of their own, a coarser one. ``spent``: seconds of all workers together,
    by their work (``hash``, ``sync``).
    """

    interval: float = 1.0
    rates: tuple[int, ...] = ()
    hosts: tuple[RateLine, ...] = ()
    connection_interval: float = 1.0
    connections: tuple[RateLine, ...] = ()
    pauses: tuple[Pause, ...] = ()
    phases: tuple[PhaseSpan, ...] = ()
    spent: Mapping[str, float] = field(default_factory=dict)
    retries: int = 0


def seconds_by_phase(timeline: Timeline) -> dict[str, float]:
    """``list``, ``check``, ``fetch`` and others are wall time; ``wait``: of ``fetch``, while a pause was on
    and no byte came; ``hash`` and ``sync``: work of all workers during it.
    """
    seconds: dict[str, float] = {}
    for span in timeline.phases:
        first = span.phase.partition(" ")[0]
        name = _PHASES.get(first, first)
        seconds[name] = seconds.get(name, 0.0) + span.seconds
    paused = {
        number
        for pause in timeline.pauses
        for number in range(
            int(pause.at / timeline.interval), int((pause.at + pause.seconds) / timeline.interval)
        )
        if number < len(timeline.rates) and not timeline.rates[number]
    }
    if paused:
        seconds["wait"] = seconds.get("wait", 0.0) + len(paused) * timeline.interval
    for name, spent in timeline.spent.items():
        seconds[name] = seconds.get(name, 0.0) + spent
    return seconds
