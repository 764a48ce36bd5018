"""What one worker does for one large file: segments of it."""

from __future__ import annotations

from nimpull.core.digest import new_hasher
from nimpull.core.events import Advanced
from nimpull.core.ports import Cancel, Clock, Emit, Ingests
from nimpull.core.ranges import Span
from nimpull.errors import NetworkError, StoreIOError
from nimpull.fetch.failures import Abandoned, RestartNeeded
from nimpull.fetch.limits import MIB
from nimpull.fetch.reader import Reader
from nimpull.fetch.transfer import Transfer

_LEAST_PIECE = MIB // 4
_LONG = 0.5  # seconds for one piece


class Lane:
    """Fetches segments of ``transfer`` until none is to be had. ``buffer``: the worker's own block."""

    def __init__(
        self,
        transfer: Transfer,
        buffer: memoryview,
        ingests: Ingests,
        *,
        clock: Clock,
        stop: Cancel,
        emit: Emit,
    ) -> None:
        self.buffer = buffer
        self._clock = clock
        self._received = 0  # bytes
        self._waited = 0.0  # seconds
        self._waiting: float | None = None  # since when
        self._piece = MIB  # bytes that are received before they are written and told
        self._transfer = transfer
        self._ingests = ingests
        self._stop = stop
        self._emit = emit
        self._reader = Reader(transfer.exchange, transfer.patience, stop, transfer.progressed)

    # -- what the supervisor sees: see laggards.Connection --------------------------------------------------

    @property
    def host(self) -> str:
        return self._transfer.exchange.host

    def flow(self, now: float) -> tuple[int, float]:
        waiting = self._waiting
        return self._received, self._waited + (now - waiting if waiting is not None else 0.0)

    def drop(self) -> None:
        self._reader.drop()

    # -- the worker ----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Raises Stopped, and the NimpullError that ends the file."""
        transfer = self._transfer
        try:
            if not transfer.ready:
                self._lead()
            at: int | None = None
            while segment := transfer.take(at):
                self._fetch(segment)
                at = segment[1]
        except RestartNeeded as needed:
            transfer.ask_restart(needed.reason)
        except Abandoned:
            return
        finally:
            self._reader.close()

    def _lead(self) -> None:
        """The first to come: see what is here, ask for what is not, and open the file to others."""
        transfer = self._transfer
        if not transfer.attached:
            transfer.attach(self._ingests.open(transfer.artifact))
        transfer.exchange.find()
        start = transfer.first_missing()
        if start is None:
            transfer.begin(transfer.size or 0, transfer.ingest.validator)
            return
        size = transfer.size
        end = None if size is None else transfer.lead_end(start)
        accept = self._reader.open(start, None if start == 0 and end == size else end, size).accept
        if transfer.distrusts(accept.validator):
            raise RestartNeeded("the validator of an earlier run is not the one that is served now")
        if accept.size is None:
            self._stream_to_end(accept.validator)
            return
        transfer.begin(accept.size, accept.validator)

    def _stream_to_end(self, validator: str) -> None:
        """A response without any length: the file is what comes until its end."""
        transfer = self._transfer
        transfer.ingest.begin(0, validator)
        hasher = new_hasher(transfer.algorithm, 0)
        position = 0
        while True:
            try:
                count = self._reader.read_some(self.buffer)
            except NetworkError as error:
                transfer.patience.wait_or_raise(error)
                raise RestartNeeded(error.message) from error
            if not count:
                self._reader.close()
                transfer.end_stream(position, hasher)
                return
            transfer.ingest.write(self.buffer[:count], position)
            hasher.update(self.buffer[:count])
            position += count
            transfer.counted += count
            transfer.fetched += count
            self._emit(Advanced(count))

    def _fetch(self, segment: Span) -> None:
        position, end = segment
        while position < end:
            position = self._block(position, end)

    def _block(self, position: int, end: int) -> int:
        transfer = self._transfer
        if transfer.restart:
            raise Abandoned
        view = self.buffer[: min(self._piece - position % self._piece, end - position)]
        began = self._waiting = self._clock.monotonic()
        self._reader.fill(view, position, transfer.run_end(end), transfer.size or 0)
        self._waiting = None
        self._note(len(view), self._clock.monotonic() - began)
        try:
            transfer.write(view, position)
        except StoreIOError:
            if transfer.store_failures:
                raise
            transfer.store_failures += 1
            transfer.write(view, position)
        self._emit(Advanced(len(view)))
        self.buffer = transfer.submit(position, len(view), self.buffer)
        return position + len(view)

    def _note(self, received: int, seconds: float) -> None:
        """A fast connection fills its buffer; what a slow one brings is not kept waiting for seconds."""
        self._received += received
        self._waited += seconds
        if seconds > _LONG:
            self._piece = max(_LEAST_PIECE, self._piece // 2)
        elif seconds < _LONG / 8:
            self._piece = min(len(self.buffer), self._transfer.piece, self._piece * 2)
