"""The errors of a fetch, in words."""

from __future__ import annotations

from nimpull.core.artifacts import Artifact
from nimpull.core.digest import Digest
from nimpull.core.names import display
from nimpull.core.ranges import Cause
from nimpull.errors import (
    AuthError,
    ForbiddenError,
    IntegrityError,
    NimpullError,
    NotFoundError,
    SourceChangedError,
)

UNLISTED_ALGORITHM = "blake3"  # for a file that the listing has no digest of


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


def mismatch(artifact: Artifact, found: Digest, host: str, coding: str) -> IntegrityError:
    """``coding``: the Content-Encoding that it came with, though none was asked for; "" = none."""
    where = f"{display(artifact.path, 200)} from {host}"
    said = f"its content is {found}, the listing says {artifact.digest}"
    if coding:
        return IntegrityError(
            f"{where}: it came with Content-Encoding {display(coding, 40)}, and {said}",
            hint="A proxy or cache on the way rewrites downloads. Take the host out of it (NO_PROXY).",
        )
    return IntegrityError(
        f"{where}: {said}",
        hint="It was fetched twice. The registry's copy, or a cache on the way, is damaged.",
    )


def algorithm_of(artifact: Artifact) -> str:
    return artifact.digest.algorithm if artifact.digest else UNLISTED_ALGORITHM


def verified_by(artifact: Artifact) -> str:
    """What an Outcome says a committed file was checked with: the algorithm, or "size"."""
    return artifact.digest.algorithm if artifact.digest else "size"
