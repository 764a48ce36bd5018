"""NGC: model versions, listed with sizes and digests, located by presigned URLs that end.

Two lists are joined: ``versions/V/files`` (names, sizes, SHA-256) and the files manifest ``V/files`` (the
presigned URLs, what NIM itself reads). Where an organization refuses the manifest, the names come from the
version's own ``checksums.blake3`` and each file from ``versions/V/files/PATH``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Set
from dataclasses import replace
from typing import Any, Final
from urllib.parse import quote

from nimpull.core.artifacts import Artifact, Listing, Location, Wanted
from nimpull.core.digest import Digest, new_hasher
from nimpull.core.mirror_objects import CHECKSUMS
from nimpull.core.names import ModelUri, SafePath, Url, display
from nimpull.core.ports import Api, Clock
from nimpull.core.redirects import resolve
from nimpull.core.reply import Reply
from nimpull.errors import (
    AuthError,
    ForbiddenError,
    LicenseError,
    ListingError,
    NimpullError,
    NotFoundError,
)
from nimpull.sources.answers import (
    EXPIRY_MARGIN,
    common_refusal,
    error_document,
    expiry,
    is_page,
    length,
    read_json,
    said,
)
from nimpull.sources.checksums import add_checksums, checksum_lines
from nimpull.sources.listing import MAX_PAGES, Entries, as_digest, narrowed, relative, with_sizes
from nimpull.sources.ngc_access import KEY_HINT, Access

_LATEST: Final = "latest"
_PAGE_SIZE: Final = 500
#: Presigned URLs have 1 KB and more: the newest are kept, the others asked for when their file's turn comes.
_KEPT_PLACES: Final = 5_000
_CATALOG: Final = "https://catalog.ngc.nvidia.com"
#: requestStatus.statusCode of an answer that comes with HTTP 200 and is none; what the others mean.
_TRANSIENT: Final = ("INTERNAL_ERROR", "TIMEOUT", "SERVICE_UNAVAILABLE", "UNKNOWN")
_STATUS_OF: Final = {
    "UNAUTHORIZED": 401,
    "PAYMENT_REQUIRED": 403,
    "FORBIDDEN": 403,
    "NOT_FOUND": 404,
    "TOO_MANY_REQUESTS": 429,
}


class _Refused(Exception):
    """A list is refused with 400 or 401, although the key is good elsewhere."""

    def __init__(self, error: NimpullError) -> None:
        super().__init__(error.message)
        self.error = error


class NgcSource:
    """Implements :class:`nimpull.core.ports.Source`. Thread-safe."""

    def __init__(self, api: Api, *, api_endpoint: Url, auth_endpoint: Url, key: str, clock: Clock) -> None:
        """Endpoints may have a path prefix (mirrors). ``key`` "" = guest: public models only."""
        self._api = api
        self._base = api_endpoint.reveal().rstrip("/")
        self._endpoint = api_endpoint
        self._key = key
        self._clock = clock
        self._access = Access(
            api, api_base=self._base, auth_base=auth_endpoint.reveal().rstrip("/"), key=key, clock=clock
        )
        self._places: dict[str, Location] = {}
        self._guest_repos: set[str] = set()
        self._manifest_refused: set[str] = set()
        self._lock = threading.Lock()

    # -- Source ----------------------------------------------------------------------------------------

    def list(self, uri: ModelUri, wanted: Wanted) -> Listing:
        """See :meth:`nimpull.core.ports.Source.list`."""
        repo = self._pinned(uri.repo)
        entries = Entries(repo, endpoint=str(Url(self._base)))
        notes: list[str] = []
        self._read_files(repo, entries)
        try:
            self._read_manifest(repo, entries)
        except _Refused as refused:
            notes.append(f"the files manifest of {repo} is refused; files come one by one")
            with self._lock:
                self._manifest_refused.add(str(repo))
            if not len(entries):
                self._read_checksum_names(repo, entries, refused.error)
        if CHECKSUMS in entries:
            notes += self._read_checksums(repo, entries)
        artifacts = with_sizes(entries.artifacts(narrowed(wanted, uri)), self._measure)
        return Listing(repo, uri.revision or _LATEST, artifacts, self._endpoint, tuple(notes))

    def locate(self, artifact: Artifact, *, fresh: bool = False) -> Location:
        """See :meth:`nimpull.core.ports.Source.locate`. Presigned URLs never carry the key."""
        repo = artifact.repo
        with self._lock:
            if fresh:
                self._places.pop(artifact.identity, None)
            known = self._places.get(artifact.identity)
            single = str(repo) in self._manifest_refused
        if known and (known.expires_at is None or known.expires_at - EXPIRY_MARGIN > self._clock.time()):
            return known
        if single:
            return self._single_file(artifact)
        try:
            url = f"{self._manifest_url(repo)}?path={quote(artifact.path, safe='')}"
            answer = self._get(url, repo, artifact.path, may_refuse=True)
        except _Refused:
            return self._single_file(artifact)
        self._keep_places(repo, answer)
        with self._lock:
            found = self._places.get(artifact.identity)
        return found or self._single_file(artifact)

    # -- listing ---------------------------------------------------------------------------------------

    def _pinned(self, repo: ModelUri) -> ModelUri:
        """``latest`` is what the model says it is; finds out on which path this model may be read, too."""
        answer = self._model(repo)
        if repo.revision not in ("", _LATEST):
            return repo
        model = answer.get("model")
        version = model.get("latestVersionIdStr") if isinstance(model, dict) else None
        if not isinstance(version, str) or not version:
            raise NotFoundError(
                f"{self._endpoint.authority} tells no latest version of {display(repo.repo_id)}",
                hint="Name a version: ngc://org/team/model:version.",
            )
        return ModelUri.parse(f"ngc://{repo.repo_id}:{version}")

    def _model(self, repo: ModelUri) -> Mapping[str, Any]:
        """A key of another organization is refused on the organization's path of a public model (403), but
        not on the guests' path."""
        query = "?resolve-labels=false"
        try:
            return self._get(self._model_url(repo) + query, repo)
        except ForbiddenError as refusal:
            with self._lock:
                self._guest_repos.add(repo.repo_id)
            try:
                return self._get(self._model_url(repo) + query, repo)
            except NimpullError:
                with self._lock:
                    self._guest_repos.discard(repo.repo_id)
                raise refusal from None  # the guests' path is a second chance, the first answer is the reason

    def _read_files(self, repo: ModelUri, entries: Entries) -> None:
        url = f"{self._model_url(repo)}/versions/{quote(repo.revision, safe='')}/files"
        try:
            seen = set[str]()
            for answer in self._pages(url, repo, seen):
                for row in _rows(answer, "modelFiles"):
                    digests = _sha256(row.get("sha256_base64"))
                    seen.add(entries.add(relative(row.get("path")), row.get("sizeInBytes"), digests))
        except _Refused:
            return  # the manifest will tell whether it is this call or the key

    def _read_manifest(self, repo: ModelUri, entries: Entries) -> None:
        seen = set[str]()
        for answer in self._pages(self._manifest_url(repo), repo, seen):
            for path, digests in _manifest_rows(answer):
                seen.add(entries.add(path, None, digests))
            self._keep_places(repo, answer)

    def _pages(self, url: str, repo: ModelUri, seen: Set[str]) -> Iterator[Mapping[str, Any]]:
        """Every page; the caller adds its rows to ``seen`` between two. Raises ListingError if too few come.

        Public clients disagree whether the second page is number 1 or 2: duplicates are harmless, and one
        page more is asked for when the count is short.
        """
        answer = self._get(f"{url}?page-size={_PAGE_SIZE}", repo, may_refuse=True)
        yield answer
        pages, results = _extent(answer)
        if pages > MAX_PAGES:
            raise ListingError(
                f"{self._endpoint.authority} claims {pages} pages of files in {repo}",
                hint="No model has that many files; report it to the registry's owner.",
            )
        for number in range(1, pages + 1):
            if number == pages and len(seen) >= results:
                break
            yield self._get(f"{url}?page-size={_PAGE_SIZE}&page-number={number}", repo, may_refuse=True)
        if len(seen) < results:
            raise ListingError(
                f"{self._endpoint.authority} lists {len(seen)} of the {results} files that {repo} has",
                hint="The listing is incomplete; nothing was written. Run again, then report it.",
            )

    def _keep_places(self, repo: ModelUri, answer: Mapping[str, Any]) -> None:
        urls = answer.get("urls") or []
        paths = [path for path, _ in _manifest_rows(answer)]
        if not isinstance(urls, list) or len(urls) != len(paths):
            raise ListingError(
                f"{self._endpoint.authority} pairs {len(paths)} files of {repo} with another number of URLs",
                hint="The answer is damaged; run again, then report it.",
            )
        for path, text in zip(paths, urls, strict=True):
            if not isinstance(text, str) or not text.startswith(("https://", "http://")):
                continue  # located one by one when its turn comes
            url = resolve(self._endpoint, text)
            with self._lock:
                self._places[str(repo.with_path(path))] = Location(url, expires_at=expiry(url))
                if len(self._places) > _KEPT_PLACES:
                    del self._places[next(iter(self._places))]

    def _read_checksum_names(self, repo: ModelUri, entries: Entries, refusal: NimpullError) -> None:
        """Names and digests from ``checksums.blake3`` alone; without it the refusal stands."""
        content = self._small_file(Artifact(SafePath(CHECKSUMS), None, (), repo))
        if content is None:
            raise refusal
        entries.add(CHECKSUMS, len(content))
        for path, digest in checksum_lines(content):
            entries.add(path, None, (digest,))

    def _read_checksums(self, repo: ModelUri, entries: Entries) -> Iterator[str]:
        """Adds the BLAKE3 digests of listed files; yields what a reader of the log should know."""
        [listed] = entries.artifacts(Wanted(paths=frozenset({CHECKSUMS})))
        content = self._small_file(listed)
        if content is None:
            yield f"{CHECKSUMS} of {repo} is listed but cannot be read; other digests are used"
            return
        for digest in listed.digests:
            hasher = new_hasher(digest.algorithm, len(content))
            hasher.update(content)
            if hasher.hexdigest() != digest.hex:
                yield f"{CHECKSUMS} of {repo} is not what is listed; other digests are used"
                return
        add_checksums(entries, content)

    def _small_file(self, artifact: Artifact) -> bytes | None:
        location = self.locate(artifact)
        reply = self._api.request("GET", location.url, headers=location.headers)
        if reply.status == 403:  # a presigned URL that has ended
            location = self.locate(artifact, fresh=True)
            reply = self._api.request("GET", location.url, headers=location.headers)
        return reply.body if reply.status == 200 and not is_page(reply) else None

    def _measure(self, artifact: Artifact) -> int | None:
        location = self.locate(artifact)
        return length(self._api.request("HEAD", location.url, headers=location.headers))

    # -- requests --------------------------------------------------------------------------------------

    def _is_guest(self, repo: ModelUri) -> bool:
        return not self._access.keyed or repo.repo_id in self._guest_repos

    def _model_url(self, repo: ModelUri) -> str:
        if self._is_guest(repo):
            return f"{self._base}/v2/models/{quote(repo.repo_id)}"
        return f"{self._base}/v2/{_owner(repo)}/models/{quote(repo.name, safe='')}"

    def _manifest_url(self, repo: ModelUri) -> str:
        version = quote(repo.revision, safe="")
        if self._is_guest(repo):
            # Of the guests' paths this one alone has "org/" and "team/" in it.
            return f"{self._base}/v2/models/{_owner(repo)}/{quote(repo.name, safe='')}/{version}/files"
        return f"{self._model_url(repo)}/{version}/files"

    def _single_file(self, artifact: Artifact) -> Location:
        """The per-file path redirects to a presigned URL; the key stays with NGC's own origin."""
        repo = artifact.repo
        version = quote(repo.revision, safe="")
        url = f"{self._model_url(repo)}/versions/{version}/files/{quote(artifact.path)}"
        return Location(Url(url), self._access.headers(repo), self._access.expires_at(repo))

    def _get(
        self, url: str, repo: ModelUri, path: str = "", *, may_refuse: bool = False
    ) -> Mapping[str, Any]:
        reply = self._request(url, repo)
        if reply.status == 401 and self._access.renewable:
            self._access.renew()
            reply = self._request(url, repo)
        answer = read_json(reply) if 200 <= reply.status < 300 else None
        status = reply.status
        if answer is not None:
            if not isinstance(answer, dict):
                raise ListingError(
                    f"{reply.url} answers something else than an object", hint="Check NGC_API_ENDPOINT."
                )
            code = _status_code(answer)
            if code == "SUCCESS":
                return answer
            status = _STATUS_OF.get(code, 503 if code in _TRANSIENT else 400)
        error = self._refusal(replace(reply, status=status), repo, path)
        if may_refuse and status in (400, 401) and not is_page(reply):
            raise _Refused(error)
        raise error

    def _request(self, url: str, repo: ModelUri) -> Reply:
        headers = {"Accept": "application/json", **self._access.headers(repo)}
        return self._api.request("GET", Url(url), headers=headers)

    def _refusal(self, reply: Reply, repo: ModelUri, path: str) -> NimpullError:
        words = said(_description(reply), self._key)
        host = reply.url.authority
        what = f"file “{display(path, 120)}” in {repo}" if path else str(repo)
        if is_page(reply):
            return common_refusal(reply, what, words)
        # NGC's spelling; with HTTP 400 or 401, whose own meaning it is not.
        if "Org contex" in words:
            return AuthError(
                f"{host} cannot tell the organization of the NGC key for {what}{words}", hint=KEY_HINT
            )
        if reply.status == 401:
            keyed = self._access.keyed
            reason = "refuses the NGC key for" if keyed else "wants an NGC key, and none is set, for"
            return AuthError(f"{host} {reason} {what} (HTTP 401){words}", hint=KEY_HINT)
        if reply.status == 403:
            return ForbiddenError(
                f"the NGC key has no access to {what} (HTTP 403){words}",
                hint=f"Use a key of an organization that is entitled to it: {_page_of(repo)}",
            )
        # As ngcsdk reads it, which sends its user to the same page.
        if reply.status == 412:
            return LicenseError(
                f"the terms of {what} have not been accepted{words}",
                hint=f"Accept them at {_page_of(repo)} and run again.",
            )
        return common_refusal(reply, what, words)


