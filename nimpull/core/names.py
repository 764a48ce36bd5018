"""Safe names from unsafe text: paths, model URIs, URLs that do not leak, and text for a terminal."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final
from urllib.parse import quote, unquote, urlsplit

from nimpull.errors import ListingError, UsageError

MAX_SEGMENT_BYTES: Final = 255  # NAME_MAX of every Linux file system in use
MAX_PATH_BYTES: Final = 1024
MAX_STORED_BYTES: Final = 4095  # PATH_MAX without its NUL: a layout's directories come before a listed path
FOREIGN_TEXT_LIMIT: Final = 512  # characters of text from elsewhere that a message may carry
STATE_DIRECTORY: Final = ".nimpull"
#: Format, surrogate and separator categories hide or reorder text (bidi controls are Cf).
_UNSAFE_CATEGORIES: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_DRIVE: Final = re.compile(r"^[A-Za-z]:")


def display(text: object, limit: int = FOREIGN_TEXT_LIMIT) -> str:
    """Foreign text made safe for a terminal and a log line: controls escaped, cut at ``limit`` characters."""
    whole = str(text)
    # Nearly all names are: a listing of a million files passes here several times.
    if len(whole) <= limit and whole.isascii() and whole.isprintable():
        return whole
    shown = []
    for character in whole[: limit + 1]:
        if unicodedata.category(character) in _UNSAFE_CATEGORIES:
            shown.append(character.encode("unicode_escape", "surrogatepass").decode("ascii"))
        else:
            shown.append(character)
    cut = "".join(shown)
    return cut[:limit] + "…" if len(cut) > limit or len(whole) > limit else cut


def did_you_mean(text: str, known: Iterable[str]) -> str:
    """``Did you mean “fp8”?``, "" where nothing of what is known is near."""
    spelled = {each.lower(): each for each in known}
    near = difflib.get_close_matches(text.lower()[:100], spelled, n=2)
    return f"Did you mean {' or '.join(f'“{display(spelled[each], 60)}”' for each in near)}?" if near else ""


class SafePath(str):
    """A relative POSIX path that can be joined to a directory without leaving it.

    Raises ListingError for anything else: absolute, ``..``, ``.``, empty segments, backslashes, drives,
    control, format and bidi characters, nimpull's own state directory, segments over 255 bytes.
    """

    __slots__ = ()

    def __new__(cls, text: str, limit: int = MAX_PATH_BYTES) -> SafePath:
        reason = _unsafe(text, limit)
        if reason:
            raise ListingError(
                f"unsafe file name “{display(text, 120)}”: {reason}",
                hint="The listing comes from the registry; nothing was written. Report it to its owner.",
            )
        return super().__new__(cls, text)

    @property
    def segments(self) -> tuple[str, ...]:
        return tuple(self.split("/"))

    @property
    def collision_key(self) -> str:
        """Equal for names that a case- or Unicode-insensitive file system holds to be one."""
        return unicodedata.normalize("NFC", self).casefold()


def _unsafe(text: str, limit: int) -> str:  # noqa: PLR0911 - one return per rule reads as the table it is
    if not text:
        return "it is empty"
    if len(text.encode("utf-8", "surrogatepass")) > limit:
        return f"it is longer than {limit} bytes"
    plain = text.isascii() and text.isprintable()
    if not plain and any(unicodedata.category(character) in _UNSAFE_CATEGORIES for character in text):
        return "it holds control, format or bidirectional characters"
    if "\\" in text:
        return "it holds a backslash"
    if text.startswith("/"):
        return "it is absolute"
    if _DRIVE.match(text):
        return "it starts with a drive letter"
    for segment in text.split("/"):
        if segment in ("", ".", ".."):
            return "it has an empty, “.” or “..” segment"
        # casefold: a file system that ignores case would take .NIMPULL for it.
        if segment.casefold() == STATE_DIRECTORY:
            return f"{STATE_DIRECTORY} is nimpull's own directory"
        # Surrogates, which utf-8 refuses, were refused above.
        if len(segment.encode("utf-8")) > MAX_SEGMENT_BYTES:
            return f"a segment is longer than {MAX_SEGMENT_BYTES} bytes"
    return ""


@dataclass(frozen=True, slots=True, repr=False)
class Url:
    """A URL whose ``str()`` and ``repr()`` show neither user info nor query: those carry secrets.

    ``reveal()`` is the whole text, for the socket only.
    """

    _text: str
    _server: _Server = field(init=False, compare=False)

    def __post_init__(self) -> None:
        plain = _PLAIN_SERVER.match(self._text)
        object.__setattr__(self, "_server", _known_server(plain[0]) if plain else _server(self._text))

    def reveal(self) -> str:
        return self._text

    @property
    def scheme(self) -> str:
        return self._server.origin[0]

    @property
    def host(self) -> str:
        """Host name without port, lower case."""
        return self._server.origin[1]

    @property
    def authority(self) -> str:
        """``host`` or ``host:port`` as it stands in the URL, without user info."""
        return self._server.authority

    @property
    def origin(self) -> tuple[str, str, int]:
        """(scheme, host, port) as RFC 6454 defines it: who may see a credential."""
        return self._server.origin

    def __str__(self) -> str:
        try:
            parts = urlsplit(self._text)
            host = parts.netloc.rpartition("@")[2]
        except ValueError:
            return "(unreadable URL)"
        query = "?…" if parts.query else ""
        return display(f"{parts.scheme}://{host}{parts.path}{query}", 300)

    __repr__ = __str__


#: What names a server and nothing else: text from here to its end does not change what it means.
_PLAIN_SERVER: Final = re.compile(r"https?://[A-Za-z0-9.-]+(?::[0-9]+)?(?=[/?#]|\Z)")


@dataclass(frozen=True, slots=True)
class _Server:
    origin: tuple[str, str, int]
    authority: str


def _server(text: str) -> _Server:
    try:
        parts = urlsplit(text)
    except ValueError:
        return _Server(("", "", 0), "")
    scheme = parts.scheme.lower()
    try:
        host, authority = parts.hostname or "", parts.netloc.rpartition("@")[2].lower()
    except ValueError:
        host = authority = ""
    try:
        port = parts.port
    except ValueError:
        port = None
    # The port that a scheme implies, so that https://host and https://host:443 are one origin.
    return _Server((scheme, host, port or {"http": 80, "https": 443}.get(scheme, 0)), authority)


#: A run asks a few servers for thousands of files.
_known_server: Final = lru_cache(maxsize=256)(_server)


SCHEMES: Final = ("ngc", "hf", "s3", "gs", "https", "http", "file")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_IMAGE_LIKE: Final = re.compile(r"[\w-]+(\.[\w-]+)+(:\d+)?/\S+", re.ASCII)
_BUCKET: Final = re.compile(r"[A-Za-z0-9._-]{1,255}")  # what botocore takes as a bucket
#: Names without a scheme, as people copy them from the Hub (``namespace/name[@revision]``) and from NGC.
_HUB_LIKE: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?", re.ASCII)
_NGC_LIKE: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+){1,2}:[\w.+-]+", re.ASCII)
_HF_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,96}")


def _meant_uri(text: str) -> str:
    """The hint for what is no URI."""
    if _HUB_LIKE.fullmatch(text):
        return f"Did you mean hf://{text}?"
    if _IMAGE_LIKE.fullmatch(text):
        return (
            "Is it a container image? nimpull fits tells which of its profiles run where. "
            "Models of NGC are ngc://nim/TEAM/NAME:VERSION."
        )
    if _NGC_LIKE.fullmatch(text):
        return f"Did you mean ngc://{text}?"
    if text.startswith(("/", "./", "../", "~")):
        return "A directory is file:///path, with its whole path."
    return (
        "Use ngc://org/team/model:version, hf://namespace/name, s3://bucket/prefix, gs://bucket/prefix, "
        "https://host/prefix or file:///directory."
    )


@dataclass(frozen=True, slots=True)
class ModelUri:
    """Where a model, or one file of it, comes from.

    ``ngc://org[/team]/model:version[?file=path]`` (as NIM's model manifests have it),
    ``hf://[datasets/]namespace/name[:revision | @revision][?file=path]``, ``s3://bucket/prefix[?file=path]``
    and the same with ``gs``, ``http(s)://host/prefix[?file=path]``, ``file:///dir[?file=path]``. ``version``
    keeps ``+`` literally. For s3, gs, http(s) and file ``name`` is the host or bucket, ``location`` the rest.
    ``query``: what else an http(s) address asks with, as signed ones do; like user and password in ``name``
    it is a secret, and in no text of this value.
    """

    scheme: str
    org: str = ""
    team: str = ""
    name: str = ""
    revision: str = ""
    path: str = ""
    repo_type: str = "model"
    location: str = ""
    query: str = field(default="", repr=False)

    @classmethod
    def parse(cls, text: str) -> ModelUri:
        """An absolute path is a ``file://`` of it, and so is ``local://``, as NIM 2.x writes it.

        Raises UsageError that shows the form expected.
        """
        scheme, separator, rest = text.partition("://")
        if scheme.lower() == "local":
            scheme = "file"
        elif text.startswith("/"):
            scheme, separator, rest = "file", "://", quote(text)
        if not separator or scheme.lower() not in SCHEMES:
            raise UsageError(f"not a model URI: “{_without_secrets(text)}”", hint=_meant_uri(text))
        scheme = scheme.lower()
        if scheme == "ngc":
            return cls._ngc(rest, text)
        if scheme == "hf":
            return cls._hf(rest, text)
        if scheme in ("http", "https"):
            address, _, query = rest.partition("?")
            path = _file_query(query)
            query = "&".join(pair for pair in query.split("&") if pair and not pair.startswith("file="))
        else:
            address, _, path = rest.partition("?file=")
            path, query = unquote(path), ""
        host, _, location = address.partition("/")
        of_bucket = scheme in ("s3", "gs")
        if scheme != "file" and not (_BUCKET.fullmatch(host) if of_bucket else host):
            raise UsageError(
                f"no {'bucket' if of_bucket else 'host'} in “{_without_secrets(text)}”",
                hint=f"The form is {scheme}://bucket/prefix."
                if of_bucket
                else "The form is https://host/prefix.",
            )
        return cls(scheme=scheme, name=host, location=location, path=path, query=query)

    @classmethod
    def _ngc(cls, rest: str, text: str) -> ModelUri:
        body, _, query = rest.partition("?")
        path = _file_query(query)
        head, colon, version = body.partition(":")
        segments = [unquote(part) for part in head.strip("/").split("/")]
        ok = len(segments) in (2, 3) and all(_NAME.fullmatch(part) for part in segments)
        if not ok or (colon and not _NAME.fullmatch(version)):
            raise UsageError(
                f"not an NGC model URI: “{display(text, 200)}”",
                hint="The form is ngc://org[/team]/model:version[?file=path].",
            )
        team = segments[1] if len(segments) == 3 else ""
        return cls(
            "ngc", org=segments[0], team=team, name=segments[-1], revision=version or "latest", path=path
        )

    @classmethod
    def _hf(cls, rest: str, text: str) -> ModelUri:
        body, _, query = rest.partition("?")
        path = _file_query(query)
        body = body.strip("/")
        repo_type = "model"
        for prefix, kind in (("datasets/", "dataset"), ("models/", "model")):
            if body.startswith(prefix):
                body, repo_type = body.removeprefix(prefix), kind
        head, revision = body, ""
        # NIM writes a colon, the Hub and its tools an @.
        for separator in ("@", ":"):
            if separator in body:
                head, _, revision = body.partition(separator)
                break
        segments = head.split("/")
        ok = len(segments) in (1, 2) and all(
            _HF_NAME.fullmatch(part) and ".." not in part and "--" not in part and not part.endswith(".git")
            for part in segments
        )
        if not ok or (revision and (".." in revision or any(ord(c) < 33 for c in revision))):
            raise UsageError(
                f"not a Hugging Face URI: “{display(text, 200)}”",
                hint="The form is hf://namespace/name[:revision], or hf://datasets/namespace/name.",
            )
        org = segments[0] if len(segments) == 2 else ""
        return cls(
            "hf",
            org=org,
            name=segments[-1],
            # A branch may hold slashes (refs/pr/3), which an address has encoded.
            revision=unquote(revision) or "main",
            path=path,
            repo_type=repo_type,
        )

    @property
    def repo(self) -> ModelUri:
        """The same without the file."""
        return replace(self, path="") if self.path else self

    def with_path(self, path: str) -> ModelUri:
        if path == self.path:
            return self
        return ModelUri(  # several times as fast as dataclasses.replace, and asked for once a file and more
            self.scheme,
            self.org,
            self.team,
            self.name,
            self.revision,
            path,
            self.repo_type,
            self.location,
            self.query,
        )

    def with_revision(self, revision: str) -> ModelUri:
        return replace(self, revision=revision)

    @property
    def repo_id(self) -> str:
        """``namespace/name`` as the Hub writes it; ``org/team/model`` for NGC."""
        return "/".join(part for part in (self.org, self.team, self.name) if part)

    def __str__(self) -> str:
        return self.of_file(self.path)

    def of_file(self, path: str) -> str:
        """The text of ``with_path``, asked for several times a file. "" = of the repository."""
        return f"{_repository_text(self)}?file={quote(path, safe='/+')}" if path else _repository_text(self)


@lru_cache(maxsize=256)
def _repository_text(uri: ModelUri) -> str:
    if uri.scheme == "ngc":
        return f"ngc://{uri.repo_id}:{uri.revision}"
    if uri.scheme == "hf":
        kind = "datasets/" if uri.repo_type == "dataset" else ""
        return f"hf://{kind}{uri.repo_id}:{uri.revision}"
    # user info in a mirror's address is a secret
    return f"{uri.scheme}://{uri.name.rpartition('@')[2]}/{uri.location}"


def _without_secrets(text: str) -> str:
    """An address that cannot be read, for a message: without user, password and query."""
    address, asked, _ = text.partition("?")
    scheme, separator, rest = address.partition("://")
    return display(f"{scheme}{separator}{rest.rpartition('@')[2]}{'?…' * bool(asked)}", 200)


def _file_query(query: str) -> str:
    """The ``file=`` value of a manifest URI. ``+`` is literal there, not a blank."""
    for pair in query.split("&"):
        key, _, value = pair.partition("=")
        if key == "file":
            return unquote(value)
    return ""
