"""A model manifest as values, and how to read one.

Four forms are in use: *v1* (a map keyed by profile id, workspaces of components), *v2* (``schema_version``
with a list of profiles, workspaces of files) and two *legacy* wrappings (``manifest:`` with a list of
profiles, or of one-key maps). Which parser reads a file, and what it refuses, is the NIM Operator's rule.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NoReturn, TypeVar

from nimpull.core.artifacts import Listing
from nimpull.core.digest import Digest
from nimpull.core.link_local import names_internal
from nimpull.core.names import SafePath, Url, display
from nimpull.core.yaml_values import Yaml, YamlList, YamlMap
from nimpull.errors import ListingError, ManifestError

#: Characters of all different product patterns together: what they cost to compile is in proportion.
MAX_PATTERN_TEXT: Final = 16 << 10

Collection = TypeVar("Collection", YamlMap, YamlList)


@dataclass(frozen=True, slots=True)
class ProfileFile:
    """One file of a profile's workspace: ``path`` in the workspace, ``uri`` where it comes from (text)."""

    path: SafePath
    uri: str
    digest: Digest | None = None


@dataclass(frozen=True, slots=True)
class Profile:
    """``tags`` hold the YAML text as written (``010``, ``True``, ``1.50``).

    ``files`` may name one path twice (v1 components whose directories overlap): in a workspace the later
    one stands. ``problem``: why ``files`` cannot be the whole of the workspace ("" = they are). Such a
    profile can be listed and matched but must not be fetched.
    """

    id: str
    tags: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    release: str = ""
    files: tuple[ProfileFile, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """``schema``: "v1", "v2" or "legacy"; profiles in manifest order. ``notes``: for the reader."""

    schema: str
    profiles: tuple[Profile, ...]
    selection_criteria: str = ""
    notes: tuple[str, ...] = ()


def parse_manifest(data: bytes, *, unsafe: bool = False) -> Manifest:
    """Read a model manifest. Only the first YAML document counts. ``unsafe``: NIM_MANIFEST_ALLOW_UNSAFE.

    The parser is chosen as the NIM Operator does: a ``schema_version`` whose text contains a 2 is v2, all
    else is v1 (or, without ``schema_version``, the legacy wrapping). Raises ManifestError naming the line.
    """
    from nimpull.core.yamltext import load_yaml

    root = load_yaml(_without_probe(data))
    reader = _Reader(unsafe)
    if isinstance(root, YamlMap):
        version = root.get("schema_version")
        # So "1.2" and "12" are v2 too, and "3.0" is v1, where it fails: the operator searches for a 2.
        if isinstance(version, str) and "2" in version:
            return reader.v2(root)
        if "schema_version" not in root and isinstance(root.get("manifest"), YamlList):
            return reader.legacy(root)
    return reader.v1(root)


def _without_probe(data: bytes) -> bytes:
    """Without the lines that the NIM Operator's probe prints before a manifest: people save its pod's log.

    They become comments, so that the lines of the rest keep their numbers.
    """
    return re.sub(
        rb"\A(?:NIM_OPERATOR_CAP[^\n]*\n)+", lambda found: re.sub(rb"(?m)^N", b"#N", found[0]), data
    )


def _refuse(line: int, problem: str) -> NoReturn:
    raise ManifestError(
        f"manifest, line {line}: {problem}",
        hint="This is not a model manifest that nimpull or the NIM Operator can read; check the file.",
    )


def _is_inside(uri: str) -> bool:
    """Whether it names a file of this machine, or what only this node may ask."""
    scheme = uri.partition(":")[0].lower()
    return (
        scheme in ("file", "local")
        or uri.startswith("/")
        or (scheme in ("http", "https") and names_internal(Url(uri).host))
    )


def _text(parent: YamlMap, key: str) -> str:
    value = parent.get(key)
    if isinstance(value, (YamlMap, YamlList)):
        _refuse(parent.lines[key], f"“{display(key, 60)}” must be text")
    return value or ""


def _as(kind: type[Collection], value: Yaml, line: int, what: str) -> Collection:
    """An empty one for what is not there."""
    if isinstance(value, kind):
        return value
    if value is None:
        return kind(line)
    _refuse(line, f"{what} must be a {'map' if kind is YamlMap else 'list'}")


def _in(kind: type[Collection], parent: YamlMap, key: str) -> Collection:
    return _as(kind, parent.get(key), parent.lines.get(key, parent.line), f"“{key}”")


class _Reader:
    """Holds what is shared between profiles: the same file names and digests come back in each of them."""

    def __init__(self, unsafe: bool) -> None:
        self._unsafe = unsafe
        self._paths: dict[str, SafePath] = {}
        self._digests: dict[str, Digest | None] = {}
        self._unknown_checksums = 0
        self._patterns: set[str] = set()
        self._pattern_text = 0

    def v1(self, root: Yaml) -> Manifest:
        top = _as(YamlMap, root, 1, "the document")
        profiles = tuple(
            self._profile(name, _as(YamlMap, body, top.lines[name], f"profile “{display(name, 80)}”"))
            for name, body in top.items()
        )
        return self._manifest("v1", profiles, "")

    def v2(self, top: YamlMap) -> Manifest:
        entries = _in(YamlList, top, "profiles")
        profiles = []
        for entry, line in zip(entries, entries.lines, strict=True):
            body = _as(YamlMap, entry, line, "a profile")
            profiles.append(self._profile(_text(body, "id"), body))
        return self._manifest("v2", tuple(profiles), _text(top, "profile_selection_criteria"))

    def legacy(self, top: YamlMap) -> Manifest:
        """``manifest: [{id, tags}, {<id>: {tags}}, …]`` with the model's name in ``model_profile``."""
        model = _text(top, "model_profile")
        entries = _in(YamlList, top, "manifest")
        profiles = []
        for entry, line in zip(entries, entries.lines, strict=True):
            body = _as(YamlMap, entry, line, "a profile")
            if "id" in body:
                profiles.append(self._profile(_text(body, "id"), body, model))
                continue
            if len(body) != 1:
                _refuse(line, "a legacy profile has an “id”, or is a map of one id")
            name, inner = next(iter(body.items()))
            profiles.append(
                self._profile(name, _as(YamlMap, inner, line, f"profile “{display(name, 80)}”"), model)
            )
        return self._manifest("legacy", tuple(profiles), "")

    def _manifest(self, schema: str, profiles: tuple[Profile, ...], criteria: str) -> Manifest:
        notes: tuple[str, ...] = ()
        if self._unknown_checksums:
            notes = (
                f"{self._unknown_checksums} checksums are written in a form that is not known; "
                "those files are verified with the registry's digests only",
            )
        return Manifest(schema, profiles, criteria, notes)

    def _profile(self, name: str, body: YamlMap, model: str = "") -> Profile:
        files, problem = self._workspace(body)
        return Profile(
            id=name,
            tags=self._tags(body),
            model=_text(body, "model") or model,
            release=_text(body, "release"),
            files=files,
            problem=problem,
        )

    def _tags(self, body: YamlMap) -> dict[str, str]:
        tags = _in(YamlMap, body, "tags")
        pattern = tags.get("product_name_regex")
        if isinstance(pattern, str) and pattern not in self._patterns:
            self._patterns.add(pattern)
            self._pattern_text += len(pattern)
            if self._pattern_text > MAX_PATTERN_TEXT:
                _refuse(
                    tags.lines["product_name_regex"],
                    f"the product patterns together are over {MAX_PATTERN_TEXT} characters",
                )
        return {key: _text(tags, key) for key in tags}

    def _workspace(self, body: YamlMap) -> tuple[tuple[ProfileFile, ...], str]:
        workspace = _in(YamlMap, body, "workspace")
        problems: list[str] = []
        files = (*self._listed_files(workspace, problems), *self._component_files(workspace, problems))
        if not self._unsafe:
            # its author need not be who runs the pull, and may see what ends in the store
            problems += (
                f"file “{display(file.path, 120)}” comes from {display(Url(file.uri), 200)}, which only a "
                "trusted manifest may name (NIM_MANIFEST_ALLOW_UNSAFE=1 allows it)"
                for file in files
                if _is_inside(file.uri)
            )
        return files, problems[0] if problems else ""

    def _listed_files(self, workspace: YamlMap, problems: list[str]) -> Iterator[ProfileFile]:
        """v2: ``files: {<path>: {uri: …, checksum: …}}``."""
        files = _in(YamlMap, workspace, "files")
        for path, value in files.items():
            line = files.lines[path]
            entry = _as(YamlMap, value, line, f"file “{display(path, 120)}”")
            uri = _text(entry, "uri")
            if not uri:
                problems.append(f"file “{display(path, 120)}” has no uri")
                continue
            yield ProfileFile(self._path(path, line), uri, self._checksum(_text(entry, "checksum")))

    def _component_files(self, workspace: YamlMap, problems: list[str]) -> Iterator[ProfileFile]:
        """v1: ``components: [{dst, src: {repo_id, files: [name, …]}}]``; ``dst`` is a directory or ""."""
        parts = _in(YamlList, workspace, "components")
        for part, line in zip(parts, parts.lines, strict=True):
            component = _as(YamlMap, part, line, "a component")
            source = _in(YamlMap, component, "src")
            repo = source.get("repo_id")
            names = source.get("files")
            if not isinstance(repo, str) or not repo or not isinstance(names, YamlList):
                problems.append("a workspace component names no repository or no files")
                continue
            # v1 names NGC repositories bare: nim/meta/llama3-8b-instruct:hf.
            repo = repo if "://" in repo else f"ngc://{repo}"
            prefix = _text(component, "dst").strip("/")
            for name, at in zip(names, names.lines, strict=True):
                if not isinstance(name, str):
                    problems.append("a workspace component lists a file that is not a name")
                    continue
                path = self._path(f"{prefix}/{name}" if prefix not in ("", ".") else name, at)
                # v1 has no checksums: those of the registry are all there is.
                yield ProfileFile(path, f"{repo}?file={name}")

    def _path(self, text: str, line: int) -> SafePath:
        known = self._paths.get(text)
        if known is None:
            try:
                known = self._paths[text] = SafePath(text)
            except ListingError as cause:
                raise ManifestError(f"manifest, line {line}: {cause.message}", hint=cause.hint) from cause
        return known

    def _checksum(self, text: str) -> Digest | None:
        if not text:
            return None
        if text not in self._digests:
            try:
                self._digests[text] = Digest.parse(text)
            except ValueError:
                self._digests[text] = None
        if self._digests[text] is None:
            self._unknown_checksums += 1
        return self._digests[text]


def runtime_manifest(listings: Iterable[Listing]) -> bytes:
    """What was fetched without a manifest, see :func:`manifest_of`."""
    files = {
        str(artifact.path): {"uri": str(artifact.uri)}
        | ({"checksum": str(artifact.digest)} if artifact.digest else {})
        for listing in listings
        for artifact in listing.artifacts
    }
    return manifest_of(files)


def manifest_of(files: Mapping[str, Mapping[str, str]]) -> bytes:
    """A v2 manifest (JSON, which is YAML too) of one profile; ``files``: ``uri`` and ``checksum``, by path.

    The profile's id is the SHA-256 of these: equal for equal content.
    """
    identity = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    profile = {"id": identity, "tags": {}, "workspace": {"files": files}}
    return json.dumps({"schema_version": "2.0", "profiles": [profile]}, indent=1).encode() + b"\n"