def _owner(repo: ModelUri) -> str:
    team = f"/team/{quote(repo.team, safe='')}" if repo.team else ""
    return f"org/{quote(repo.org, safe='')}{team}"


def _page_of(repo: ModelUri) -> str:
    """The model's page, without the query that names the version: reports take queries out of every URL."""
    team = f"/teams/{quote(repo.team, safe='')}" if repo.team else ""
    return f"{_CATALOG}/orgs/{quote(repo.org, safe='')}{team}/models/{quote(repo.name, safe='')}"


def _rows(answer: Mapping[str, Any], name: str) -> Iterator[Mapping[str, Any]]:
    rows = answer.get(name)
    for row in rows if isinstance(rows, list) else []:
        if not isinstance(row, dict):
            raise ListingError("NGC lists a file that is no object", hint="Run again, then report it.")
        yield row


def _manifest_rows(answer: Mapping[str, Any]) -> list[tuple[str, tuple[Digest, ...]]]:
    """(path, digests) of a files manifest; its arrays belong together by index."""
    paths = answer.get("filepath") or []
    digests = answer.get("sha256_base64")
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise ListingError("NGC's files manifest names no files", hint="Run again, then report it.")
    if not isinstance(digests, list) or len(digests) != len(paths):
        digests = [None] * len(paths)
    return [(relative(path), _sha256(text)) for path, text in zip(paths, digests, strict=True)]


