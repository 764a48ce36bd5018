"""Every failure a user can meet, with its reference, exit code and next step.

::

    NimpullError                reference             exit  retryable
     x UsageError               bad-usage                2  no
     x ManifestError            bad-manifest            10  no
     x NoProfileError           no-profile              11  no   the nearest misses
     x SourceError
       + AuthError              unauthorized            20  no   names the variable, never its value
       + NotFoundError          not-found               21  no
       + ListingError           bad-listing             22  no   unsafe path, conflict, limit
       + SourceChangedError     source-changed          23  yes
       + GatedError             gated                   24  no   names the page where access is asked for
       + LicenseError           license-not-accepted    25  no   names the page with the terms
       + ForbiddenError         forbidden               26  no   the key is valid, but not for this
     x TransferError
       + NetworkError           network                 30  yes  dns, refused, stalled, 5xx, rate limit
       + TlsError               tls-untrusted           31  no
       + ProxyError             proxy-failed            32  yes
       + IntegrityError         corrupt                 33  yes  both digests
       + RedirectError          bad-redirect            34  no
     x StoreError
       + NoSpaceError           no-space                40  yes  needs, has, short by; bytes, quota, inodes
       + NotWritableError       not-writable            41  no   path, uid, gid, mode
       + StoreIOError           store-io                42  yes
       + LeaseHeldError         lease-held              43  yes
     x OutputError              output-failed           50  no   all is done, but nobody can read of it
     x LimitError               resource-limit          51  no   threads, memory or files of this process
     x Cancelled                cancelled              143  yes
    (a bug)                     internal-error          70

The references and exit codes are stable: a Job's ``podFailurePolicy`` and scripts may rely on them.
"""

from __future__ import annotations

import errno
import math
import re
from collections.abc import Iterator, Mapping
from typing import ClassVar, Final, Self

INTERNAL_ERROR_REFERENCE = "internal-error"
INTERNAL_ERROR_EXIT_CODE = 70
_LIMITS: Final = (errno.ENOMEM, errno.EMFILE, errno.ENFILE)


class NimpullError(Exception):
    """A failure with a stable reference.

    ``message`` says what happened and where; ``hint`` says what to do next. Neither ever holds a secret.
    """

    reference: ClassVar[str] = INTERNAL_ERROR_REFERENCE
    exit_code: ClassVar[int] = INTERNAL_ERROR_EXIT_CODE
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UsageError(NimpullError):
    """The command line, a NIMCache or an environment variable cannot be understood."""

    reference = "bad-usage"
    exit_code = 2


class ManifestError(NimpullError):
    """The model manifest cannot be read; names the line where there is one."""

    reference = "bad-manifest"
    exit_code = 10


class NoProfileError(NimpullError):
    """No profile of the manifest is what was asked for; lists the nearest misses."""

    reference = "no-profile"
    exit_code = 11


class SourceError(NimpullError):
    """A source answered, and the answer is no."""


class AuthError(SourceError):
    """No credential, or one that the source refuses (HTTP 401)."""

    reference = "unauthorized"
    exit_code = 20


class NotFoundError(SourceError):
    """The model, the revision or one listed file does not exist there."""

    reference = "not-found"
    exit_code = 21


class ListingError(SourceError):
    """A listing that must not be trusted: unsafe path, conflict, missing pages, over a limit."""

    reference = "bad-listing"
    exit_code = 22


class SourceChangedError(SourceError):
    """An immutable revision answered with other content while it was being fetched."""

    reference = "source-changed"
    exit_code = 23
    retryable = True


class GatedError(SourceError):
    """The repository is gated and this account has not been granted access."""

    reference = "gated"
    exit_code = 24


class LicenseError(SourceError):
    """The terms of the model have not been accepted by this account."""

    reference = "license-not-accepted"
    exit_code = 25


class ForbiddenError(SourceError):
    """The credential is valid but not entitled to this model (HTTP 403), or the region is not (451)."""

    reference = "forbidden"
    exit_code = 26


