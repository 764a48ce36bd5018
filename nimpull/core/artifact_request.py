"""Where one artifact is now, and what its host got wrong so far."""

from __future__ import annotations

from typing import Final

from nimpull.core.artifacts import Artifact, Location
from nimpull.core.patience import Patience
from nimpull.core.ranges import Accept, Asked, Cause, Fail, Relocate, Verdict, judge
from nimpull.core.reply import Head
from nimpull.core.transfer_failures import failure
from nimpull.errors import NetworkError, NimpullError, TransferError

_EXPIRY_MARGIN: Final = 30.0  # seconds before its expiry at which a presigned URL is not used any more
#: Bytes that are progress; fewer, unless they are the last, are the trickle of a dying connection.
_PROGRESS: Final = 4 << 10
#: How often a cause is forgiven, per file, before it ends the fetch.
_FORGIVEN: Final = {
    Cause.EXPIRED: 3,  # without progress in between
    Cause.UNAUTHORIZED: 1,
    Cause.CHANGED: 1,
    Cause.UNSATISFIED: 1,
    Cause.MISLED: 1,
}
_MARKUP_SUFFIXES: Final = (".html", ".htm", ".xhtml")


class ArtifactRequest:
    """Of one artifact. Times are monotonic seconds, but for ``epoch``, seconds since the epoch."""

    def __init__(self, artifact: Artifact, budget: float, now: float) -> None:
        self.artifact = artifact
        self.location: Location | None = None
        self.stale = False  # whether the last one is not to be believed
        self.attempts = 0
        self.validator = ""  # a strong ETag, of the bytes that are here
        self.etag = ""
        self.host = self.server = ""  # who answered last, with its port, for people
        self.fresh_connection = False
        self.coding = ""  # a Content-Encoding that was not asked for
        self._patience = Patience(budget, now)
        self._new = 0  # bytes since the last progress
        self._reached = 0
        self._ageless = False
        self._faults: dict[Cause, int] = {}
        self._markup = artifact.path.lower().endswith(_MARKUP_SUFFIXES)

    # -- where -------------------------------------------------------------------------------------------

    def located(self, location: Location, epoch: float) -> None:
        """One that is old when it comes is so by a wrong clock: a 403 will tell its end."""
        self.location, self.stale = location, False
        self._ageless = self._is_old(location, epoch)
        self.host = self.host or location.url.host
        self.server = self.server or location.url.authority

    def where(self, epoch: float) -> Location | None:
        """None: look it up first, anew if ``stale``."""
        found = self.location
        if found is not None and not self._ageless and self._is_old(found, epoch):
            self.location, self.stale = None, True
        return self.location

    @staticmethod
    def _is_old(location: Location, epoch: float) -> bool:
        return location.expires_at is not None and epoch > location.expires_at - _EXPIRY_MARGIN

    # -- what was answered -------------------------------------------------------------------------------

    def judge(self, head: Head, start: int, end: int | None, size: int | None, epoch: float) -> Verdict:
        asked = Asked(start, end, size, self.validator, self._markup)
        verdict = judge(asked, head.status, head.headers, epoch)
        self.server = head.url.authority
        if isinstance(verdict, Accept):
            self.fresh_connection = False
            self.validator = self.validator or verdict.validator
            self.etag, self.host = verdict.etag, head.url.host
            coding = head.headers.get("content-encoding", "").strip().lower()
            self.coding = "" if coding == "identity" else coding
        return verdict

    def forgive(self, verdict: Relocate | Fail, location: Location | None) -> None:
        """Count it, and want a new location. Raises the NimpullError once it came too often."""
        if location is not self.location:
            return  # another response met the same, and a new location was asked for already
        self._faults[verdict.cause] = self._faults.get(verdict.cause, 0) + 1
        if self._faults[verdict.cause] > _FORGIVEN.get(verdict.cause, 0):
            raise failure(verdict.cause, verdict.reason, self.artifact, self.server)
        self.location, self.stale, self.fresh_connection = None, True, True

    def forget(self) -> None:
        """The file starts over: neither its validator nor its connection is to be trusted."""
        self.validator = ""
        self.fresh_connection = True
        self._new = 0

    # -- patience ----------------------------------------------------------------------------------------

    @property
    def failing(self) -> bool:
        return self._patience.failures > 0

    def began(self, now: float) -> None:
        """The time it was queued is not the network's."""
        self._patience = self._patience.progressed(now)

    def came(self, count: int, position: int, now: float, *, ranged: bool) -> int:
        """``count`` bytes up to ``position``: how many of them are progress. Where ranges are ignored only
        those never here before are."""
        new = count if ranged else max(0, position - self._reached)
        self._new += new
        self._reached = max(self._reached, position)
        if self._new >= _PROGRESS:
            self._new = 0
            self._patience = self._patience.progressed(now)
            self._faults.pop(Cause.EXPIRED, None)  # one that comes later is a new one
        return new

    def pause(
        self, error: NimpullError, now: float, jitter: float, *, asked: float = 0.0, brought: int = 0
    ) -> float:
        """Seconds before the next attempt; raises ``error`` once patience is at its end.

        ``asked``: what the host asks to wait; ``brought``: bytes of this attempt.
        """
        idle = now - self._patience.since
        limit = error.patience if isinstance(error, TransferError) else float("inf")
        progress = brought if brought >= _PROGRESS else 0
        self._patience, pause = self._patience.failed(
            now, jitter, patience=limit, asked=asked, brought=progress
        )
        if pause is not None:
            return pause
        if not isinstance(error, NetworkError):
            raise error
        why = f"no progress for {idle:.0f} s"
        if asked:
            why += f"; it asks for {asked:.0f} s more, which is longer than the retries may take"
        raise NetworkError(f"{error.message} ({why})", hint=error.hint)
