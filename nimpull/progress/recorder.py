"""The time line of a run, recorded from its events within a bound, however long it runs."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from nimpull.core.events import Advanced, Event, Phase, Spent, Waiting
from nimpull.core.report.contents import Pause, PhaseSpan, RateLine, Timeline

MOST_SAMPLES: Final = 600  # one a second for ten minutes; then one for two seconds, and so on
MOST_COLUMNS: Final = 120  # samples of a connection in the report: a line of a small picture
MOST_CONNECTIONS: Final = 32  # in the report, those that brought the most
MOST_PAUSES: Final = 200
MOST_PHASES: Final = 100
MOST_NAMES: Final = 256  # hosts and connections that are told apart


class TimelineRecorder:
    """Not safe for threads by itself. ``now``: seconds of one monotonic clock; ``began``: of its 0."""

    def __init__(self, began: float) -> None:
        self._began = began
        self._interval = 1
        self._all: list[int] = []
        self._hosts: dict[str, list[int]] = {}
        self._connections: dict[int, list[int]] = {}
        self._host_of: dict[int, str] = {}
        self._pauses: list[Pause] = []
        self._phases: list[tuple[str, float]] = [("preparing", 0.0)]
        self._spent: dict[str, float] = {}
        self.retries = 0

    def count(self, event: Event, now: float) -> None:
        at = max(0.0, now - self._began)
        match event:
            case Advanced(count, connection, host) if count > 0:  # what is taken back had come all the same
                self._add(count, connection, host, at)
            case Waiting(reason, seconds):
                self.retries += 1
                self._pause(reason, seconds, at)
            case Phase(name) if name != self._phases[-1][0] and len(self._phases) < MOST_PHASES:
                self._phases.append((name, at))
            case Spent(work, seconds):
                self._spent[work] = self._spent.get(work, 0.0) + seconds

    def _add(self, count: int, connection: int | None, host: str, at: float) -> None:
        while at >= self._interval * MOST_SAMPLES:
            self._halve()
        number = int(at / self._interval)
        _put(self._all, number, count)
        if host and (host in self._hosts or len(self._hosts) < MOST_NAMES):
            _put(self._hosts.setdefault(host, []), number, count)
        if connection is not None and (
            connection in self._connections or len(self._connections) < MOST_NAMES
        ):
            _put(self._connections.setdefault(connection, []), number, count)
            self._host_of[connection] = host

    def _halve(self) -> None:
        self._interval *= 2
        for line in (self._all, *self._hosts.values(), *self._connections.values()):
            # Half as many samples of twice the length: the bound holds however long the run takes.
            line[:] = _grouped(line, 2)

    def _pause(self, reason: str, seconds: float, at: float) -> None:
        """Many connections that meet the same at the same time are one pause."""
        for number in range(len(self._pauses) - 1, max(-1, len(self._pauses) - 8), -1):
            pause = self._pauses[number]
            if pause.reason == reason and at - pause.at < self._interval:
                # They wait side by side, not one after the other.
                longest = max(pause.seconds, seconds)
                self._pauses[number] = Pause(pause.at, longest, reason, pause.times + 1)
                return
        if len(self._pauses) < MOST_PAUSES:
            self._pauses.append(Pause(at, seconds, reason))

    def timeline(self, now: float) -> Timeline:
        ended = max(0.0, now - self._began)
        while ended >= self._interval * MOST_SAMPLES:
            self._halve()
        length = int(ended / self._interval) + 1
        step = -(-length // MOST_COLUMNS)
        most = sorted(self._connections, key=lambda each: -sum(self._connections[each]))[:MOST_CONNECTIONS]
        spans = [*self._phases, ("", ended)]
        return Timeline(
            self._interval,
            self._rates(self._all, length, 1),
            tuple(RateLine(host, self._rates(line, length, 1)) for host, line in self._hosts.items()),
            self._interval * step,
            tuple(
                RateLine(self._host_of[each], self._rates(self._connections[each], length, step), each)
                for each in sorted(most)
            ),
            tuple(self._pauses),
            tuple(PhaseSpan(name, at, until - at) for (name, at), (_, until) in pairwise(spans)),
            dict(self._spent),
            self.retries,
        )

    def _rates(self, line: list[int], length: int, step: int) -> tuple[int, ...]:
        whole = line + [0] * (length - len(line))
        return tuple(count // (self._interval * step) for count in _grouped(whole, step))


def _put(line: list[int], number: int, count: int) -> None:
    line.extend([0] * (number + 1 - len(line)))
    line[number] += count


def _grouped(line: list[int], size: int) -> list[int]:
    return [sum(line[number : number + size]) for number in range(0, len(line), size)]
