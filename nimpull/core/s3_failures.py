"""What errors of S3 and of boto3 mean, whether a bucket is read or written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from nimpull.core.names import Url, display
from nimpull.errors import (
    AuthError,
    ForbiddenError,
    IntegrityError,
    NetworkError,
    NimpullError,
    NoSpaceError,
    NotFoundError,
    ProxyError,
    TlsError,
    UsageError,
)

CHECK_PLACE: Final = (
    "Check bucket and prefix, in the URI or in NIM_REPOSITORY_OVERRIDE, and AWS_ENDPOINT_URL; "
    "keys are case-sensitive."
)
CHECK_BUCKET: Final = "Check the bucket's name and AWS_ENDPOINT_URL: nimpull makes none."
FREE_ROOM: Final = "Raise the quota of the bucket, or free room there, then run again: what was sent stays."
_SESSION: Final = "Get new credentials (AWS_SESSION_TOKEN), then run again: what is done stays."
#: What <Code> of S3's error document says beyond the status (S3 API Reference, "Error responses"), and what
#: servers of its kind add.
_CODES: Final[Mapping[str, tuple[type[NimpullError], str, str]]] = {
    "NoSuchBucket": (NotFoundError, "there is no such bucket", CHECK_BUCKET),
    "NoSuchKey": (NotFoundError, "there is no such object", CHECK_PLACE),
    "AllAccessDisabled": (ForbiddenError, "the bucket is disabled", "Ask its owner."),
    "InvalidObjectState": (
        ForbiddenError,
        "the object is in an archive",
        "Restore it, or copy it to the storage class STANDARD.",
    ),
    "InvalidAccessKeyId": (
        AuthError,
        "the access key is not known there",
        "Check AWS_ACCESS_KEY_ID, and that AWS_ENDPOINT_URL is the store that it was made for.",
    ),
    "SignatureDoesNotMatch": (
        AuthError,
        "the secret key is not the one of this access key",
        "Check AWS_SECRET_ACCESS_KEY: the whole key, without blanks; and AWS_REGION.",
    ),
    **dict.fromkeys(
        ("ExpiredToken", "TokenRefreshRequired"), (AuthError, "the session token has expired", _SESSION)
    ),
    "InvalidToken": (AuthError, "the session token is not valid", _SESSION),
    "RequestTimeTooSkewed": (AuthError, "the clock here and the one there differ", "Set this node's clock."),
    **dict.fromkeys(
        ("QuotaExceeded", "XMinioAdminBucketQuotaExceeded", "TooManyBuckets"),
        (NoSpaceError, "its quota is used up", FREE_ROOM),
    ),
    **dict.fromkeys(
        ("XMinioStorageFull", "InsufficientStorage", "InsufficientCapacity"),
        (NoSpaceError, "its storage is full", FREE_ROOM),
    ),
    "EntityTooLarge": (UsageError, "the object is larger than it takes", "Use a store that takes 5 TiB."),
    **dict.fromkeys(
        ("BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch"),
        (IntegrityError, "it got other bytes than were sent", "Run again; check the way there."),
    ),
}
_ELSEWHERE: Final = (
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
)


def coded(where: str, status: int, code: str, region: str = "") -> NimpullError | None:
    """None where only the status tells. ``where``: who answered what; ``region``: of the bucket, "" = not
    told; it is foreign text."""
    region = display(region, 40)
    if code in _ELSEWHERE or (region and status in (301, 307, 400)):
        setting = f"={region}" if region else ""
        return UsageError(
            f"{where}: the bucket is in {region or 'another region'}", hint=f"Set AWS_REGION{setting}."
        )
    if code not in _CODES:
        return None
    kind, meaning, hint = _CODES[code]
    return kind(f"{where}: {meaning}", hint=hint)


def unreached(error: BaseException, what: str, hint: str) -> NimpullError | None:
    """None for what is no failure of botocore's connections. ``hint``: for a host that does not answer."""
    from botocore import exceptions as boto

    said = getattr(error, "kwargs", {})
    where = Url(said.get("endpoint_url") or "AWS")  # shown without user and password
    match error:
        case boto.SSLError():
            return TlsError(
                f"{what}: the certificate of {where} is not trusted",
                hint="For a private CA: set AWS_CA_BUNDLE (NIMCache: or spec.proxy.certConfigMap).",
            )
        case boto.ProxyConnectionError():
            return ProxyError(
                f"{what}: cannot reach the proxy {Url(said.get('proxy_url', ''))}",
                hint="Check HTTPS_PROXY (NIMCache: spec.proxy.httpsProxy), or name the host in NO_PROXY.",
            )
        case boto.ConnectionError() | boto.HTTPClientError():
            return NetworkError(f"{what}: {where} does not answer", hint=hint)
    return None


def unusable(error: BaseException) -> UsageError:
    """What boto3 refuses before it asks anything."""
    return UsageError(
        f"boto3 cannot use the settings for S3: {display(error)}",
        hint="Check AWS_PROFILE, AWS_REGION, AWS_ENDPOINT_URL and the files that they name.",
    )
