"""The Hugging Face Hub and what speaks its protocol: mirrors and the NeMo DataStore (``…/v1/hf``).

The protocol is spoken here over the one transport, not through huggingface_hub: so there is one TLS trust,
one proxy rule and one retry budget for all requests, none that the user did not ask for (version checks,
telemetry), and failures of the first request are failures, which they are not everywhere in that client.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final
from urllib.parse import quote, urljoin, urlsplit

from nimpull.core.artifacts import Artifact, Listing, Location, Wanted
from nimpull.core.names import ModelUri, Url, display
from nimpull.core.ports import Api, Clock
from nimpull.core.redirects import is_redirect, resolve
from nimpull.core.reply import Reply
from nimpull.errors import (
    AuthError,
    ForbiddenError,
    GatedError,
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
    unquoted,
)
from nimpull.sources.listing import MAX_PAGES, Entries, as_digest, narrowed, unverifiable, with_sizes

#: A branch or tag becomes this: a git commit on the Hub and DataStore, another hash on some servers.
_COMMIT: Final = re.compile(r"[0-9a-f]{7,64}")
_NEXT: Final = re.compile(r'<([^<>]+)>\s*;[^,<]*\brel="?next\b', re.IGNORECASE)
#: From this size on the file's place on the CDN is found once, not once per chunk: the Hub counts requests.
_LOCATED_FROM: Final = 16 << 20
#: NeMo platform's files service makes up its object ids: they are no digests of the content.
_INVENTED_IDS: Final = "/v2/hf"
_REPORT: Final = "The listing comes from the hub; nothing was written. Report it to its owner."
_ACCESS_HINT: Final = (
    "Set HF_TOKEN to a token that may read it (NIMCache: spec.source.hf.authSecret or "
    "spec.source.dataStore.authSecret, secret key HF_TOKEN)."
)


class HubSource:
    """Implements :class:`nimpull.core.ports.Source`. Thread-safe."""

    def __init__(self, api: Api, *, endpoint: Url, token: str, clock: Clock) -> None:
        """``endpoint`` may have a path prefix and a slash at its end. ``token`` "" = anonymous."""
        self._api = api
        self._endpoint = endpoint
        self._base = endpoint.reveal().rstrip("/")
        self._token = token
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._clock = clock
        self._ids_are_digests = not self._base.endswith(_INVENTED_IDS)
        self._places: dict[str, Location] = {}
        self._lock = threading.Lock()

    # -- Source ----------------------------------------------------------------------------------------

    def list(self, uri: ModelUri, wanted: Wanted) -> Listing:
        """See :meth:`nimpull.core.ports.Source.list`."""
        asked = uri.repo if uri.revision else uri.repo.with_revision("main")
        about = self._document(f"{self._api_url(asked)}/revision/{quote(asked.revision, safe='')}", asked)
        repo = asked.with_revision(self._commit(about, asked))
        entries = Entries(repo, endpoint=str(Url(self._base)))
        if not self._read_tree(repo, entries):
            self._read_siblings(about, repo, entries)
        artifacts = entries.artifacts(narrowed(wanted, uri))
        if artifacts and about.get("gated"):
            self._head(artifacts[0])  # the list of a gated repository is public, its files are not
        artifacts = with_sizes(artifacts, lambda artifact: length(self._head(artifact)))
        return Listing(repo, asked.revision, artifacts, self._endpoint, unverifiable(artifacts))

    def locate(self, artifact: Artifact, *, fresh: bool = False) -> Location:
        """See :meth:`nimpull.core.ports.Source.locate`.

        A large file's place on the CDN is kept until shortly before it ends; it never carries the token.
        """
        with self._lock:
            if fresh:
                self._places.pop(artifact.identity, None)
            known = self._places.get(artifact.identity)
        if known and known.expires_at and known.expires_at - EXPIRY_MARGIN > self._clock.time():
            return known
        own = Location(self._resolve_url(artifact), self._headers)
        if artifact.size is None or artifact.size < _LOCATED_FROM:
            return own
        found = self._elsewhere(self._head(artifact))
        if found is None:
            return own
        with self._lock:
            self._places[artifact.identity] = found
        return found

    # -- listing ---------------------------------------------------------------------------------------

    def _commit(self, about: Mapping[str, Any], repo: ModelUri) -> str:
        commit = about.get("sha")
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise self._no_hub(f"tells no commit for {display(repo)}: {display(commit, 80)}")
        return commit

    def _read_tree(self, repo: ModelUri, entries: Entries) -> bool:
        """False where the server does not have this call."""
        # Not expanded: with commits and scans the Hub's pages have 50 rows in place of 1,000.
        url = f"{self._api_url(repo)}/tree/{repo.revision}?recursive=true&expand=false"
        seen: set[str] = set()
        while url:
            reply = self._api.request("GET", Url(url), headers=self._headers)
            # A server that has the call says in X-Error-Code what it is that is not there.
            absent = reply.status in (404, 405, 501) and not reply.headers.get("x-error-code")
            if absent and not seen:
                return False
            seen.add(url)
            for row in self._tree_rows(reply, repo):
                self._add(row, entries)
            url = self._next(reply, repo)
            if url in seen or len(seen) > MAX_PAGES:
                raise self._no_hub(f"lists {display(repo)} in pages that do not end", _REPORT)
        return True

    def _tree_rows(self, reply: Reply, repo: ModelUri) -> Iterator[Mapping[str, Any]]:
        rows = self._read(reply, repo)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise self._no_hub(f"lists {display(repo)} as something else than files")
        return (row for row in rows if row.get("type", "file") == "file")

    def _add(self, row: Mapping[str, Any], entries: Entries) -> None:
        lfs = row.get("lfs")
        if isinstance(lfs, dict):
            # "oid" in the Hub's tree call, "sha256" in its description of a repository.
            oid = lfs.get("oid") or lfs.get("sha256")
            digests = as_digest("sha256", oid)
            if oid and not digests:
                file = f"“{display(row.get('path'), 120)}”"
                problem = f"the LFS object id {display(oid, 80)}, which is no SHA-256"
                raise self._no_hub(f"lists {file} with {problem}", _REPORT)
            entries.add(row.get("path"), lfs.get("size", row.get("size")), digests, _hex_of(digests))
            return
        digests = as_digest("git", row.get("oid")) if self._ids_are_digests else ()
        entries.add(row.get("path"), row.get("size"), digests, _hex_of(digests))

    def _next(self, reply: Reply, repo: ModelUri) -> str:
        """The next page, "" at the end. Behind an ingress a server may not know its own scheme or port: the
        page is asked for where the first one was, and the token goes nowhere else."""
        found = _NEXT.search(reply.headers.get("link", ""))
        if not found:
            return ""
        target = urljoin(reply.url.reveal(), found[1])
        if Url(target).host != self._endpoint.host:
            raise self._no_hub(
                f"continues its list on another host, {display(Url(target).authority, 120)}",
                f"The list of {display(repo)} must come from one server. Check HF_ENDPOINT.",
            )
        own, parts = urlsplit(self._base), urlsplit(target)
        return f"{own.scheme}://{own.netloc}{parts.path}?{parts.query}"

    def _read_siblings(self, about: Mapping[str, Any], repo: ModelUri, entries: Entries) -> None:
        """Names only, for servers without the tree call; a HEAD of each tells size and LFS digest."""
        siblings = about.get("siblings")
        if not isinstance(siblings, list):
            raise self._no_hub(
                f"does not list the files of {display(repo)}",
                "Check HF_ENDPOINT: for a NeMo DataStore it ends in /v1/hf.",
            )
        for row in siblings:
            entries.add(row.get("rfilename") if isinstance(row, dict) else None)
        for artifact in entries.artifacts(Wanted()):
            reply = self._head(artifact)
            digests = as_digest("sha256", unquoted(reply.headers.get("x-linked-etag", "")))
            etag = unquoted(reply.headers.get("x-linked-etag") or reply.headers.get("etag", ""))
            entries.add(artifact.path, length(reply), digests, etag)

    # -- requests --------------------------------------------------------------------------------------

    def _api_url(self, repo: ModelUri) -> str:
        kind = "datasets" if repo.repo_type == "dataset" else "models"
        return f"{self._base}/api/{kind}/{quote(repo.repo_id)}"

    def _resolve_url(self, artifact: Artifact) -> Url:
        repo = artifact.uri
        place = f"{_page(repo)}/resolve/{quote(repo.revision, safe='')}/{quote(artifact.path)}"
        return Url(f"{self._base}/{place}")

    def _head(self, artifact: Artifact) -> Reply:
        """HEAD of the file up to the first redirect off this origin. Raises as the file's GET would."""
        url = self._resolve_url(artifact)
        # Else Content-Length would be that of a compressed body.
        headers = self._headers | {"Accept-Encoding": "identity"}
        # The Hub redirects a small file to its own /api/resolve-cache, a large one to its CDN.
        for _ in range(5):
            reply = self._api.request("HEAD", url, headers=headers, follow=False)
            if not is_redirect(reply.status, reply.headers):
                break
            onward = resolve(url, reply.headers["location"])
            if onward.origin != url.origin or "x-linked-size" in reply.headers:
                return replace(reply, url=url)
            url = onward
        if reply.status >= 400:
            raise self._refusal(reply, artifact.uri.repo, artifact.path)
        return reply

    def _elsewhere(self, reply: Reply) -> Location | None:
        """The redirect's target if it is on another origin and says until when it is good."""
        if not is_redirect(reply.status, reply.headers):
            return None
        target = resolve(reply.url, reply.headers["location"])
        ends = expiry(target)
        return (
            None if ends is None or target.origin == reply.url.origin else Location(target, expires_at=ends)
        )

    def _document(self, url: str, repo: ModelUri) -> Mapping[str, Any]:
        answer = self._read(self._api.request("GET", Url(url), headers=self._headers), repo)
        if not isinstance(answer, dict):
            raise self._no_hub(f"describes {display(repo)} as something else than a repository")
        return answer

    def _no_hub(
        self, does: str, hint: str = "Check HF_ENDPOINT: this is not how a hub answers."
    ) -> ListingError:
        return ListingError(f"{self._endpoint.authority} {does}", hint=hint)

    def _read(self, reply: Reply, repo: ModelUri) -> Any:
        if 200 <= reply.status < 300:
            return read_json(reply)
        raise self._refusal(reply, repo, "")

    def _refusal(self, reply: Reply, repo: ModelUri, path: str) -> NimpullError:
        """``X-Error-Code`` tells what a status alone does not (RepoNotFound, GatedRepo, …)."""
        code = reply.headers.get("x-error-code", "")
        # The header has the message of the body; an answer to HEAD has no body.
        message = reply.headers.get("x-error-message") or error_document(reply).get("error")
        words = said(message, self._token)
        what = f"file “{display(path, 120)}” in {display(repo)}" if path else display(repo)
        if code == "GatedRepo":
            return self._gated(repo, words)
        if is_page(reply) and reply.status != 404:
            return common_refusal(reply, what, words)
        if reply.status == 401:
            return self._unauthorized(reply, repo, code, words)
        if reply.status == 403:
            return ForbiddenError(
                f"{reply.url.authority} does not give {what} to this token (HTTP 403){words}",
                hint=f"Use a token of an account that may read {Url(self._base)}/{_page(repo)}.",
            )
        return self._not_found(reply, repo, code, words, what)

    def _gated(self, repo: ModelUri, words: str) -> GatedError:
        token = "" if self._token else f" {_ACCESS_HINT}"
        return GatedError(
            f"{display(repo)} is gated and this account has no access{words}",
            hint=f"Ask for access at {Url(self._base)}/{_page(repo)}.{token}",
        )

    def _unauthorized(self, reply: Reply, repo: ModelUri, code: str, words: str) -> AuthError:
        if self._token and code != "RepoNotFound":
            return AuthError(
                f"{reply.url.authority} refuses the token for {display(repo)} (HTTP 401){words}",
                hint=_ACCESS_HINT,
            )
        token = "this token may not see it" if self._token else "no token is set"
        reason = f"it does not exist, or it is private and {token} (HTTP 401)"
        return AuthError(
            f"{reply.url.authority} shows no {display(repo)}: {reason}{words}",
            hint=f"Check the name. {_ACCESS_HINT}",
        )

    def _not_found(self, reply: Reply, repo: ModelUri, code: str, words: str, what: str) -> NimpullError:
        if reply.status != 404 or code == "EntryNotFound" or is_page(reply):
            return common_refusal(reply, what, words)
        if code == "RevisionNotFound":
            return NotFoundError(
                f"{display(repo.repo_id)} on {reply.url.authority} has no revision "
                f"“{display(repo.revision, 120)}”{words}",
                hint="Check the revision: a branch, a tag or a commit.",
            )
        return NotFoundError(
            f"{reply.url.authority} has no {repo.repo_type} {display(repo.repo_id)} with revision "
            f"“{display(repo.revision, 120)}”{words}",
            hint=f"Check the name and HF_ENDPOINT. If it is private: {_ACCESS_HINT}",
        )


def _page(repo: ModelUri) -> str:
    """Below the endpoint: the address of the repository's page, with which those of its files begin."""
    return f"{'datasets/' if repo.repo_type == 'dataset' else ''}{quote(repo.repo_id)}"


def _hex_of(digests: tuple[Any, ...]) -> str:
    return digests[0].hex if digests else ""
