"""A mirror in a bucket, written through boto3's transfer manager.

Each object is sent with the SHA-256 of its content (of each part, for what is sent in parts), which S3 checks
and keeps; with it go, as metadata, the digests by which a later run knows the content without reading it. An
object that others wrote has no such metadata, or a checksum that does not fit it, and is sent again.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeVar, cast
from urllib.parse import quote

from nimpull.core.digest import Digest, new_hasher
from nimpull.core.events import Advanced, Waiting
from nimpull.core.mirror_objects import (
    ExistingObject,
    MirrorFile,
    MirrorRepository,
    VerifiedReader,
    object_key,
    part_size,
)
from nimpull.core.names import display
from nimpull.core.patience import Patience
from nimpull.core.ports import Cancel, Clock, Emit
from nimpull.errors import Cancelled, IntegrityError, NetworkError
from nimpull.mirror.s3_client import as_failure

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PART: Final = 8 << 20  # bytes; what is no larger is sent at once
_BLOCK: Final = 1 << 20
#: Metadata of an object: its digests, as ``algorithm:hex`` with blanks between.
_DIGESTS: Final = "nimpull-digests"

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class _Kept:
    """The SHA-256 that S3 keeps of an object: of the whole, or of the SHA-256 of its ``parts`` (0 = whole).

    Amazon S3 User Guide, "Checking object integrity": of parts it reads ``<base64>-<number>``. Some servers
    leave the number out; the ETag has it too.
    """

    sha256: str
    parts: int

    @classmethod
    def of(cls, head: Mapping[str, Any]) -> _Kept | None:
        """None where nothing is kept, or nothing that can be read."""
        text, _, number = head.get("ChecksumSHA256", "").partition("-")
        number = number or head.get("ETag", "").strip('"').partition("-")[2]
        try:
            return cls(b64decode(text, validate=True).hex(), int(number or 0)) if text else None
        except ValueError:
            return None

    @classmethod
    def made(cls, parts: Sequence[bytes], *, in_parts: bool) -> _Kept:
        """``parts``: the SHA-256 of each; an empty file has none."""
        if in_parts:
            return cls(hashlib.sha256(b"".join(parts)).hexdigest(), len(parts))
        return cls(parts[0].hex() if parts else hashlib.sha256(b"").hexdigest(), 0)


class S3Target:
    """Implements :class:`nimpull.core.mirror_objects.Target`.

    ``connections``: requests at a time; memory holds at most that many parts and two more.
    """

    def __init__(
        self,
        client: S3Client,
        bucket: str,
        prefix: str,
        *,
        opened: Callable[[str], BinaryIO],
        connections: int,
        retry_seconds: float,
        clock: Clock,
        cancel: Cancel,
        emit: Emit,
    ) -> None:
        from s3transfer.manager import TransferConfig, TransferManager

        self.name = f"s3://{bucket}" + (f"/{prefix.strip('/')}" if prefix.strip("/") else "")
        self._client = client
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/".lstrip("/")
        self._opened = opened
        self._connections = connections
        self._retry_seconds = retry_seconds
        self._clock = clock
        self._moved = clock.monotonic()
        self._cancel = cancel
        self._emit = emit
        config = TransferConfig(
            multipart_threshold=PART + 1,  # boto3 sends in parts what is as large as this
            multipart_chunksize=PART,
            max_request_concurrency=connections,
            max_submission_concurrency=2,
            max_in_memory_upload_chunks=connections,
        )
        self._manager = TransferManager(client, config)

    # -- Target ----------------------------------------------------------------------------------------

    def key(self, repository: MirrorRepository, path: str) -> str:
        return self._prefix + object_key(repository.uri.with_path(path))

    def beside(self, key: str) -> str:
        return self._prefix + key

    def look(self, repository: MirrorRepository) -> Mapping[str, ExistingObject]:
        wanted = {self.key(repository, file.path) for file in repository.files}
        listed = wanted & self._keys(self._prefix + object_key(repository.uri) + quote("?file=", safe=""))
        with ThreadPoolExecutor(self._connections) as pool:
            found = zip(listed, pool.map(self._existing, listed), strict=True)
            return {key: existing for key, existing in found if existing}

    def compare(self, key: str, file: MirrorFile) -> bool:
        head = self._head(key)
        if head is None or file.size not in (None, head["ContentLength"]):
            return False
        kept, size = _Kept.of(head), int(head["ContentLength"])
        known = {digest.algorithm: digest.hex for digest in file.digests}
        if kept and not kept.parts and "sha256" in known:
            return kept.sha256 == known["sha256"]
        if kept and file.stored:
            part = part_size(size, PART) if kept.parts else size
            if not kept.parts or kept.parts == -(-size // part):
                return kept == self._kept_of(file, part, in_parts=kept.parts > 0)
        return self._read_back(key, file, size)

    def send(self, key: str, file: MirrorFile) -> str:
        content = self._asking(_named(key), lambda: self._sent(key, file))
        self._confirm(key, content, in_parts=content.size > PART)
        return content.blake3

    def _sent(self, key: str, file: MirrorFile) -> VerifiedReader:
        """One try."""
        progress = _Progress(self._emit)
        digests = [str(digest) for digest in file.digests]
        with self._opened(file.stored) as opened:
            content = VerifiedReader(opened, file, self._cancel, in_parts=True)
            body: Any = content
            if content.size <= PART:
                body = BytesIO(content.read())
                sha256 = hashlib.sha256(body.getvalue()).hexdigest()
                digests += [f"blake3:{content.blake3}", f"sha256:{sha256}"]
            arguments = {
                "ChecksumAlgorithm": "SHA256",
                "Metadata": {_DIGESTS: " ".join(dict.fromkeys(digests))},
                "ContentType": "application/octet-stream",
            }
            try:
                self._manager.upload(body, self._bucket, key, arguments, cast(Any, [progress])).result()
            except BaseException:
                progress.take_back()
                raise
        return content

    def read(self, key: str) -> bytes | None:
        def ask() -> bytes | None:
            try:
                return self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
            except self._client.exceptions.NoSuchKey:
                return None

        return self._asking(_named(key), ask)

    def write(self, key: str, content: bytes) -> None:
        def put() -> None:
            self._client.put_object(
                Bucket=self._bucket,
                Key=key,
                Body=content,
                ChecksumAlgorithm="SHA256",
                ContentType="text/plain; charset=utf-8",
            )

        self._asking(_named(key), put)

    def check_room(self, size: int, files: int) -> None:
        """A bucket does not say how much it takes."""

    def publish(self, repository: MirrorRepository, files: Mapping[str, MirrorFile]) -> None:
        """A bucket has nothing beside its objects."""

    def close(self) -> None:
        self._manager.shutdown(cancel=self._cancel.is_set())

    # -- requests --------------------------------------------------------------------------------------

    def _asking(self, what: str, ask: Callable[[], Answer]) -> Answer:
        """``ask`` of boto3, again while what hinders may heal: until nothing went well for the retry budget.

        Raises NimpullError.
        """
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError
        from s3transfer.exceptions import CancelledError, FatalError

        patience = Patience(self._retry_seconds, self._moved)
        while True:
            try:
                answer = ask()
            except (Boto3Error, BotoCoreError, ClientError, CancelledError, FatalError) as error:
                failure = as_failure(error, f"{what} of s3://{self._bucket}")
                # Whatever went well meanwhile, in any thread: the bucket answers.
                patience = replace(patience, since=self._moved)
                patience, seconds = patience.failed(self._clock.monotonic(), self._clock.jitter())
                if not isinstance(failure, NetworkError) or seconds is None:
                    raise failure from error
                self._emit(Waiting(failure.message, seconds))
                if self._clock.wait(seconds, self._cancel):
                    raise Cancelled(
                        "stopped while S3 was waited for", hint="Run again to continue."
                    ) from error
            else:
                self._moved = self._clock.monotonic()
                return answer

    def _keys(self, prefix: str) -> set[str]:
        def ask() -> set[str]:
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
            return {found["Key"] for page in pages for found in page.get("Contents", ())}

        return self._asking("the listing", ask)

    def _head(self, key: str) -> Any:
        """None where there is no such object."""
        from botocore.exceptions import ClientError

        def ask() -> Any:
            try:
                return self._client.head_object(Bucket=self._bucket, Key=key, ChecksumMode="ENABLED")
            except ClientError as error:
                # An answer to HEAD has no body: botocore takes its status for the code.
                if error.response["Error"]["Code"] in ("404", "NoSuchKey", "NotFound"):
                    return None
                raise

        return self._asking(_named(key), ask)

    def _existing(self, key: str) -> ExistingObject | None:
        head = self._head(key)
        if head is None:
            return None
        noted = []
        for text in head.get("Metadata", {}).get(_DIGESTS, "").split():
            try:
                noted.append(Digest.parse(text))
            except ValueError:
                continue
        kept = _Kept.of(head)
        if kept and not kept.parts:
            whole = Digest("sha256", kept.sha256)
            if any(digest.algorithm == "sha256" and digest != whole for digest in noted):
                noted = []  # what S3 has is not what the metadata speaks of
            noted.append(whole)
        return ExistingObject(head["ContentLength"], tuple(dict.fromkeys(noted)))

    def _confirm(self, key: str, content: VerifiedReader, *, in_parts: bool) -> None:
        """What the target has now. Raises IntegrityError."""
        head = self._head(key)
        expected = _Kept.made(content.parts, in_parts=in_parts)
        if head is None:
            problem = "it is not there"
        elif head["ContentLength"] != content.size:
            problem = f"it has {head['ContentLength']} bytes and not {content.size}"
        elif (kept := _Kept.of(head)) and kept != expected:
            problem = f"its SHA-256 is told as {kept.sha256} and not {expected.sha256}"
        else:
            return
        raise IntegrityError(
            f"s3://{self._bucket} took “{display(key, 300)}”, and then {problem}",
            hint="Something else writes there, or the store is at fault. Run again: what was sent stays.",
        )

    def _kept_of(self, file: MirrorFile, part: int, *, in_parts: bool) -> _Kept:
        """What S3 would keep for the file of the store."""
        with self._opened(file.stored) as opened:
            content = VerifiedReader(opened, file, self._cancel, in_parts=True)
            while content.read(part or 1):
                pass
            return _Kept.made(content.parts, in_parts=in_parts)

    def _read_back(self, key: str, file: MirrorFile, size: int) -> bool:
        if file.digest is None:
            return False
        algorithm, expected = file.digest.algorithm, file.digest.hex

        def ask() -> bool:
            hasher = new_hasher(algorithm, size)
            for block in self._client.get_object(Bucket=self._bucket, Key=key)["Body"].iter_chunks(_BLOCK):
                hasher.update(block)
            return hasher.hexdigest() == expected

        return self._asking(_named(key), ask)


def _named(key: str) -> str:
    return f"object “{display(key, 300)}”"


class _Progress:
    """A subscriber of the transfer manager: bytes as they go, negative where a try begins anew."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._sent = 0

    def on_progress(self, future: object, bytes_transferred: int, **_: object) -> None:  # noqa: ARG002 - boto3's
        self._sent += bytes_transferred
        self._emit(Advanced(bytes_transferred))

    def take_back(self) -> None:
        """What went will go once more."""
        self._emit(Advanced(-self._sent))
