"""A bucket that is written to, as S3 answers: objects at once and in parts, checksums, metadata, errors."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from urllib.parse import parse_qs, unquote, urlsplit

from tests.buckets import Bucket
from tests.servers import Peer, Seen

#: (status, code) of a refusal, None = none.
Refuse = Callable[[Seen], tuple[int, str] | None]


@dataclass(slots=True)
class Written:
    """``sha256``: what S3 says of it; ``metadata``: headers."""

    content: bytes
    sha256: str
    metadata: dict[str, str]


@dataclass(slots=True)
class _Upload:
    key: str
    metadata: dict[str, str]
    parts: dict[int, bytes] = field(default_factory=dict)


class WritableBucket:
    """``refuse`` is asked before each request is carried out; ``region``: told with refusals."""

    def __init__(self, name: str = "models") -> None:
        self.root = f"/{name}".rstrip("/")  # none where the bucket stands before the host's name
        self.objects: dict[str, Written] = {}
        self.refuse: Refuse = lambda seen: None
        self.region = ""
        self.keeps_checksums = True
        self._uploads: dict[str, _Upload] = {}
        self._lock = Lock()

    @property
    def contents(self) -> dict[str, bytes]:
        return {key: written.content for key, written in self.objects.items()}

    def overwrite(self, key: str, content: bytes) -> None:
        """As someone else does."""
        self.objects[key] = Written(content, _sha256(content), {})

    def __call__(self, seen: Seen, peer: Peer) -> None:
        if refusal := self.refuse(seen):
            status, code = refusal
            region = {"x-amz-bucket-region": self.region} if self.region else {}
            body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
            if seen.method == "HEAD":
                peer.head(status, {"Content-Length": "0", **region})
            else:
                peer.reply(status, body, {"Content-Type": "application/xml", **region})
            return
        parts = urlsplit(seen.target)
        pairs = parse_qs(parts.query, keep_blank_values=True)
        query = {name: values[0] for name, values in pairs.items()}
        with self._lock:
            self._carry_out(seen, peer, unquote(parts.path.removeprefix(self.root)).lstrip("/"), query)

    def _carry_out(self, seen: Seen, peer: Peer, key: str, query: dict[str, str]) -> None:
        metadata = {name: text for name, text in seen.headers.items() if name.startswith("x-amz-meta-")}
        match seen.method:
            case "POST" if "uploads" in query:
                name = str(len(self._uploads))
                self._uploads[name] = _Upload(key, metadata)
                made = "InitiateMultipartUploadResult"
                peer.reply(200, f"<{made}><UploadId>{name}</UploadId></{made}>".encode())
            case "PUT" if "partNumber" in query:
                self._uploads[query["uploadId"]].parts[int(query["partNumber"])] = seen.body
                peer.reply(200, b"", {"ETag": '"part"', "x-amz-checksum-sha256": _sha256(seen.body)})
            case "POST":
                self._complete(peer, query["uploadId"])
            case "DELETE":
                self._uploads.pop(query.get("uploadId", ""), None)
                peer.reply(204)
            case "PUT":
                self.objects[key] = Written(seen.body, _sha256(seen.body), metadata)
                peer.reply(200, b"", {"ETag": '"whole"'})
            case "GET" if "list-type" in query:
                Bucket(f"{self.root}/", self.contents, page=3)(seen, peer)
            case _:
                self._read(seen, peer, key)

    def _complete(self, peer: Peer, upload: str) -> None:
        done = self._uploads.pop(upload)
        blocks = [block for _, block in sorted(done.parts.items())]
        hashes = b"".join(hashlib.sha256(block).digest() for block in blocks)
        sha256 = f"{_sha256(hashes)}-{len(blocks)}"
        self.objects[done.key] = Written(b"".join(blocks), sha256, done.metadata)
        peer.reply(200, b"<CompleteMultipartUploadResult/>")

    def _read(self, seen: Seen, peer: Peer, key: str) -> None:
        written = self.objects.get(key)
        if written is None:
            peer.reply(404, b"" if seen.method == "HEAD" else b"<Error><Code>NoSuchKey</Code></Error>")
        elif seen.method == "HEAD":
            kept = self.keeps_checksums and "x-amz-checksum-mode" in seen.headers
            number = re.search(r"-\d+$", written.sha256)
            told = {
                "Content-Length": str(len(written.content)),
                "ETag": f'"etag{number[0] if number else ""}"',
                **written.metadata,
            }
            peer.head(200, told | ({"x-amz-checksum-sha256": written.sha256} if kept else {}))
        else:
            peer.file(seen, written.content)


def _sha256(content: bytes) -> str:
    return b64encode(hashlib.sha256(content).digest()).decode()
