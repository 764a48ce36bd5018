"""Which bytes are asked for next: events in, decisions out, without a clock, a socket or a thread.

Large files come largest first, each in segments: one after the other over one connection, or several at a
time where there are connections to spare. None of them is further than a window ahead of the file's hash.
Small files come whole. The one thread that has the connections tells what happened, and carries out what
:meth:`Schedule.next` says.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from nimpull.core.connections import SHARING, ConnectionCount, Laggards, Reading, SmallCount
from nimpull.core.limits import MIB, FetchLimits
from nimpull.core.ranges import Span

_LEAST_SEGMENT: Final = MIB  # bytes; below, the cost of a request shows
_UNKNOWN: Final = 1 << 62  # bytes: a file whose size is not known may be the largest


@dataclass(slots=True, eq=False)
class Segment:
    """Bytes [start, end) of a file, asked for in one request, and in further ones where that broke off.

    ``position``: the next byte that is missing; ``end``: None for all that comes, of a file of unknown size.
    ``asked``: where the open response ends. ``not_before``: when it may be asked for (monotonic seconds).
    """

    file: LargeFile
    start: int
    end: int | None
    position: int = field(init=False)
    asked: int | None = field(init=False)
    not_before: float = 0.0
    held_back: float = 0.0  # seconds of waiting for a buffer
    began: float = 0.0
    held_since: float | None = None

    def __post_init__(self) -> None:
        self.position, self.asked = self.start, self.end

    # -- see connections.Flow ----------------------------------------------------------------------------

    @property
    def received(self) -> int:
        return self.position - self.start

    @property
    def host(self) -> str:
        return self.file.host

    def waited(self, now: float) -> float:
        held = self.held_back + (now - self.held_since if self.held_since is not None else 0.0)
        return now - self.began - held

    def hold(self, now: float) -> None:
        """It does not wait for the network from now on, but for a buffer or a connection."""
        if self.held_since is None:
            self.held_since = now

    def release(self, now: float) -> None:
        if self.held_since is not None:
            self.held_back += now - self.held_since
            self.held_since = None


@dataclass(slots=True, eq=False)
class LargeFile:
    """``front``: the file is hashed up to here; ``missing``: what nobody was told to ask for, in order;
    ``under_way``: segments that are not whole yet, with a connection or waiting for one.

    ``ranged``: the host answers to ranges, as far as one knows. ``shared``: several connections bring it.
    ``not_before``: when it may be asked for (monotonic seconds).
    """

    key: int
    size: int | None
    front: int = 0
    window: int = 0
    missing: list[Span] = field(default_factory=list)
    under_way: list[Segment] = field(default_factory=list)
    host: str = ""
    not_before: float = 0.0
    accepted: bool = False
    ranged: bool = True
    shared: bool = False

    @property
    def remaining(self) -> int:
        rest = sum((each.end or _UNKNOWN) - each.position for each in self.under_way)
        return rest + sum(end - start for start, end in self.missing)

    def is_first(self, segment: Segment) -> bool:
        """Whether no byte before its next one is missing."""
        before = [each.position for each in self.under_way if each is not segment]
        before += [start for start, _ in self.missing[:1]]
        return all(segment.position < each for each in before)

    def in_window(self, position: int) -> bool:
        return position < self.front + self.window


@dataclass(frozen=True, slots=True)
class Begin:
    """See what an earlier run left of the large file ``key``, and where it is: then tell ``begun``."""

    key: int


@dataclass(frozen=True, slots=True)
class FetchSegment:
    """Ask for bytes [position, end) of ``segment``."""

    segment: Segment


@dataclass(frozen=True, slots=True)
class FetchSmall:
    """Ask for the small file ``key``."""

    key: int


Decision = Begin | FetchSegment | FetchSmall
Left = Callable[[str], float]  # seconds until a host may be asked


class Schedule:
    """All times are monotonic seconds of one clock; keys are the caller's."""

    def __init__(self, limits: FetchLimits) -> None:
        self._limits = limits
        self._most = max(limits.connections, limits.small_connections)
        self._most_shared = limits.small_connections * SHARING  # small files at one time, over HTTP/2
        self._count = ConnectionCount(min(limits.start, limits.connections), limits.connections)
        self._small_count = SmallCount(limits.small_connections)
        self._laggards = Laggards()
        self._queue: list[tuple[int, int]] = []  # (minus size, key), largest first
        self._files: dict[int, LargeFile] = {}  # begun
        self._connected: set[Segment] = set()
        self._beginning: set[int] = set()
        self._small: dict[str, deque[tuple[int, int]]] = {}  # (key, size) by host
        self._small_resting: list[tuple[float, int, int, str]] = []  # (not before, key, size, host)
        self._small_active: dict[int, int] = {}  # key -> size
        self._small_bytes = 0
        self._received = 0  # bytes of what is not under way any more

    # -- what there is to do -----------------------------------------------------------------------------

    def add_large(self, key: int, size: int | None) -> None:
        insort(self._queue, (-(_UNKNOWN if size is None else size), key))

    def add_small(self, key: int, size: int, host: str, not_before: float = 0.0) -> None:
        if not_before:
            insort(self._small_resting, (not_before, key, size, host))
        else:
            self._small.setdefault(host, deque()).append((key, size))

    @property
    def idle(self) -> bool:
        """Nothing is queued or under way."""
        return not (self._queue or self._files or self._beginning or self._small_active or self.small_waiting)

    @property
    def small_waiting(self) -> int:
        return sum(map(len, self._small.values())) + len(self._small_resting)

    @property
    def small_wanted(self) -> int:
        """How many small files should be at hand: there are connections for as many and more."""
        return 2 * self._small_count.most

    @property
    def large_waiting(self) -> int:
        return len(self._queue)

    @property
    def connections(self) -> int:
        """That large files may have now."""
        return self._count.allowed

    # -- large files ---------------------------------------------------------------------------------------

    def begun(self, key: int, size: int | None, missing: list[Span], host: str, *, ranged: bool) -> LargeFile:
        """``missing``: in order; of a file of unknown size all is, whatever it says."""
        self._beginning.discard(key)
        window = self._limits.window(_UNKNOWN if size is None else size)
        file = LargeFile(key, size, window=window, missing=missing, host=host, ranged=ranged)
        file.shared = ranged and size is not None and not self._queue and self._spare > 1
        self._files[key] = file
        return file

    def accepted(self, segment: Segment, size: int | None, host: str) -> None:
        """The response is good: others may join. ``size``: of the whole file."""
        file = segment.file
        file.accepted, file.host = True, host
        if file.size is None and size is not None:
            file.size = size
            file.window = self._limits.window(size)
            segment.end = segment.asked = size

    def whole(self, segment: Segment) -> None:
        """All its bytes are here."""
        self._received += segment.received
        self._connected.discard(segment)
        segment.file.under_way.remove(segment)

    def broke_off(self, segment: Segment, now: float, pause: float = 0.0) -> None:
        """Its connection is gone; the rest is asked for again ``pause`` seconds from now."""
        self._connected.discard(segment)
        segment.not_before = now + pause
        segment.hold(now)

    def hashed(self, file: LargeFile, front: int) -> None:
        file.front = front

    def lost(self, file: LargeFile, span: Span) -> None:
        """What an earlier run left there is not what it was: it comes again."""
        insort(file.missing, span)

    def dropped(self, file: LargeFile) -> None:
        """It is complete, or gone, or starts over."""
        self._files.pop(file.key, None)
        self._received += sum(each.received for each in file.under_way)
        self._connected.difference_update(file.under_way)
        file.under_way.clear()
        file.missing.clear()

    def beginning(self, key: int) -> None:
        """It begins anew."""
        self._beginning.add(key)

    def unbegun(self, key: int) -> None:
        """It will not begin."""
        self._beginning.discard(key)

    # -- small files ---------------------------------------------------------------------------------------

    def small_shared(self) -> None:
        """Requests for small files share connections: several times as many are worth it."""
        self._small_count.shared()
        self._most = max(self._most, self._most_shared)

    def small_ended(self, key: int, seconds: float | None) -> None:
        """All its bytes came, ``seconds`` after they were asked for, and take memory until ``small_stored``;
        None = they did not."""
        size = self._small_active.pop(key)
        if seconds is None:
            self._small_bytes -= size
        else:
            self._received += size
            self._small_count.answered(seconds)

    def small_stored(self, size: int) -> None:
        """Its ``size`` bytes are on disk, or were no good."""
        self._small_bytes -= size

    # -- decisions -----------------------------------------------------------------------------------------

    def refused(self, now: float) -> None:
        """A host asked for a pause."""
        self._count.refused(now)
        self._small_count.refused(now)

    def measure(self, now: float, cpu: float) -> None:
        """``cpu``: seconds the process used so far. To be called several times a second."""
        under_way = (each.received for file in self._files.values() for each in file.under_way)
        self._count.look(Reading(now, self._received + sum(under_way), cpu), self._more_to_do())

    def find_laggard(self, now: float) -> Segment | None:
        """A connection to drop now, so that another one brings the rest; None = all do their part."""
        found = self._laggards.find(self._connected, now)
        return found if isinstance(found, Segment) else None

    def next(self, now: float, left: Left) -> Decision | None:
        """What to do now, None = nothing before the next event."""
        if len(self._connected) + len(self._beginning) + len(self._small_active) >= self._most:
            return None
        return self._next_small(now, left) or self._next_large(now, left)

    def wakes(self, now: float, left: Left) -> float | None:
        """When ``next`` may say something that it does not say now, though nothing happens until then."""
        times = [each.not_before for each in self._resting()]
        times += [max(file.not_before, now + left(file.host)) for file in self._files.values()]
        times += [now + left(host) for host, waiting in self._small.items() if waiting]
        times += [when for when, *_ in self._small_resting]
        return min((each for each in times if each > now), default=None)

    # -- inside --------------------------------------------------------------------------------------------

    @property
    def _spare(self) -> int:
        """Connections that no large file has yet."""
        return self._count.allowed - len(self._connected) - len(self._beginning)

    def _next_small(self, now: float, left: Left) -> Decision | None:
        if len(self._small_active) >= self._small_count.allowed(now):
            return None
        while self._small_resting and self._small_resting[0][0] <= now:
            self.add_small(*self._small_resting.pop(0)[1:])
        for host, waiting in self._small.items():
            if not waiting or left(host) > 0:
                continue
            key, size = waiting[0]
            if self._small_bytes and self._small_bytes + size > self._limits.pool:
                return None
            waiting.popleft()
            self._small_active[key] = size
            self._small_bytes += size
            self._small_count.asked(now)
            return FetchSmall(key)
        return None

    def _next_large(self, now: float, left: Left) -> Decision | None:
        if self._spare <= 0 or (self._most > 1 and self._crowds_out_small()):
            return None
        files = self._files.values()
        free = [file for file in files if file.not_before <= now and left(file.host) <= 0]
        for segment in self._resting():
            if segment.file in free and segment.not_before <= now:
                return self._connect(segment, now)
        if found := next((each for each in free if not each.under_way and _at_hand(each)), None):
            return self._connect(self._take(found), now)
        if self._queue:
            _, key = self._queue.pop(0)
            self._beginning.add(key)
            return Begin(key)
        joinable = [file for file in free if self._joinable(file)]
        if not joinable:
            return None
        file = max(joinable, key=lambda each: each.remaining / (len(each.under_way) + 1))
        return self._connect(self._take(file), now)

    def _crowds_out_small(self) -> bool:
        """Small files must not all come last: a quarter of the connections is theirs while some wait."""
        large = len(self._connected) + len(self._beginning)
        return bool(self.small_waiting) and large >= max(1, self._most * 3 // 4)

    def _more_to_do(self) -> bool:
        return bool(self._queue) or any(self._joinable(file) for file in self._files.values())

    def _resting(self) -> Iterator[Segment]:
        for file in self._files.values():
            for segment in file.under_way:
                if segment not in self._connected:
                    yield segment

    def _joinable(self, file: LargeFile) -> bool:
        """Not where all that work on it rest after a failure: their pause is the host's due."""
        working = any(each in self._connected for each in file.under_way)
        if not (file.accepted and file.ranged and working) or file.size is None:
            return False
        if file.missing:
            return file.in_window(file.missing[0][0])
        return self._cut(file) is not None

    def _cut(self, file: LargeFile) -> tuple[Segment, int] | None:
        """A segment that another connection can have a part of, and where that part begins."""
        working = [each for each in file.under_way if each in self._connected]
        longest = max(working, key=lambda each: (each.end or 0) - each.position)
        grain = self._grain(file, len(file.under_way) + 1)
        at = (longest.position // grain + 2) * grain
        if longest.end is None or longest.end - at < grain or not file.in_window(at):
            return None
        return longest, at

    def _take(self, file: LargeFile) -> Segment:
        """The next segment of a file that has one at hand."""
        if file.under_way:
            file.shared = True
        if not file.missing and file.size is not None and (cut := self._cut(file)):
            longest, at = cut
            file.missing = [(at, longest.end or at)]
            longest.end = at
        if file.size is None or not file.ranged:
            segment = Segment(file, 0, file.size)
            file.missing.clear()
        else:
            grain = self._grain(file, len(file.under_way) + 1)
            start, end = file.missing.pop(0)
            if file.shared:
                stop = min(end, (start // grain + 1) * grain)
                if stop < end:
                    file.missing.insert(0, (stop, end))
                end = stop
            segment = Segment(file, start, end)
        file.under_way.append(segment)
        return segment

    def _grain(self, file: LargeFile, connections: int) -> int:
        """Bytes of one segment of several: all of them fit the window, the last ones end at one time."""
        expected = max(connections, self._count.allowed // max(1, len(self._files)), 2)
        share = file.window * 3 // 4 // expected
        left = file.remaining // (2 * expected)
        chunk = self._limits.chunk * (2 if self._count.idle else 1)  # then requests are what costs
        return max(min(_LEAST_SEGMENT, self._limits.chunk), min(chunk, share, left) // MIB * MIB)

    def _connect(self, segment: Segment, now: float) -> FetchSegment:
        segment.asked = segment.end
        segment.began = segment.began or now
        segment.release(now)
        self._connected.add(segment)
        return FetchSegment(segment)


def _at_hand(file: LargeFile) -> bool:
    """Whether a file that no connection works on has bytes to ask for."""
    if file.size is None or not file.ranged:
        return not file.accepted
    return bool(file.missing) and file.in_window(file.missing[0][0])
