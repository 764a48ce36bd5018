"""A registry on loopback sockets: NGC, the Hugging Face Hub, a NeMo DataStore and the CDN behind them.

It speaks what the public clients were seen to need, keeps a log of every request, and can be told to fail.
"""

from __future__ import annotations

import hashlib
import hmac
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from tests.registry import faults as faults
from tests.registry.content import Blob, as_blob
from tests.registry.faults import Edit, Fault
from tests.registry.hub import DATASTORE_PREFIX, Hub, HubRepo
from tests.registry.ngc import Ngc, NgcModel
from tests.registry.wire import Answer, Request, Server, document, file, text

__all__ = ["Answer", "Blob", "Edit", "Fault", "Registry", "Request", "document", "faults", "text"]

Content = bytes | Path | Blob
Applied = Callable[[Request, Answer], Answer]
_SECRET = b"signs the URLs of one registry"


class Registry:
    """Context manager. ``faults`` are applied to every answer in order; ``requests`` is the log.

    ``now`` is the time that tokens and presigned URLs expire by, seconds since the epoch; ``url_lifetime`` in
    seconds. ``rate``: bytes per second of each CDN connection, 0 = as fast as it goes.
    """

    def __init__(
        self,
        *,
        now: Callable[[], float] = time.time,
        tls: ssl.SSLContext | None = None,
        ngc_key: str = "nvapi-registry-canary",
        legacy_key: str = "bGVnYWN5LWNhbmFyeQ==",
        hf_token: str = "hf_registrycanary",  # noqa: S107 - opens nothing but this
        org: str = "acme",
    ) -> None:
        self.now = now
        self.url_lifetime = 86_400.0
        self.rate = 0
        self.faults: list[Applied] = []
        self.requests: list[Request] = []
        self._places: dict[str, Blob] = {}
        self._generation = 0
        self._lock = threading.Lock()
        self.ngc = Ngc(ngc_key, legacy_key, org, self._time, self._sign)
        self.hub = Hub(hf_token, self._sign, scheme="https" if tls else "http")
        self._ngc_server = Server("ngc", lambda request: self._answer(request, self.ngc.respond), tls=tls)
        self._hub_server = Server("hub", lambda request: self._answer(request, self.hub.respond), tls=tls)
        self._cdn_server = Server("cdn", lambda request: self._answer(request, self._cdn), tls=tls)
        self.ngc_url = self._ngc_server.url
        self.hub_url = self._hub_server.url
        self.datastore_url = self.hub_url + DATASTORE_PREFIX
        self.cdn_url = self._cdn_server.url

    @property
    def servers(self) -> tuple[Server, Server, Server]:
        """NGC, Hub, CDN."""
        return self._ngc_server, self._hub_server, self._cdn_server

    def __enter__(self) -> Self:
        for server in self.servers:
            server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self.servers:
            server.close()
        failures = [failure for server in self.servers for failure in server.failures]
        if failures and value is None:
            raise failures[0]

    def add_ngc_model(
        self,
        org: str,
        team: str,
        name: str,
        version: str,
        files: Mapping[str, Content],
        *,
        public: bool = False,
        entitled: bool = True,
        license: bool = False,
        manifest: bool = True,
        checksums: bool = False,
    ) -> NgcModel:
        """``team`` "" = none. ``checksums`` adds a ``checksums.blake3``; ``manifest=False``: endpoint e is
        refused for want of an organization context. The last version added is the latest."""
        blobs = {path: as_blob(content) for path, content in files.items()}
        if checksums:
            lines = [f"{blob.digest('blake3')}  {path}\n" for path, blob in sorted(blobs.items())]
            blobs["checksums.blake3"] = Blob("".join(lines).encode())
        model = self.ngc.models.setdefault((org, team, name), NgcModel(org, team, name))
        model.versions.pop(version, None)
        model.versions[version] = blobs
        model.public, model.entitled = public, entitled
        model.license, model.manifest = license, manifest
        return model

    def add_hub_repo(
        self,
        name: str,
        files: Mapping[str, Content],
        *,
        commit: str = "",
        branches: tuple[str, ...] = ("main",),
        repo_type: str = "model",
        private: bool = False,
        gated: bool = False,
        granted: bool = True,
    ) -> str:
        """Returns the commit (derived from the content by default). Called again for the same name it is a
        new commit, and ``branches`` move to it."""
        blobs = {path: as_blob(content) for path, content in files.items()}
        seed = "".join(
            f"{path} {blob.size} {blob.digest('sha256')}\n" for path, blob in sorted(blobs.items())
        )
        commit = commit or hashlib.sha1(seed.encode()).hexdigest()
        repo = self.hub.repos.setdefault((repo_type, name), HubRepo(name, repo_type))
        repo.commits[commit] = blobs
        repo.branches.update(dict.fromkeys(branches, commit))
        repo.private, repo.gated, repo.granted = private, gated, granted
        return commit

    def _time(self) -> float:
        return self.now()  # read when asked: a test may set another clock later

    def expire_urls(self) -> None:
        """Every presigned URL handed out so far is refused from now on."""
        self._generation += 1

    def log(self, server: str = "", path: str = "") -> list[Request]:
        """The requests so far to one server (ngc, hub, cdn) whose target holds ``path``."""
        with self._lock:
            kept = list(self.requests)
        return [r for r in kept if server in ("", r.server) and path in r.target]

    def _answer(self, request: Request, respond: Callable[[Request], Answer]) -> Answer:
        with self._lock:
            self.requests.append(request)
        answer = respond(request)
        for fault in tuple(self.faults):
            answer = fault(request, answer)
        return answer

    def _sign(self, place: str, blob: Blob) -> str:
        self._places[place] = blob
        expires = int(self.now() + self.url_lifetime)
        query = f"versionId=v1&Expires={expires}&Signature={self._signature(place, expires)}&Key-Pair-Id=K1"
        return f"{self.cdn_url}{quote(place)}?{query}"

    def _signature(self, place: str, expires: int) -> str:
        message = f"{place} {expires} {self._generation}".encode()
        return hmac.new(_SECRET, message, "sha256").hexdigest() + "~-_"

    def _cdn(self, request: Request) -> Answer:
        if request.authorization:
            return _xml(400, "InvalidArgument")  # S3 refuses two authentication mechanisms
        expires = request.query.get("Expires", "0")
        if request.query.get("Signature") != self._signature(request.path, int(expires)):
            return _xml(403, "AccessDenied")
        if int(expires) < self.now():
            return _xml(403, "AccessDenied")
        blob = self._places.get(request.path)
        if blob is None:
            return _xml(404, "NoSuchKey")
        etag = blob.digest("sha256") if request.path.startswith("/lfs/") else blob.opaque_etag
        answer = file(request, blob, {"ETag": f'"{etag}"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"})
        return faults.slow(self.rate)(request, answer) if self.rate else answer


def _xml(status: int, code: str) -> Answer:
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code></Error>'.encode()
    return text(status, body, "application/xml")
