"""A model manifest as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nimpull.core.digest import Digest
from nimpull.core.names import SafePath


@dataclass(frozen=True, slots=True)
class ProfileFile:
    """One file of a profile's workspace: ``path`` in the workspace, ``uri`` where it comes from (text)."""

    path: SafePath
    uri: str
    digest: Digest | None = None


@dataclass(frozen=True, slots=True)
class Profile:
    """``tags`` hold the YAML text as written (``010``, ``True``, ``1.50``)."""

    id: str
    tags: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    release: str = ""
    files: tuple[ProfileFile, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """``schema``: "v1", "v2" or "legacy"; profiles in manifest order."""

    schema: str
    profiles: tuple[Profile, ...]
    selection_criteria: str = ""
