"""The protocols that edges meet at: no edge imports another, job wires them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final, Protocol

from nimpull.core.artifacts import Artifact, Listing, Location, Wanted
from nimpull.core.digest import Digest
from nimpull.core.events import Event
from nimpull.core.names import ModelUri, Url
from nimpull.core.ranges import Checkpoint
from nimpull.core.reply import Head, Reply

Emit = Callable[[Event], None]


class Cancel(Protocol):
    """A ``threading.Event``: set once the run must stop."""

    def is_set(self) -> bool: ...
    def set(self) -> None: ...
    def wait(self, timeout: float | None = None) -> bool: ...


class Clock(Protocol):
    """Time in seconds: ``monotonic`` since any moment, ``time`` since the epoch. Thread-safe."""

    def monotonic(self) -> float: ...
    def time(self) -> float: ...
    def wait(self, seconds: float, until: Cancel) -> bool:
        """Sleep ``seconds``, or less if ``until`` is set meanwhile; returns whether it is set."""
        ...

    def jitter(self) -> float:
        """Uniform in [0, 1)."""
        ...


# -- transport -> sources ------------------------------------------------------------------------------


class Api(Protocol):
    """Small requests to registries, retried inside the budget on connection failures, 429 and 5xx.

    Raises NetworkError, TlsError, ProxyError, RedirectError, Cancelled. ``headers`` may hold a credential:
    it is sent to the origin of ``url`` only. ``follow=False`` returns a 3xx as it is (with ``location``).
    """

    def request(
        self,
        method: str,
        url: Url,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        max_bytes: int = 64 << 20,
        follow: bool = True,
    ) -> Reply: ...


# -- sources -> job, fetch -----------------------------------------------------------------------------


class Source(Protocol):
    """One registry, hub, bucket or directory: what a model has, and where each file is now."""

    def list(self, uri: ModelUri, wanted: Wanted) -> Listing:
        """Resolve the revision to an immutable one, then list. Raises SourceError, TransferError.

        A path in ``wanted.paths`` that the repository does not have is NotFoundError naming it.
        """
        ...

    def locate(self, artifact: Artifact, *, fresh: bool = False) -> Location:
        """Where to get it now; ``fresh`` discards a cached, perhaps expired, presigned URL."""
        ...


# -- transport -> fetch --------------------------------------------------------------------------------


PAUSE: Final = 0x10000001  # what a receiver answers to bytes that it has no room for (CURL_WRITEFUNC_PAUSE)
STOP: Final = -1  # to bytes that it does not want: the connection is dropped


class Receiver(Protocol):
    """Where one response goes. Called by the thread that turns the connections; must not raise or block."""

    def head(self, head: Head) -> bool:
        """Whether the body is wanted. Redirects were followed, as far as they may be."""
        ...

    def data(self, octets: bytes) -> int | None:
        """None = taken. PAUSE = none of them was, and they come again after ``resume``; STOP = no more."""
        ...

    def ended(self, error: BaseException | None) -> None:
        """The last call. None: the body came whole, as far as its framing tells, or was stopped here.

        Else TransferError: it could not be had, or broke off. Content-Encoding is never decoded.
        """
        ...


class Response(Protocol):
    """One request under way. Only for the thread that turns the connections."""

    def resume(self) -> None:
        """Go on after PAUSE."""
        ...

    def drop(self) -> None:
        """Let it and its connection go; ``ended`` is not called."""
        ...


class Connections(Protocol):
    """All connections that bring bytes, turned by one thread. Only ``wake`` is for others."""

    def ask(
        self,
        location: Location,
        start: int,
        end: int | None,
        receiver: Receiver,
        *,
        fresh: bool = False,
        small: bool = False,
    ) -> Response:
        """One attempt, no retry: bytes [start, end) of the file, end None = to its end.

        ``start == 0 and end is None`` sends no Range header. ``fresh``: not over a connection that was used
        before. ``small``: many such requests may share a connection (HTTP/2).
        """
        ...

    def turn(self, seconds: float) -> None:
        """Wait for something to happen, ``seconds`` at most, and call the receivers."""
        ...

    def check(self, now: float) -> None:
        """End what stalls or crawls. To be called several times a second; ``now``: monotonic seconds."""
        ...

    def wake(self) -> None:
        """From any thread: a ``turn`` under way, or the next one, ends at once."""
        ...

    def close(self) -> None:
        """Drop all; a connect or a handshake under way ends with it."""
        ...


class Pauses(Protocol):
    """When hosts may be asked again: one table for registry answers and for bytes. Thread-safe."""

    def left(self, host: str) -> float:
        """Seconds until ``host`` may be asked."""
        ...

    def cut(self, host: str, seconds: float) -> None:
        """``host`` may be asked in ``seconds``: whoever waits for it gives up after one more attempt."""
        ...


# -- store -> fetch ------------------------------------------------------------------------------------


class Content(Protocol):
    """What is on the volume of one artifact, invisible to readers."""

    artifact: Artifact


class Ingest(Content, Protocol):
    """One artifact being written. Thread-safe for distinct ranges. Raises StoreError only."""

    @property
    def checkpoints(self) -> Sequence[Checkpoint]:
        """What the journal of an earlier run says is here. Believe it only after reading the bytes back."""
        ...

    @property
    def validator(self) -> str:
        """ETag of the run that wrote the checkpoints ("" = none or weak)."""
        ...

    def begin(self, size: int, validator: str) -> None:
        """Reserve ``size`` bytes and note what is being fetched.

        Drops checkpoints made under another size.
        """
        ...

    def write(self, block: memoryview, offset: int) -> None: ...
    def read(self, buffer: memoryview, offset: int) -> int: ...
    def record(self, checkpoint: Checkpoint) -> None:
        """Append to the journal. Only after every byte of it was written."""
        ...

    def reset(self) -> None:
        """Forget all bytes and checkpoints: start this file over."""
        ...

    def close(self) -> None:
        """Let go of descriptors; what is written and recorded stays for the next run."""
        ...


@dataclass(frozen=True, slots=True)
class Verified:
    """Content that was checked as a whole and may become visible.

    ``digest``: what was computed over the whole file; ``etag``: as the server sent it, unquoted.
    """

    ingest: Content
    size: int
    digest: Digest
    etag: str = field(default="")


class Ingests(Protocol):
    """Where files are written before they are visible. Thread-safe."""

    def open(self, artifact: Artifact) -> Ingest:
        """Raises StoreError; the checkpoints of an earlier run are loaded."""
        ...

    def stage(self, artifact: Artifact, content: memoryview) -> Content:
        """A small file, whole, in one call: no journal, no preallocation."""
        ...

    def staging(self) -> AbstractContextManager[None]:
        """While one thread stages many: directories are not looked up again, nor made again where gone."""
        ...

    def settle(self, batch: Sequence[Verified]) -> None:
        """Make the content durable: ``commit`` does what of this was not done before. Raises StoreError."""
        ...

    def commit(self, batch: Sequence[Verified]) -> tuple[Verified, ...]:
        """Make them visible: fsync content, rename, fsync directories, read-only, drop the ingests.

        One group commit for the batch; all of it is durable when this returns, but for those returned: their
        claim was lost meanwhile, so that another pod has them, or will. That is no error.
        """
        ...


# -- job -> fetch --------------------------------------------------------------------------------------


class Supply(Protocol):
    """Where a fetch takes its work from while it runs: what was claimed for this pod."""

    def take(self) -> tuple[Artifact, ...]:
        """The next unit of work, one large file or a bundle of small ones; () = there is no more, ever.

        Called by one thread, which may block here, whenever little is left to do. Raises NimpullError, which
        ends the run.
        """
        ...

    def give_up(self, artifact: Artifact) -> None:
        """Its registry does not have what ``take`` gave: no pod shall wait for it. Raises NimpullError."""
        ...
