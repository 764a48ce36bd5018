"""NGC's read protocol: token exchange, caller, model, versions, file list, files manifest, single files."""

from __future__ import annotations

import base64
import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import parse_qs

from tests.registry.content import Blob
from tests.registry.wire import Answer, Request, document, text

T = TypeVar("T")
_KEYED = re.compile(r"/v2/org/([^/]+)(?:/team/([^/]+))?/models/([^/]+)(/.*)?")
_GUEST_MANIFEST = re.compile(r"/v2/models/org/([^/]+)(?:/team/([^/]+))?/([^/]+)(/[^/]+/files)")
_GUEST = re.compile(r"/v2/models/([^/]+)/(?:([^/]+)/)?([^/]+?)(/versions(?:/.*)?)?")


@dataclass(slots=True)
class NgcModel:
    """``public``: guests may read it; ``entitled``: the caller may; ``license``: terms are not accepted."""

    org: str
    team: str
    name: str
    versions: dict[str, dict[str, Blob]] = field(default_factory=dict)
    public: bool = False
    entitled: bool = True
    license: bool = False
    manifest: bool = True

    @property
    def id(self) -> tuple[str, str, str]:
        return self.org, self.team, self.name


@dataclass(slots=True)
class Ngc:
    """``sign``: presigned URL of (CDN path, content); ``page_base``: number of the first page.

    ``metadata``: of NIMs, by resource and tag; that service asks for no key.
    """

    key: str
    legacy_key: str
    org: str
    now: Callable[[], float]
    sign: Callable[[str, Blob], str]
    models: dict[tuple[str, str, str], NgcModel] = field(default_factory=dict)
    tokens: dict[str, float] = field(default_factory=dict)
    token_lifetime: int = 900
    page_size: int = 1000
    page_base: int = 0
    org_context: bool = False
    metadata: dict[tuple[str, str], object] = field(default_factory=dict)

    def respond(self, request: Request) -> Answer:
        if answer := self._without_bearer(request):
            return answer
        who = self._identity(request)
        if who == "bad":
            return refusal(401, "UNAUTHORIZED", "Unauthenticated")
        for pattern, guest in ((_KEYED, False), (_GUEST_MANIFEST, True), (_GUEST, True)):
            found = pattern.fullmatch(request.path)
            if found:
                org, team, name, rest = (part or "" for part in found.groups())
                model = self.models.get((org, team, name))
                denied = self._denied(request, model, guest, who, rest)
                if denied or model is None:
                    return denied or refusal(404, "NOT_FOUND", f"The resource was not found: {name}")
                return self._model(request, model, rest)
        return refusal(404, "NOT_FOUND", f"no route {request.path}")

    def _without_bearer(self, request: Request) -> Answer | None:
        if request.path == "/token":
            return self._token(request)
        if request.path == "/v3/keys/get-caller-info" and request.method == "POST":
            return self._caller(request)
        if request.path == "/v2/nim/metadata":
            known = self.metadata.get((request.query.get("resourceId", ""), request.query.get("tag", "")))
            return refusal(404, "NOT_FOUND", "No metadata found") if known is None else document(known)
        return None

    def _token(self, request: Request) -> Answer:
        wanted = base64.b64encode(f"$oauthtoken:{self.legacy_key}".encode()).decode()
        if request.authorization != f"Basic {wanted}":
            return document({"errors": "Invalid apikey"}, 401)
        token = f"stub.{uuid.uuid4().hex}.jwt"
        self.tokens[token] = self.now() + self.token_lifetime
        return document({"token": token, "expires_in": self.token_lifetime})

    def _caller(self, request: Request) -> Answer:
        if parse_qs(request.body.decode()).get("credentials") != [self.key]:
            return refusal(401, "UNAUTHORIZED", "Invalid key")
        return document({"type": "PERSONAL_KEY", "orgName": self.org, "user": {"roles": []}})

    def _identity(self, request: Request) -> str:
        kind, _, value = request.authorization.partition(" ")
        if not kind:
            return "guest"
        if kind == "Bearer" and (value == self.key or self.tokens.get(value, 0) > self.now()):
            return "caller"
        return "bad"

    def _denied(
        self, request: Request, model: NgcModel | None, guest: bool, who: str, rest: str
    ) -> Answer | None:
        open_to_guests = guest and model is not None and model.public
        if who == "guest" and not open_to_guests:
            return refusal(401, "UNAUTHORIZED", "Unauthenticated")
        if model is None or open_to_guests:
            return None
        if self.org_context and "nv-ngc-org" not in request.headers:
            return refusal(400, "INVALID_REQUEST", "Org contex missing")
        if not model.entitled:
            return refusal(
                403, "FORBIDDEN", "The user is not a member of the organization that owns the repo."
            )
        if not model.manifest and re.fullmatch(r"/[^/]+/files", rest) and rest != "/versions/files":
            return refusal(400, "INVALID_REQUEST", "Org contex missing")
        return None

    def _model(self, request: Request, model: NgcModel, rest: str) -> Answer:
        about = {
            "name": model.name,
            "orgName": model.org,
            "latestVersionIdStr": list(model.versions)[-1],
            "isPublic": model.public,
            "canGuestDownload": model.public,
        }
        if not rest:
            return success({"model": about})
        if rest == "/versions":
            versions = [_version(name, files) for name, files in model.versions.items()]
            return self._paged(request, "modelVersions", versions, {"model": about})
        listed = re.fullmatch(r"/versions/([^/]+)(/.*)?", rest)
        manifest = re.fullmatch(r"/([^/]+)/files", rest)
        version = (listed or manifest or [None, ""])[1] or ""
        files = model.versions.get(version)
        if files is None:
            return refusal(404, "NOT_FOUND", f"version {version} not found")
        if model.license and rest.rstrip("/").endswith("files"):
            return refusal(412, "INVALID_REQUEST", "License terms must be accepted before downloading.")
        if listed:
            return self._version(request, model, version, files, listed[2] or "")
        return self._manifest(request, model, version, files)

    def _version(
        self, request: Request, model: NgcModel, version: str, files: dict[str, Blob], tail: str
    ) -> Answer:
        if not tail:
            return success({"modelVersion": _version(version, files)})
        if tail == "/files":
            rows = [
                {"path": path, "sizeInBytes": blob.size, "sha256_base64": blob.sha256_base64}
                for path, blob in files.items()
            ]
            return self._paged(request, "modelFiles", rows, {"modelVersion": _version(version, files)})
        path = tail.removeprefix("/files/")
        if path not in files:
            return refusal(404, "NOT_FOUND", f"{path} not found")
        return text(302, Location=self._url(model, version, path))

    def _manifest(self, request: Request, model: NgcModel, version: str, files: dict[str, Blob]) -> Answer:
        path = request.query.get("path")
        if path is None:
            names, pages = self._page(request, list(files))
        elif path not in files:
            return refusal(404, "NOT_FOUND", f"{path} not found")
        elif request.query.get("redirect") == "true":
            return text(302, Location=self._url(model, version, path))
        else:
            names, pages = [path], {"index": 0, "size": 1, "totalPages": 1, "totalResults": 1}
        return success(
            {
                "urls": [self._url(model, version, name) for name in names],
                "filepath": names,
                "sha256_base64": [files[name].sha256_base64 for name in names],
                "paginationInfo": pages,
            }
        )

    def _url(self, model: NgcModel, version: str, path: str) -> str:
        team = f"/team/{model.team}" if model.team else ""
        place = f"/org/{model.org}{team}/models/{model.name}/versions/{version}/files/{path}"
        return self.sign(place, model.versions[version][path])

    def _page(self, request: Request, items: Sequence[T]) -> tuple[list[T], dict[str, int]]:
        size = max(1, min(int(request.query.get("page-size", "100")), self.page_size))
        asked = request.query.get("page-number")
        number = int(asked) - self.page_base if asked is not None else 0
        total = -(-len(items) // size)
        pages = {"index": number, "size": size, "totalPages": total, "totalResults": len(items)}
        return list(items[max(0, number) * size : (max(0, number) + 1) * size]), pages

    def _paged(self, request: Request, name: str, items: Sequence[object], more: dict[str, object]) -> Answer:
        page, pages = self._page(request, items)
        return success({name: page, "paginationInfo": pages, **more})


def _version(name: str, files: dict[str, Blob]) -> dict[str, object]:
    return {
        "versionId": name,
        "status": "UPLOAD_COMPLETE",
        "storageVersion": "V2",
        "totalFileCount": len(files),
        "totalSizeInBytes": sum(blob.size for blob in files.values()),
    }


def success(value: dict[str, object]) -> Answer:
    return document({**value, "requestStatus": {"statusCode": "SUCCESS", "requestId": str(uuid.uuid4())}})


def refusal(status: int, code: str, description: str) -> Answer:
    return document(
        {
            "requestStatus": {
                "statusCode": code,
                "statusDescription": description,
                "requestId": str(uuid.uuid4()),
            }
        },
        status,
    )
