"""One file's dealings with its host: where it is now, and a body that holds the bytes asked for."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from nimpull.core.artifacts import Artifact, Location
from nimpull.core.ports import Body, Cancel, Clock, Get
from nimpull.core.ranges import Accept, Asked, Cause, Fail, Relocate, Restart, Wait, judge
from nimpull.errors import IntegrityError, NetworkError, NimpullError, ProxyError
from nimpull.fetch.failures import Patience, RestartNeeded, Stopped, failure
from nimpull.fetch.limits import Hosts

Locate = Callable[[Artifact, bool], Location]
_EXPIRY_MARGIN = 30.0  # seconds before its expiry at which a presigned URL is not used any more
#: How often a cause is forgiven, per file, before it ends the fetch.
_FORGIVEN = {
    Cause.EXPIRED: 3,  # without progress in between
    Cause.UNAUTHORIZED: 1,
    Cause.CHANGED: 1,
    Cause.UNSATISFIED: 1,
    Cause.MISLED: 1,
}
_MARKUP_SUFFIXES = (".html", ".htm", ".xhtml")


@dataclass(frozen=True, slots=True)
class Service:
    """What all exchanges of a run share."""

    locate: Locate
    get: Get
    hosts: Hosts
    clock: Clock
    stop: Cancel


@dataclass(frozen=True, slots=True)
class Opened:
    body: Body
    accept: Accept
    host: str


class Exchange:
    """The location of one artifact and what its host got wrong so far. Thread-safe."""

    def __init__(self, artifact: Artifact, service: Service) -> None:
        self.artifact = artifact
        self.attempts = 0
        self.validator = ""
        self.etag = ""
        self.host = ""
        self.fresh_connection = False
        self._service = service
        self._lock = threading.Lock()
        self._location: Location | None = None
        self._ageless = False
        self._faults: Counter[Cause] = Counter()
        self._markup = artifact.path.lower().endswith(_MARKUP_SUFFIXES)

    def forget(self) -> None:
        """The file starts over: neither its validator nor its connection is to be trusted."""
        with self._lock:
            self.validator = ""
            self.fresh_connection = True

    def progressed(self) -> None:
        """Bytes came from where the file is now: an expiry that comes later is a new one."""
        if self._faults[Cause.EXPIRED]:
            self._faults[Cause.EXPIRED] = 0

    def find(self) -> None:
        """Know the host before the first request: it may be one that ignores ranges."""
        location = self._where()
        self.host = self.host or location.url.host

    def rangeless(self) -> bool:
        return bool(self.host) and self._service.hosts.ignores_ranges(self.host)

    def open(self, start: int, end: int | None, size: int | None, patience: Patience) -> Opened:
        """A body that holds bytes [start, end), or to the end of the file.

        Raises Stopped, RestartNeeded, and the NimpullError that ends the file.
        """
        fresh = self.fresh_connection
        while True:
            if self._service.stop.is_set():
                raise Stopped
            location = self._where()
            self._service.hosts.keep(location.url.host, self._service.stop)
            self.attempts += 1
            try:
                body = self._service.get(location, start, end, fresh_connection=fresh or patience.failing)
            except (NetworkError, ProxyError) as error:
                patience.wait_or_raise(error)
                continue
            except IntegrityError as error:  # a content coding that was not asked for
                self._forgive(Cause.MISLED, location, error)
                fresh = True
                continue
            asked = Asked(start, end, size, self.validator, self._markup)
            opened = self._judge(body, asked, patience, location)
            if opened is not None:
                return opened
            fresh = True

    def _judge(self, body: Body, asked: Asked, patience: Patience, location: Location) -> Opened | None:
        head, host = body.head, body.head.url.host
        verdict = judge(asked, head.status, head.headers, self._service.clock.time())
        if isinstance(verdict, Accept):
            with self._lock:
                self.validator = self.validator or verdict.validator
                self.etag = verdict.etag
                self.host = host
            return Opened(body, verdict, host)
        body.close()
        if isinstance(verdict, Restart):
            self.host = host
            for each in {host, location.url.host}:
                self._service.hosts.note_ignored_range(each)
            raise RestartNeeded(f"{host} ignores ranges")
        if isinstance(verdict, Wait):
            self._pause(verdict, host, location, patience)
        elif isinstance(verdict, Relocate):
            self._relocate(verdict, location, host)
        elif isinstance(verdict, Fail):
            self._forgive(
                verdict.cause, location, failure(verdict.cause, verdict.reason, self.artifact, host)
            )
        return None

    def _pause(self, verdict: Wait, host: str, location: Location, patience: Patience) -> None:
        if verdict.seconds:
            # spread, or all workers would come back in the same instant
            seconds = verdict.seconds * (1 + self._service.clock.jitter() / 10)
            for each in {host, location.url.host}:
                self._service.hosts.pause(each, seconds)
        patience.wait_or_raise(
            NetworkError(
                f"{host} answers {verdict.reason}",
                hint="The registry is busy or limits this client. Run again later; finished chunks are kept.",
            ),
            verdict.seconds or 0.0,
        )

    def _relocate(self, verdict: Relocate, location: Location, host: str) -> None:
        self._forgive(verdict.cause, location, failure(verdict.cause, verdict.reason, self.artifact, host))
        if verdict.cause is Cause.CHANGED:
            raise RestartNeeded(f"{host}: {verdict.reason}")

    def _forgive(self, cause: Cause, location: Location, error: NimpullError) -> None:
        """Count ``cause`` and ask for a new location; ``error`` is raised once it came too often."""
        with self._lock:
            if location is not self._location:
                return  # another worker met the same and relocated already
            self._faults[cause] += 1
            if self._faults[cause] <= _FORGIVEN.get(cause, 0):
                self._take(fresh=True)
                return
        raise error

    def _where(self) -> Location:
        with self._lock:
            found = self._location
            expired = found is not None and not self._ageless and self._is_old(found)
            if found is None or expired:
                found = self._take(expired)
            return found

    def _take(self, fresh: bool) -> Location:
        """Under the lock. One that is old when it comes is so by a wrong clock: a 403 will tell its end."""
        found = self._location = self._service.locate(self.artifact, fresh)
        self._ageless = self._is_old(found)
        return found

    def _is_old(self, location: Location) -> bool:
        end = location.expires_at
        return end is not None and self._service.clock.time() > end - _EXPIRY_MARGIN
