"""The errors of a fetch, in words, and the patience before one of them ends it."""

from __future__ import annotations

import math

from nimpull.core.artifacts import Artifact
from nimpull.core.digest import Digest
from nimpull.core.events import Waiting
from nimpull.core.names import display
from nimpull.core.patience import backoff
from nimpull.core.ports import Cancel, Clock, Emit
from nimpull.core.ranges import Cause
from nimpull.errors import (
    AuthError,
    ForbiddenError,
    IntegrityError,
    NetworkError,
    NimpullError,
    NotFoundError,
    SourceChangedError,
    TransferError,
)

_MANY = 1 << 20  # bytes


class Stopped(Exception):
    """This worker is to end: the run was cancelled, or another worker failed."""


class Abandoned(Exception):
    """What this worker does for a file has lost its purpose: the file starts over."""


class RestartNeeded(Exception):
    """The file must start over from its first byte; ``reason`` is safe to print."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def failure(cause: Cause, reason: str, artifact: Artifact, host: str) -> NimpullError:
    """The error that ends a file, for what its host answered."""
    where = f"{display(artifact.path, 200)} from {host}: {reason}"
    if cause is Cause.MISSING:
        return NotFoundError(
            where, hint="The listing names the file, but it is not there. Check the revision, or try later."
        )
    if cause is Cause.UNAUTHORIZED:
        return AuthError(
            f"{where}, also with a fresh location",
            hint="Check NGC_API_KEY or HF_TOKEN (NIMCache: spec.source.*.authSecret).",
        )
    if cause in (Cause.EXPIRED, Cause.REFUSED):
        return ForbiddenError(where, hint="Check that the key is entitled to this model.")
    if cause is Cause.CHANGED:
        return SourceChangedError(where, hint="The file was replaced while it was fetched. Run again.")
    if cause is Cause.MARKUP:
        return IntegrityError(
            where,
            hint="A captive portal, proxy or sign-in page answers for the registry. Nothing of it was saved.",
        )
    return IntegrityError(
        where, hint="Something between here and the registry rewrites downloads. Run again."
    )


def mismatch(artifact: Artifact, expected: Digest, found: Digest, host: str) -> IntegrityError:
    return IntegrityError(
        f"{display(artifact.path, 200)} from {host}: its content is {found}, the listing says {expected}",
        hint="It was fetched twice. The registry's copy, or a cache on the way, is damaged.",
    )


def verified_by(artifact: Artifact) -> str:
    """What an Outcome says a committed file was checked with: the algorithm, or "size"."""
    return artifact.digest.algorithm if artifact.digest else "size"


class Patience:
    """How long one piece of work goes on without progress: seconds count, attempts do not."""

    def __init__(self, clock: Clock, stop: Cancel, emit: Emit, budget: float) -> None:
        self._clock = clock
        self._stop = stop
        self._emit = emit
        self._budget = budget
        self._since = clock.monotonic()
        self._failures = 0

    @property
    def failing(self) -> bool:
        return self._failures > 0

    def progressed(self) -> None:
        self._since = self._clock.monotonic()
        self._failures = 0

    def wait_or_raise(self, error: NimpullError, at_least: float = 0.0, *, brought: int = 0) -> None:
        """Back off before the next attempt; ``error`` is raised once the budget is spent, or Stopped.

        ``brought``: bytes that came before the failure. After many the host is well: only a connection ended.
        """
        if self._stop.is_set():
            raise Stopped
        self._failures += 1
        patience = error.patience if isinstance(error, TransferError) else math.inf
        pause = max(at_least, backoff(self._failures, self._clock.jitter(), patience))
        if self._failures == 1 and brought >= _MANY:
            pause = 0.0
        idle = self._clock.monotonic() - self._since
        if idle + pause > min(self._budget, patience):
            raise _given_up(error, idle, at_least)
        self._emit(Waiting(error.message, pause))
        if self._clock.wait(pause, self._stop):
            raise Stopped


def _given_up(error: NimpullError, idle: float, asked: float) -> NimpullError:
    if not isinstance(error, NetworkError):
        return error
    why = f"no progress for {idle:.0f} s"
    if asked:
        why += f"; it asks for {asked:.0f} s more, which is longer than the retries may take"
    return NetworkError(f"{error.message} ({why})", hint=error.hint)
