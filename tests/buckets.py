"""Buckets as S3 and its kind answer for them."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Mapping
from urllib.parse import parse_qs, quote_plus, unquote, urlsplit
from xml.sax.saxutils import escape

from blake3 import blake3

from nimpull.core.mirror_objects import object_key
from nimpull.core.names import ModelUri
from tests.servers import Peer, Seen

AWS = {"AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "aws-canary"}


class Bucket:
    """``objects`` by key below ``root``; with ``page`` > 0 it lists like S3, so many at a time.

    ``checksums``: S3 keeps a SHA-256 of each object; ``encryption``: the header that tells of it.
    ``version``: of the listing that it speaks (2, or 1: it passes over ``list-type``); ``encodes``: names
    come as in a query, asked for or not; ``xmlns``: of its documents.
    """

    def __init__(self, root: str, objects: Mapping[str, bytes], page: int = 0) -> None:
        self.objects = dict(objects)
        self.root = root
        self.page = page
        self.checksums = True
        self.encryption: dict[str, str] = {}
        self.size = ""  # as it is listed, "" = what it is
        self.version = 2
        self.encodes = False
        self.xmlns = "http://s3.amazonaws.com/doc/2006-03-01/"

    def __call__(self, seen: Seen, peer: Peer) -> None:
        parts = urlsplit(seen.target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if "prefix" in query:
            self._list(query, peer)
            return
        content = self.objects.get(unquote(parts.path.removeprefix(self.root)))
        if content is None:
            peer.reply(404)
        elif seen.method == "HEAD":
            digest = b64encode(hashlib.sha256(content).digest()).decode()
            kept = self.checksums and "x-amz-checksum-mode" in seen.headers
            signed = {"x-amz-checksum-sha256": digest} if kept else {}
            told = {"Content-Length": str(len(content)), "ETag": etag_of(content)}
            peer.head(200, {**told, **signed, **self.encryption})
        else:
            peer.file(seen, content, etag_of(content))

    def _list(self, query: dict[str, str], peer: Peer) -> None:
        keys = sorted(key for key in self.objects if key.startswith(query["prefix"]))
        if self.version == 2:
            start = int(query.get("continuation-token", 0))
        else:
            start = sum(key <= query.get("marker", "") for key in keys)
        after = start + (self.page or len(keys))
        more = after < len(keys)
        items = "".join(self._row(key) for key in keys[start:after])
        told = more and self.version == 2
        token = f"<NextContinuationToken>{after}</NextContinuationToken>" if told else ""
        named = "<EncodingType>url</EncodingType>" if self.encodes else ""
        truncated = f"<IsTruncated>{str(more).lower()}</IsTruncated>"
        xmlns = f' xmlns="{self.xmlns}"' if self.xmlns else ""
        body = f"<ListBucketResult{xmlns}>{named}{truncated}{items}{token}</ListBucketResult>"
        peer.reply(200, body.encode())

    def _row(self, key: str) -> str:
        """Where names are encoded, blanks are written as plus, as Go's servers do."""
        content = self.objects[key]
        name = quote_plus(key, safe="/") if self.encodes else key
        named = f"<Key>{escape(name)}</Key><ETag>{escape(etag_of(content))}</ETag>"
        return f"<Contents>{named}<Size>{self.size or len(content)}</Size></Contents>"


def etag_of(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


def listed(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """With the list of checksums without which a mirror is not complete."""
    sums = "".join(f"{blake3(content).hexdigest()}  {path}\n" for path, content in files.items())
    return {"checksums.blake3": sums.encode(), **files}


def mirrored(models: Mapping[str, Mapping[str, bytes]]) -> dict[str, bytes]:
    """The objects of a whole mirror of NGC: ``models`` are files by URI."""
    return {
        object_key(ModelUri.parse(uri).with_path(path)): content
        for uri, files in models.items()
        for path, content in listed(files).items()
    }


def model_bucket(files: Mapping[str, bytes]) -> Bucket:
    """``s3://bucket/models/tiny``, beside another model, listed in pages of two."""
    others = {"models/tiny/sub/": b"", "models/tiny2/other.json": b"of another model"}
    objects = {f"models/tiny/{path}": content for path, content in files.items()}
    return Bucket("/bucket/", objects | others, page=2)
