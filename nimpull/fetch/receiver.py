"""The bytes of one response for one segment of a large file: from libcurl into buffers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nimpull.core.artifacts import Location
from nimpull.core.ports import PAUSE, STOP, Response
from nimpull.core.ranges import Accept, Verdict
from nimpull.core.reply import Head
from nimpull.core.schedule import Segment

if TYPE_CHECKING:
    from nimpull.fetch.large import LargeTransfer


class SegmentReceiver:
    """Implements :class:`nimpull.core.ports.Receiver`: the bytes of one response for one segment."""

    def __init__(self, transfer: LargeTransfer, segment: Segment, number: int, location: Location) -> None:
        self.segment = segment
        self.number = number  # of its connection
        self.location = location
        self.began = self.told = segment.position
        self.asked = segment.asked
        self.host = ""
        self.verdict: Verdict | None = None
        self.excess = False
        self.response: Response | None = None
        self._transfer = transfer

    @property
    def whole(self) -> bool:
        """Whether the whole file is what it asks for."""
        return self.began == 0 and self.asked == self._transfer.size

    def head(self, head: Head) -> bool:
        self.host = head.url.host
        self.verdict = self._transfer.judge(self, head)
        return isinstance(self.verdict, Accept)

    def data(self, octets: bytes) -> int | None:
        segment, transfer = self.segment, self._transfer
        count = len(octets)
        end, buffer = segment.position + count, transfer.filling.get(segment)
        # 65,000 times a GiB: neither the buffer nor the segment is full with these
        if buffer is not None and end < buffer.stop and (segment.end is None or end < segment.end):
            buffer.memory[segment.position - buffer.start : end - buffer.start] = octets
            buffer.end = segment.position = end
            return None
        if segment.end is not None and count > segment.end - segment.position:
            count = segment.end - segment.position
            self.excess = True
        if count and not transfer.put(segment, octets if not self.excess else octets[:count]):
            transfer.run.hold(self)
            self.excess = False
            return PAUSE
        # one that was cut short, so that another connection brings its end, goes no further
        cut = segment.position == segment.end and self.asked != segment.end
        return STOP if self.excess or cut else None

    def ended(self, error: BaseException | None) -> None:
        self._transfer.ended(self, error)
