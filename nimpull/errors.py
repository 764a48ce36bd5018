"""Every failure a user can meet, with its reference, exit code and next step.

The references and exit codes are stable: a Job's ``podFailurePolicy`` and scripts may rely on them.
"""

from __future__ import annotations

import errno
import math
import re
from collections.abc import Iterator, Mapping
from typing import ClassVar, Final, Self

INTERNAL_ERROR_REFERENCE = "internal-error"
# EX_SOFTWARE of sysexits.h.
INTERNAL_ERROR_EXIT_CODE = 70
_LIMITS: Final = (errno.ENOMEM, errno.EMFILE, errno.ENFILE)


class NimpullError(Exception):
    """A failure with a stable reference.

    ``message`` says what happened and where; ``hint`` says what to do next. Neither ever holds a secret.
    """

    reference: ClassVar[str] = INTERNAL_ERROR_REFERENCE
    exit_code: ClassVar[int] = INTERNAL_ERROR_EXIT_CODE
    retryable: ClassVar[bool] = False

    def __init_subclass__(
        cls, *, reference: str = "", exit_code: int = 0, retryable: bool | None = None
    ) -> None:
        """What a class does not give is that of the one above it."""
        super().__init_subclass__()
        cls.reference = reference or cls.reference
        cls.exit_code = exit_code or cls.exit_code
        cls.retryable = cls.retryable if retryable is None else retryable

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UsageError(NimpullError, reference="bad-usage", exit_code=2):
    """The command line, a NIMCache or an environment variable cannot be understood."""


class ManifestError(NimpullError, reference="bad-manifest", exit_code=10):
    """The model manifest cannot be read; names the line where there is one."""


class NoProfileError(NimpullError, reference="no-profile", exit_code=11):
    """No profile of the manifest is what was asked for; lists the nearest misses."""


class SourceError(NimpullError):
    """A source answered, and the answer is no."""


class AuthError(SourceError, reference="unauthorized", exit_code=20):
    """No credential, or one that the source refuses (HTTP 401); names the variable, never its value."""


class NotFoundError(SourceError, reference="not-found", exit_code=21):
    """The model, the revision or one listed file does not exist there."""


class ListingError(SourceError, reference="bad-listing", exit_code=22):
    """A listing that must not be trusted: unsafe path, conflict, missing pages, over a limit."""


class SourceChangedError(SourceError, reference="source-changed", exit_code=23, retryable=True):
    """An immutable revision answered with other content while it was being fetched."""


class GatedError(SourceError, reference="gated", exit_code=24):
    """Access to the repository was not granted to this account; names the page where it is asked for."""


class LicenseError(SourceError, reference="license-not-accepted", exit_code=25):
    """The terms of the model have not been accepted by this account; names the page with them."""


class ForbiddenError(SourceError, reference="forbidden", exit_code=26):
    """The credential is valid but not entitled to this model (HTTP 403), or the region is not (451)."""


class TransferError(NimpullError):
    """Bytes did not arrive, or not the right ones.

    ``patience``: seconds that retries may take at most for this cause, whatever the retry budget.
    """

    def __init__(self, message: str, *, hint: str = "", patience: float = math.inf) -> None:
        super().__init__(message, hint=hint)
        self.patience = patience


class NetworkError(TransferError, reference="network", exit_code=30, retryable=True):
    """DNS failure, refused or stalled connection, 5xx or rate limit beyond the retry budget."""


class TlsError(TransferError, reference="tls-untrusted", exit_code=31):
    """The server's certificate is not trusted, expired, or for another host."""


class ProxyError(TransferError, reference="proxy-failed", exit_code=32, retryable=True):
    """The proxy is down, refuses the tunnel or wants other credentials."""


class IntegrityError(TransferError, reference="corrupt", exit_code=33, retryable=True):
    """The content is not what the listing promised; names both digests."""


class RedirectError(TransferError, reference="bad-redirect", exit_code=34):
    """A redirect loop, a downgrade to http, or a target that must not be followed."""


class StoreError(NimpullError):
    """The volume refuses."""


class NoSpaceError(StoreError, reference="no-space", exit_code=40, retryable=True):
    """Too few bytes, inodes or quota on the volume; says what is needed, there and short."""


class NotWritableError(StoreError, reference="not-writable", exit_code=41):
    """The store cannot be written with this uid and gid, or holds something that must not be replaced."""


class StoreIOError(StoreError, reference="store-io", exit_code=42, retryable=True):
    """The file system reported an I/O error."""


class UnrecordedError(StoreError, reference="store-io", exit_code=42, retryable=True):
    """A file that was committed could not be noted. It stands: bringing it once more would not help."""


class StoreLimitError(StoreError, reference="resource-limit", exit_code=51):
    """This process may not have as many files open as the store needs."""


class LeaseHeldError(StoreError, reference="lease-held", exit_code=43, retryable=True):
    """Another run has files of this model, and nothing has come of it for the whole retry budget."""


class OutputError(NimpullError, reference="output-failed", exit_code=50):
    """The command did what it should, but its output could not be written where it was asked."""

    @classmethod
    def of(cls, what: str, error: Exception) -> Self:
        return cls(
            f"{what} could not be written: {getattr(error, 'strerror', None) or error}",
            hint="All else was done. Name a place that can be written and run the same command again.",
        )


class LimitError(NimpullError, reference="resource-limit", exit_code=51):
    """A limit of this process: a thread, memory or a file that the system does not give it."""

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


class Cancelled(NimpullError, reference="cancelled", exit_code=143, retryable=True):
    """SIGTERM or Ctrl-C; finished chunks are kept for the next run."""


def hint_for(hint: str, *, nimcache: bool, options: bool) -> str:
    """The parts of a hint that its reader can act on.

    ``(NIMCache: spec.…)`` is for the author of one, ``(nimpull: --gpu H100:8)`` for users of the command
    line; text outside of such parentheses is for all.
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
