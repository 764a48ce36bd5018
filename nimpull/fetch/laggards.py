"""Connections that are far slower than their siblings: another one may be luckier."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Protocol

_WINDOW = 5.0  # seconds of waiting for bytes that a speed is measured over, at least
_SIBLINGS = 2  # to the same host: fewer say little about what is usual
_SHARE = 5  # so many times slower than the median of its siblings
_SHARE_OF_ONE = 25  # than its only sibling


class Connection(Protocol):
    """One worker's open response."""

    @property
    def host(self) -> str: ...
    def flow(self, now: float) -> tuple[int, float]:
        """Bytes received and seconds waited for them, since the worker began. Never falls."""
        ...

    def drop(self) -> None:
        """Ask for the rest of the range on another connection."""
        ...


@dataclass(slots=True)
class _Watched:
    received: int
    waited: float
    window: float = _WINDOW
    speed: float | None = None


class Laggards:
    """Looks at all connections every so often and drops one that lags.

    The time a worker spends on disk and hash does not count. A window doubles with each drop: where every
    new connection is as slow, dropping them costs less and less.
    """

    def __init__(self) -> None:
        self._watched: dict[Connection, _Watched] = {}
        self._usual: dict[str, float] = {}  # bytes per second of a host's connections, as last compared

    def look(self, connections: Iterable[Connection], now: float) -> Connection | None:
        """The connection that was dropped."""
        present = list(connections)
        for gone in self._watched.keys() - set(present):
            del self._watched[gone]
        speeds: dict[str, list[tuple[float, Connection]]] = defaultdict(list)
        for each in present:
            speed = self._speed(each, now)
            if speed is not None:
                speeds[each.host].append((speed, each))
        for host, measured in speeds.items():
            slowest, connection = min(measured, key=lambda each: each[0])
            others = [speed for speed, each in measured if each is not connection]
            share = _SHARE if len(others) >= _SIBLINGS else _SHARE_OF_ONE
            # the others may be far ahead by now, and have left: one drop by what they brought
            usual = median(others) if others else self._usual.pop(host, 0.0)
            if slowest * share < usual:
                watched = self._watched[connection]
                watched.window *= 2
                watched.speed = None
                connection.drop()
                return connection
            if usual:
                self._usual[host] = usual
        return None

    def _speed(self, connection: Connection, now: float) -> float | None:
        """Bytes per second of the last full window; None before there was one."""
        received, waited = connection.flow(now)
        watched = self._watched.setdefault(connection, _Watched(received, waited))
        elapsed = waited - watched.waited
        if elapsed >= watched.window:
            watched.speed = (received - watched.received) / elapsed
            watched.received, watched.waited = received, waited
        return watched.speed
