"""The Hub's read protocol: revision, tree, resolve; also what the NeMo DataStore serves under ``/v1/hf``."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlsplit

from tests.registry.content import Blob
from tests.registry.wire import Answer, Request, document, file

DATASTORE_PREFIX = "/v1/hf"
_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/.*)?)?/?")
_RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_RESOLVE_CACHE = re.compile(r"/api/resolve-cache/(models|datasets)/([^/]+/[^/]+)/([0-9a-f]{40})/(.+)")


@dataclass(slots=True)
class HubRepo:
    """``branches`` names commits; ``granted``: the account of the token may read the gated repository."""

    name: str
    repo_type: str
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    granted: bool = True

    def commit(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.branches.get(revision)


@dataclass(slots=True)
class Hub:
    """Files of at least ``lfs_from`` bytes are LFS objects; ``lfs_redirect``: they come from the CDN."""

    token: str
    sign: Callable[[str, Blob], str]
    repos: dict[tuple[str, str], HubRepo] = field(default_factory=dict)
    lfs_from: int = 100_000
    lfs_redirect: bool = True
    resolve_cache: bool = False
    page_size: int = 1000
    scheme: str = "http"

    def respond(self, request: Request) -> Answer:
        raw = urlsplit(request.target).path
        prefix = DATASTORE_PREFIX if raw.startswith(DATASTORE_PREFIX + "/") else ""
        path = raw.removeprefix(prefix)
        if request.authorization and request.authorization != f"Bearer {self.token}":
            return refusal(401, "", "Invalid credentials in Authorization header")
        api = _API.fullmatch(path)
        if api:
            repo = self.repos.get((api[1].removesuffix("s"), unquote(api[2])))
            return self._hidden(request, repo) or self._api(request, repo, api, prefix)
        found = _RESOLVE.fullmatch(path)
        cached = _RESOLVE_CACHE.fullmatch(path)
        if found:
            kind = "dataset" if found[1] else "model"
            return self._resolve(request, (kind, unquote(found[2])), found[3], found[4], prefix)
        if cached:
            kind = cached[1].removesuffix("s")
            return self._resolve(
                request, (kind, unquote(cached[2])), cached[3], cached[4], prefix, cached=True
            )
        return refusal(404, "", "Not found")

    def _hidden(self, request: Request, repo: HubRepo | None) -> Answer | None:
        """Without a token the Hub does not tell a private repository from none."""
        if repo is not None and not (repo.private and not request.authorization):
            return None
        if request.authorization:
            return refusal(404, "RepoNotFound", "Repository not found")
        return refusal(401, "RepoNotFound", "Invalid username or password.")

    def _api(self, request: Request, repo: HubRepo | None, api: re.Match[str], prefix: str) -> Answer:
        if repo is None:
            raise LookupError("hidden repositories are refused before")
        revision = unquote(api[4] or "main")
        commit = repo.commit(revision)
        if commit is None:
            return refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if api[3] == "tree":
            return self._tree(request, repo.commits[commit], prefix)
        return document(
            {
                "id": repo.name,
                "sha": commit,
                "private": repo.private,
                "gated": "manual" if repo.gated else False,
                "siblings": [{"rfilename": path} for path in sorted(repo.commits[commit])],
            }
        )

    def _tree(self, request: Request, files: dict[str, Blob], prefix: str) -> Answer:
        folders = {path.rsplit("/", depth)[0] for path in files for depth in range(1, path.count("/") + 1)}
        rows: list[dict[str, object]] = [
            {"type": "directory", "oid": "0" * 40, "size": 0, "path": folder} for folder in folders
        ]
        rows += [self._row(path, blob) for path, blob in files.items()]
        rows.sort(key=lambda row: str(row["path"]))
        cursor = int(request.query.get("cursor", "0"))
        page = rows[cursor : cursor + self.page_size]
        if cursor + self.page_size >= len(rows):
            return document(page)
        base = f"{self.scheme}://{request.headers['host']}{urlsplit(request.target).path}"
        following = f'<{base}?recursive=true&expand=false&cursor={cursor + self.page_size}>; rel="next"'
        return document(page, Link=following)

    def _row(self, path: str, blob: Blob) -> dict[str, object]:
        row: dict[str, object] = {"type": "file", "size": blob.size, "path": path}
        if blob.size < self.lfs_from:
            return row | {"oid": blob.digest("git")}
        pointer = Blob(blob.lfs_pointer)
        lfs = {"oid": blob.digest("sha256"), "size": blob.size, "pointerSize": pointer.size}
        return row | {"oid": pointer.digest("git"), "lfs": lfs}

    def _resolve(  # noqa: PLR0911 - one return per answer reads as the table it is
        self,
        request: Request,
        key: tuple[str, str],
        revision: str,
        raw: str,
        prefix: str,
        *,
        cached: bool = False,
    ) -> Answer:
        repo = self.repos.get(key)
        hidden = self._hidden(request, repo)
        if hidden or repo is None:
            return hidden or refusal(404, "RepoNotFound", "Repository not found")
        if repo.gated and not (request.authorization and repo.granted):
            message = f"Access to {repo.repo_type} {repo.name} is restricted."
            return refusal(403 if request.authorization else 401, "GatedRepo", message)
        commit = repo.commit(unquote(revision))
        if commit is None:
            return refusal(404, "RevisionNotFound", f"Invalid rev id: {unquote(revision)}")
        path = unquote(raw)
        blob = repo.commits[commit].get(path)
        if blob is None:
            return refusal(404, "EntryNotFound", "Entry not found", X_Repo_Commit=commit)
        seen = {"X-Repo-Commit": commit}
        if blob.size >= self.lfs_from:
            oid = blob.digest("sha256")
            seen |= {"X-Linked-Size": str(blob.size), "X-Linked-ETag": f'"{oid}"'}
            if self.lfs_redirect:
                return Answer(302, seen | {"Location": self.sign(f"/lfs/{oid[:2]}/{oid}", blob)})
            return file(request, blob, seen | {"ETag": f'"{oid}"'})
        oid = blob.digest("git")
        if self.resolve_cache and not cached:
            kind = f"{repo.repo_type}s"
            place = f"{prefix}/api/resolve-cache/{kind}/{repo.name}/{commit}/{quote(path)}"
            return Answer(307, seen | {"Location": place, "ETag": f'"{oid}"'})
        return file(request, blob, seen | {"ETag": f'"{oid}"'})


def refusal(status: int, code: str, message: str, **headers: str) -> Answer:
    named = {"X_Error_Code": code, "X_Error_Message": message, **headers}
    return document({"error": message}, status, **{name: value for name, value in named.items() if value})
