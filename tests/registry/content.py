"""What the registry serves: bytes in memory or a file on disk, with the digests that registries publish."""

from __future__ import annotations

import hashlib
import threading
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

from nimpull.core.digest import new_hasher

_BLOCK = 1 << 20


class Blob:
    """One file's content. Digests are computed on first use and kept; a file is never read whole."""

    def __init__(self, content: bytes | Path) -> None:
        self.content = content
        self.size = len(content) if isinstance(content, bytes) else content.stat().st_size
        self._digests: dict[str, str] = {}
        self._lock = threading.Lock()

    def blocks(self, start: int, end: int) -> Iterator[bytes]:
        if isinstance(self.content, bytes):
            for at in range(start, end, _BLOCK):
                yield self.content[at : min(at + _BLOCK, end)]
            return
        with self.content.open("rb") as file:
            file.seek(start)
            while start < end:
                block = file.read(min(_BLOCK, end - start))
                if not block:
                    return
                start += len(block)
                yield block

    def digest(self, algorithm: str) -> str:
        """Hex: sha256, md5, blake3 or git (the blob id)."""
        with self._lock:
            if algorithm not in self._digests:
                hasher = new_hasher(algorithm, self.size)
                for block in self.blocks(0, self.size):
                    hasher.update(block)
                self._digests[algorithm] = hasher.hexdigest()
            return self._digests[algorithm]

    @property
    def sha256_base64(self) -> str:
        return b64encode(bytes.fromhex(self.digest("sha256"))).decode()

    @property
    def lfs_pointer(self) -> bytes:
        """The text that git keeps in place of a large file (Git LFS specification v1)."""
        oid = self.digest("sha256")
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {self.size}\n".encode()

    @property
    def opaque_etag(self) -> str:
        """An ETag as of an SSE-C object: 32 hex that is not the MD5 of the content."""
        return hashlib.md5(b"ssec" + self.digest("sha256").encode()).hexdigest()


def as_blob(content: bytes | Path | Blob) -> Blob:
    return content if isinstance(content, Blob) else Blob(content)
