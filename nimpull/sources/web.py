"""A directory of a web server that carries the list of its files: ``https://host/path``.

A web server cannot be listed, so the directory must hold ``checksums.blake3``, as every NGC version has it,
or ``SHA256SUMS``, as ``sha256sum`` writes it. These name the files, and every one of them is checked.
"""

from __future__ import annotations

from urllib.parse import quote

from nimpull.core.artifacts import Artifact, Listing, Location, Wanted
from nimpull.core.mirror_objects import CHECKSUMS, file_key
from nimpull.core.names import ModelUri, Url, display
from nimpull.core.ports import Api
from nimpull.core.reply import Reply
from nimpull.errors import ListingError
from nimpull.sources.answers import is_page, length, web_refusal
from nimpull.sources.checksums import LISTS, checksum_lines
from nimpull.sources.listing import Entries, narrowed, pinned, revision_of, with_sizes


class WebSource:
    """Implements :class:`nimpull.core.ports.Source`. Thread-safe; user and password may stand in the address.

    The revision is a hash over what is listed. In a mirror, a model's place is what stands behind ``ngc://``
    or ``hf://``: ``https://mirror/nim/meta/llama:hf``.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self._mirrored: dict[tuple[str, str], int] = {}  # (host, place): segments that name the model

    def list(self, uri: ModelUri, wanted: Wanted) -> Listing:
        """See :meth:`nimpull.core.ports.Source.list`."""
        repo = uri.repo
        artifacts = with_sizes(self._entries(repo).artifacts(narrowed(wanted, uri)), self._measure)
        at = repo.with_revision(revision_of(artifacts))
        return Listing(at, "", pinned(artifacts, at), Url(str(repo)))

    def locate(self, artifact: Artifact, *, fresh: bool = False) -> Location:  # noqa: ARG002 - nothing is cached
        return self._place(artifact.repo, artifact.path)

    def _entries(self, repo: ModelUri) -> Entries:
        """Raises ListingError where neither list is there."""
        for name, algorithm in LISTS.items():
            reply = self._api.request("GET", self._place(repo, name).url)
            if name == CHECKSUMS and _is_absent(reply):
                reply = self._in_mirror(repo) or reply
            if _is_absent(reply):
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

    def _in_mirror(self, repo: ModelUri) -> Reply | None:
        """The list of checksums of a model under NIM's keys; None where there is none.

        A revision ends such a place; organization, team and name are three segments at most.
        """
        place = repo.location.strip("/")
        most = min(3, place.count("/") + 1) if ":" in place.rpartition("/")[2] else 0
        for segments in range(most, 0, -1):
            self._mirrored[repo.name, place] = segments
            reply = self._api.request("GET", self._place(repo, CHECKSUMS).url)
            if not _is_absent(reply):
                return reply
        self._mirrored.pop((repo.name, place), None)
        return None

    def _place(self, repo: ModelUri, path: str) -> Location:
        place = repo.location.strip("/")
        below = f"{place}/".lstrip("/") + quote(path)
        if segments := self._mirrored.get((repo.name, place)):
            parts = place.split("/")
            # a server decodes the address once, and the signs of percent are part of the file's name
            key = quote(file_key("/".join(parts[-segments:]), path), safe="")
            below = "/".join((*parts[:-segments], key))
        signed = f"?{repo.query}" if repo.query else ""  # what gives access to a directory does to its files
        return Location(Url(f"{repo.scheme}://{repo.name}/{below}{signed}"))

    def _measure(self, artifact: Artifact) -> int | None:
        reply = self._api.request("HEAD", self.locate(artifact).url)
        if reply.status != 200:
            what = f"file “{display(artifact.path, 120)}” of {display(artifact.repo)}"
            raise web_refusal(reply, what, "It is listed there: the directory is not whole.")
        return length(reply)


def _is_absent(reply: Reply) -> bool:
    return reply.status == 404 or (reply.status == 200 and is_page(reply))
