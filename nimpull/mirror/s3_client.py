"""boto3's client for a bucket that is written to, and what its errors mean."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from typing import TYPE_CHECKING, Any, Final, cast

from nimpull.core.events import Waiting
from nimpull.core.names import Url, display
from nimpull.core.ports import Emit
from nimpull.core.s3_failures import CHECK_BUCKET, FREE_ROOM, coded, unreached, unusable
from nimpull.errors import (
    AuthError,
    Cancelled,
    ForbiddenError,
    NetworkError,
    NimpullError,
    NoSpaceError,
    NotFoundError,
    UsageError,
)

if TYPE_CHECKING:
    from boto3 import Session
    from mypy_boto3_s3 import S3Client

_CONNECT_SECONDS: Final = 15
_READ_SECONDS: Final = 60
#: Of one request, within seconds; botocore's own quota ends longer patience. S3Target has that.
_TRIES: Final = 3

_KEYS: Final = "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL."
_RIGHTS: Final = (
    "They need s3:ListBucket, s3:GetObject, s3:PutObject and s3:AbortMultipartUpload on the bucket."
)


def s3_client(
    session: Session,
    *,
    endpoint: str,
    addressing: str,
    proxy: Url | None,
    patient: bool,
    connections: int,
    emit: Emit,
) -> S3Client:
    """``endpoint`` "" = boto3's own; ``addressing``: where the bucket stands in a URL, before the host's name
    (virtual), first in the path (path), or as boto3 has it (auto: in the path for IP addresses);
    ``patient``: 503, SlowDown and the like are tried again.

    Raises UsageError.
    """
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    proxies = {"http": proxy.reveal(), "https": proxy.reveal()} if proxy else {}
    try:
        signed = session.get_credentials() is not None
        client = session.client(
            "s3",
            endpoint_url=endpoint or None,
            config=Config(
                signature_version="s3v4" if signed else UNSIGNED,
                s3={"addressing_style": cast(Any, addressing)},
                proxies=proxies,
                retries={"mode": "standard", "total_max_attempts": _TRIES if patient else 1},
                max_pool_connections=connections,
                connect_timeout=_CONNECT_SECONDS,
                read_timeout=_READ_SECONDS,
                # what is sent has its SHA-256; other checksums only where S3 insists
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )
    except (BotoCoreError, ValueError) as error:
        raise unusable(error) from error

    def told(caught_exception: Exception | None = None, response: Any = None, **_: object) -> None:
        status = response[0].status_code if response else 0
        if isinstance(getattr(caught_exception, "kwargs", {}).get("error"), NimpullError):
            return  # a run that is stopped interrupts what is being sent
        if caught_exception or status in (429, 500, 502, 503, 504):
            code = response[1].get("Error", {}).get("Code", status) if response else ""
            emit(Waiting(f"S3 answers {display(code or caught_exception, 200)}", 0.0))

    client.meta.events.register_first("needs-retry.s3", told)
    for operation in ("PutObject", "UploadPart"):
        client.meta.events.register(f"provide-client-params.s3.{operation}", cast(Any, _with_checksum))
    return client


def _with_checksum(params: dict[str, Any], **_: object) -> dict[str, Any]:
    """The SHA-256 of the body before it is sent. Over TLS botocore would send it behind the body, in a coding
    of the body (aws-chunked) that many servers of S3's kind do not know, or keep as the object's own."""
    body = params["Body"]
    content = body if isinstance(body, bytes) else body.read()
    if not isinstance(body, bytes):
        body.seek(0)
    return {**params, "ChecksumSHA256": b64encode(hashlib.sha256(content).digest()).decode()}


def as_failure(error: BaseException, what: str) -> NimpullError:
    """What an error of boto3's means, met while ``what`` was asked ("… of s3://bucket")."""
    from botocore import exceptions as boto
    from s3transfer.exceptions import CancelledError

    match error:
        case NimpullError():
            return error
        case boto.ClientError():
            return _refusal(error, what)
        case CancelledError():
            return Cancelled("stopped while a file was sent", hint="Run again to continue.")
        case boto.NoCredentialsError() | boto.CredentialRetrievalError() | boto.PartialCredentialsError():
            return AuthError(f"{what}: boto3 has no credential: {display(error, 300)}", hint=_KEYS)
        case boto.ParamValidationError():
            return UsageError(f"{what}: {display(error, 300)}", hint="Check the name of the bucket.")
    hint = "Check the network policies, AWS_ENDPOINT_URL and AWS_REGION. What was sent stays."
    return unreached(error, what, hint) or NetworkError(
        f"{what}: {display(error, 300)}", hint="Run again: what was sent stays."
    )


def _refusal(error: Any, what: str) -> NimpullError:
    """``error``: a ClientError."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    told = error.response.get("ResponseMetadata", {})
    status, headers = told.get("HTTPStatusCode", 0), told.get("HTTPHeaders", {})
    where = f"{what}: S3 answers {status} {display(code, 60)}"
    if failure := coded(where, status, code, headers.get("x-amz-bucket-region", "")):
        return failure
    if status == 403:
        return ForbiddenError(f"{where}: these credentials may not do that", hint=_RIGHTS)
    if status == 404:
        return NotFoundError(f"{where}: it is not there", hint=CHECK_BUCKET)
    if status == 507:
        return NoSpaceError(f"{where}: its storage is full", hint=FREE_ROOM)
    if status >= 500 or status == 429 or code in ("SlowDown", "RequestTimeout"):
        return NetworkError(where, hint="The store is overloaded or down. Run again: what was sent stays.")
    message = display(error.response.get("Error", {}).get("Message", ""), 200)
    return UsageError(f"{where}: {message}", hint="The store does not take what was asked for.")