class TransferError(NimpullError):
    """Bytes did not arrive, or not the right ones.

    ``patience``: seconds that retries may take at most for this cause, whatever the retry budget.
    """

    def __init__(self, message: str, *, hint: str = "", patience: float = math.inf) -> None:
        super().__init__(message, hint=hint)
        self.patience = patience


class NetworkError(TransferError):
    """DNS failure, refused or stalled connection, 5xx or rate limit beyond the retry budget."""

    reference = "network"
    exit_code = 30
    retryable = True


class TlsError(TransferError):
    """The server's certificate is not trusted, expired, or for another host."""

    reference = "tls-untrusted"
    exit_code = 31


class ProxyError(TransferError):
    """The proxy is down, refuses the tunnel or wants other credentials."""

    reference = "proxy-failed"
    exit_code = 32
    retryable = True


class IntegrityError(TransferError):
    """The content is not what the listing promised; names both digests."""

    reference = "corrupt"
    exit_code = 33
    retryable = True


class RedirectError(TransferError):
    """A redirect loop, a downgrade to http, or a target that must not be followed."""

    reference = "bad-redirect"
    exit_code = 34


class StoreError(NimpullError):
    """The volume refuses."""


class NoSpaceError(StoreError):
    """Too few bytes, inodes or quota on the volume."""

    reference = "no-space"
    exit_code = 40
    retryable = True


class NotWritableError(StoreError):
    """The store cannot be written with this uid and gid, or holds something that must not be replaced."""

    reference = "not-writable"
    exit_code = 41


class StoreIOError(StoreError):
    """The file system reported an I/O error."""

    reference = "store-io"
    exit_code = 42
    retryable = True


class LeaseHeldError(StoreError):
    """Another run has files of this model, and nothing has come of it for the whole retry budget."""

    reference = "lease-held"
    exit_code = 43
    retryable = True


class OutputError(NimpullError):
    """The command did what it should, but its output could not be written where it was asked."""

    reference = "output-failed"
    exit_code = 50

    @classmethod
    def of(cls, what: str, error: Exception) -> Self:
        return cls(
            f"{what} could not be written: {getattr(error, 'strerror', None) or error}",
            hint="All else was done. Name a place that can be written and run the same command again.",
        )


class LimitError(NimpullError):
    """A limit of this process: a thread, memory or a file that the system does not give it."""

    reference = "resource-limit"
    exit_code = 51

    @classmethod
    def of(cls, error: BaseException) -> Self | None:
        """None where ``error`` is something else. Python has no one type for it: a thread's RuntimeError and
        a library's ImportError are told by their text (thread.c of CPython, dl-load.c of glibc).
        """
        text = str(error)
        starved = isinstance(error, MemoryError) or getattr(error, "errno", None) in _LIMITS
        thread = isinstance(error, RuntimeError) and "start new thread" in text
        mapping = isinstance(error, ImportError) and "failed to map segment" in text
        if not (starved or thread or mapping):
            return None
        return cls(
            f"the system does not give this process what it needs: {text or 'no memory'}",
            hint="Raise the limit of memory, threads or open files (a pod's resources.limits.memory, "
            "pids.max; ulimit -v, -u, -n).",
        )


class Cancelled(NimpullError):
    """SIGTERM or Ctrl-C; finished chunks are kept for the next run."""

    reference = "cancelled"
    exit_code = 143
    retryable = True


def hint_for(hint: str, *, nimcache: bool, options: bool) -> str:
    """The parts of a hint that its reader can act on.

    ``(NIMCache: spec.…)`` is for whoever writes one, ``(nimpull: --gpu H100:8)`` for whoever types options;
    text outside of such parentheses is for all.
    """
    hint = hint if nimcache else re.sub(r" \(NIMCache: [^()]*\)", "", hint)
    return hint.replace("(nimpull: ", "(") if options else re.sub(r" \(nimpull: [^()]*\)", "", hint)


def _all(above: type[NimpullError]) -> Iterator[type[NimpullError]]:
    for each in above.__subclasses__():
        yield each
        yield from _all(each)


#: reference by exit code, in ascending order
EXIT_CODES: Final[Mapping[int, str]] = {
    each.exit_code: each.reference for each in sorted(_all(NimpullError), key=lambda each: each.exit_code)
}
