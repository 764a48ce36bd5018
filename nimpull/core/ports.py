"""The protocols that edges meet at: no edge imports another, job wires them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from nimpull.core.artifacts import Artifact, Listing, Location, Wanted
from nimpull.core.digest import Digest
from nimpull.core.events import Event
from nimpull.core.names import ModelUri, Url
from nimpull.core.reply import Reply

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


@dataclass(frozen=True, slots=True)
class Head:
    """Status line and headers (lower-case names) of a data response; ``url`` is the final one."""

    status: int
    headers: Mapping[str, str]
    url: Url


class Body(Protocol):
    """An open data response. ``head`` is there at once, the bytes come by ``readinto``.

    ``readinto`` fills the buffer as far as it can: a short count is what came before the end, 0 the end.
    Raises NetworkError (reset, truncated, stalled, too slow), after the bytes that came before it were
    returned. Content-Encoding is never
    decoded. ``close(reuse=True)`` after the whole body was read gives the connection back to the pool;
    otherwise it is dropped. ``abort``, from another thread: a ``readinto`` under way ends with NetworkError.
    """

    head: Head

    def readinto(self, buffer: memoryview) -> int: ...
    def abort(self) -> None: ...
    def close(self, *, reuse: bool = False) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Get(Protocol):
    """How bytes of a file are asked for. Thread-safe."""

    def __call__(
        self, location: Location, start: int, end: int | None, *, fresh_connection: bool = False
    ) -> Body:
        """One attempt, no retry: bytes [start, end) of the file, end None = to its end.

        ``start == 0 and end is None`` sends no Range header. Follows safe redirects. Any status is a Body.
        Raises NetworkError, TlsError, ProxyError, RedirectError.
        """
        ...


# -- store -> fetch ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Claim:
    """Bytes [start, end) are on disk.

    ``digest`` (16 to 32 bytes): of the file's bytes [0, end) when they were written, by the algorithm of the
    artifact's digest, blake3 where the listing has none. ``alone``: of bytes [start, end), by blake3.
    """

    start: int
    end: int
    digest: bytes
    alone: bool = False


class Ingest(Protocol):
    """One artifact being written, invisible to readers. Thread-safe for distinct ranges.

    Raises StoreError only.
    """

    artifact: Artifact

    @property
    def claims(self) -> Sequence[Claim]:
        """What the journal of an earlier run says is here. Believe it only after reading the bytes back."""
        ...

    @property
    def validator(self) -> str:
        """ETag of the run that wrote the claims ("" = none or weak)."""
        ...

    def begin(self, size: int, validator: str) -> None:
        """Reserve ``size`` bytes and note what is being fetched; drops claims made under another size."""
        ...

    def write(self, block: memoryview, offset: int) -> None: ...
    def read(self, buffer: memoryview, offset: int) -> int: ...
    def record(self, claim: Claim) -> None:
        """Append to the journal. Only after every byte of the claim was written."""
        ...

    def reset(self) -> None:
        """Forget all bytes and claims: start this file over."""
        ...

    def close(self) -> None:
        """Let go of descriptors; what is written and recorded stays for the next run."""
        ...


@dataclass(frozen=True, slots=True)
class Verified:
    """An ingest whose whole content was checked and may become visible.

    ``digest``: what was computed over the whole file; ``etag``: as the server sent it, unquoted.
    """

    ingest: Ingest
    size: int
    digest: Digest
    etag: str = field(default="")


class Ingests(Protocol):
    """Where files are written before they are visible. Thread-safe."""

    def open(self, artifact: Artifact) -> Ingest:
        """Raises StoreError; the claims of an earlier run are loaded."""
        ...

    def stage(self, artifact: Artifact, content: memoryview) -> Ingest:
        """A small file, whole, in one call: no journal, no preallocation."""
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
