"""A directory of a web server that carries the list of its files: ``https://host/path``.

A web server cannot be listed, so the directory must hold ``checksums.blake3``, as every NGC version has it,
or ``SHA256SUMS``, as ``sha256sum`` writes it. These name the files, and every one of them is checked.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final
from urllib.parse import quote

from nimpull.core.artifacts import Artifact, Listing, Location
from nimpull.core.names import ModelUri, Url, display
from nimpull.core.ports import Api, Reply, Wanted
from nimpull.errors import AuthError, ForbiddenError, ListingError, NimpullError, NotFoundError
from nimpull.sources.answers import common_refusal, is_page, length
from nimpull.sources.checksums import CHECKSUMS, checksum_lines
from nimpull.sources.listing import Entries, sealed, with_sizes

_LISTS: Final = ((CHECKSUMS, "blake3"), ("SHA256SUMS", "sha256"))


class WebSource:
    """Implements :class:`nimpull.core.ports.Source`. Thread-safe; user and password may stand in the address.

    The revision is a hash over what is listed.
    """

    def __init__(self, api: Api) -> None:
        self._api = api

    def list(self, uri: ModelUri, wanted: Wanted) -> Listing:
        """See :meth:`nimpull.core.ports.Source.list`."""
        if uri.path:
            wanted = replace(wanted, paths=wanted.paths | {uri.path})
        repo = uri.repo
        entries = self._entries(repo)
        artifacts = with_sizes(entries.artifacts(repo, wanted), self._measure)
        pinned = repo.with_revision(sealed(artifacts))
        artifacts = tuple(replace(one, uri=pinned.with_path(one.path)) for one in artifacts)
        return Listing(pinned, "", artifacts, Url(str(repo)))

    def locate(self, artifact: Artifact, *, fresh: bool = False) -> Location:  # noqa: ARG002 - nothing is cached
        return _place(artifact.uri.repo, artifact.path)

    def _entries(self, repo: ModelUri) -> Entries:
        """Raises ListingError where neither list is there."""
        for name, algorithm in _LISTS:
            reply = self._api.request("GET", _place(repo, name).url)
            if reply.status == 404 or (reply.status == 200 and is_page(reply)):
                continue
            if reply.status != 200:
                raise _refusal(reply, f"file “{name}” of {display(repo)}")
            entries = Entries(display(repo))
            entries.add(name, len(reply.body))
            for path, digest in checksum_lines(reply.body, algorithm):
                if path != name:
                    entries.add(path, None, (digest,))
            return entries
        raise ListingError(
            f"{display(repo)} cannot say which files it has: a web server has no listing, and there is "
            f"neither {CHECKSUMS} nor SHA256SUMS",
            hint="Put the output of b3sum or sha256sum there under that name; or use ngc://, hf:// or s3://.",
        )

    def _measure(self, artifact: Artifact) -> int | None:
        reply = self._api.request("HEAD", self.locate(artifact).url)
        if reply.status != 200:
            raise _refusal(reply, f"file “{display(artifact.path, 120)}” of {display(artifact.uri.repo)}")
        return length(reply)


def _place(repo: ModelUri, path: str) -> Location:
    location = f"{repo.location.strip('/')}/".lstrip("/")
    return Location(Url(f"{repo.scheme}://{repo.name}/{location}{quote(path)}"))


def _refusal(reply: Reply, what: str) -> NimpullError:
    if reply.status == 404:
        return NotFoundError(
            f"{reply.url.host} has no {what}", hint="It is listed there: the directory is not whole."
        )
    if reply.status in (401, 403) and not is_page(reply):
        kind = AuthError if reply.status == 401 else ForbiddenError
        return kind(
            f"{reply.url.host} does not give {what} (HTTP {reply.status})",
            hint="If it wants a user and a password: they may stand before the host's name in the address.",
        )
    return common_refusal(reply, what, "")
