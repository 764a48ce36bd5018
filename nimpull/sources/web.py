"""A directory of a web server that carries the list of its files: ``https://host/path``.

A web server cannot be listed, so the directory must hold ``checksums.blake3``, as every NGC version has it,
or ``SHA256SUMS``, as ``sha256sum`` writes it. These name the files, and every one of them is checked.
"""

from __future__ import annotations

from urllib.parse import quote

from nimpull.core.artifacts import Artifact, Listing, Location, Wanted
from nimpull.core.names import ModelUri, Url, display
from nimpull.core.ports import Api
from nimpull.errors import ListingError
from nimpull.sources.answers import is_page, length, web_refusal
from nimpull.sources.checksums import CHECKSUMS, LISTS, checksum_lines
from nimpull.sources.listing import Entries, narrowed, pinned, sealed, with_sizes


class WebSource:
    """Implements :class:`nimpull.core.ports.Source`. Thread-safe; user and password may stand in the address.

    The revision is a hash over what is listed.
    """

    def __init__(self, api: Api) -> None:
        self._api = api

    def list(self, uri: ModelUri, wanted: Wanted) -> Listing:
        """See :meth:`nimpull.core.ports.Source.list`."""
        repo = uri.repo
        artifacts = with_sizes(self._entries(repo).artifacts(narrowed(wanted, uri)), self._measure)
        at = repo.with_revision(sealed(artifacts))
        return Listing(at, "", pinned(artifacts, at), Url(str(repo)))

    def locate(self, artifact: Artifact, *, fresh: bool = False) -> Location:  # noqa: ARG002 - nothing is cached
        return _place(artifact.repo, artifact.path)

    def _entries(self, repo: ModelUri) -> Entries:
        """Raises ListingError where neither list is there."""
        for name, algorithm in LISTS.items():
            reply = self._api.request("GET", _place(repo, name).url)
            if reply.status == 404 or (reply.status == 200 and is_page(reply)):
                continue
            if reply.status != 200:
                raise web_refusal(reply, f"file “{name}” of {display(repo)}", "")
            entries = Entries(repo)
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
            what = f"file “{display(artifact.path, 120)}” of {display(artifact.repo)}"
            raise web_refusal(reply, what, "It is listed there: the directory is not whole.")
        return length(reply)


def _place(repo: ModelUri, path: str) -> Location:
    location = f"{repo.location.strip('/')}/".lstrip("/")
    signed = f"?{repo.query}" if repo.query else ""  # what gives access to a directory does to its files
    return Location(Url(f"{repo.scheme}://{repo.name}/{location}{quote(path)}{signed}"))