def _sha256(text: object) -> tuple[Digest, ...]:
    if not isinstance(text, str) or not text:
        return ()
    try:
        return (Digest.from_base64("sha256", text),)
    except ValueError:
        return as_digest("sha256", text)


def _extent(answer: Mapping[str, Any]) -> tuple[int, int]:
    """(pages, files) as the server counts them; (1, 0) where it does not."""
    told = answer.get("paginationInfo")
    if not isinstance(told, dict):
        return 1, 0
    results, size, pages = (told.get(name) for name in ("totalResults", "size", "totalPages"))
    results = results if isinstance(results, int) and results > 0 else 0
    if not isinstance(pages, int):
        pages = -(-results // size) if isinstance(size, int) and size > 0 else 1
    return max(1, pages), results


def _status_code(answer: Mapping[str, Any]) -> str:
    told = answer.get("requestStatus")
    code = told.get("statusCode", "SUCCESS") if isinstance(told, dict) else "SUCCESS"
    return code if isinstance(code, str) else "UNKNOWN"


def _description(reply: Reply) -> str:
    """The words of an error body, in the shapes that NGC's services use."""
    answer = error_document(reply)
    told = answer.get("requestStatus")
    words = told.get("statusDescription") if isinstance(told, dict) else None
    return next((w for w in (words, answer.get("detail"), answer.get("message")) if isinstance(w, str)), "")
