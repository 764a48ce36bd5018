"""A directory as a source."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest
from blake3 import blake3

from nimpull.core.artifacts import Wanted
from nimpull.core.names import ModelUri
from nimpull.errors import NotFoundError, UsageError
from nimpull.sources.local import LocalSource


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "a model"
    (directory / "sub").mkdir(parents=True)
    (directory / "config.json").write_bytes(b"{}")
    (directory / "sub" / "weights #1").write_bytes(bytes(range(100)))
    (directory / "link").symlink_to("config.json")
    return directory


def _uri(model: Path) -> ModelUri:
    return ModelUri.parse(model.as_uri())


def test_files_and_links_to_files_are_listed(model: Path) -> None:
    listing = LocalSource().list(_uri(model), Wanted())
    assert [(str(a.path), a.size) for a in listing.artifacts] == [
        ("config.json", 2),
        ("link", 2),
        ("sub/weights #1", 100),
    ]
    assert len(listing.uri.revision) == 40


@pytest.mark.parametrize("name", ["checksums.blake3", "SHA256SUMS"])
def test_its_own_list_of_checksums_checks_the_files(model: Path, name: str) -> None:
    source, digest = LocalSource(), blake3 if name == "checksums.blake3" else sha256
    assert "4 files" not in source.list(_uri(model), Wanted()).notes[0]
    (model / name).write_text(f"{digest(b'{}').hexdigest()}  config.json\n{'0' * 64}  gone\n")
    listing = source.list(_uri(model), Wanted(include=("c*", "S*")))
    found = {str(each.path): each.digest and each.digest.hex for each in listing.artifacts}
    assert found == {"config.json": digest(b"{}").hexdigest(), name: None}


def test_a_path_and_nims_own_scheme_are_directories(model: Path) -> None:
    same = _uri(model)
    assert ModelUri.parse(str(model)) == ModelUri.parse(f"local:///{same.location}") == same


def test_the_revision_changes_with_the_directory(model: Path) -> None:
    before = LocalSource().list(_uri(model), Wanted()).uri.revision
    (model / "config.json").write_bytes(b"{ }")
    assert LocalSource().list(_uri(model), Wanted()).uri.revision != before


def test_what_is_not_there_is_named(model: Path) -> None:
    source = LocalSource()
    with pytest.raises(NotFoundError, match="none"):
        source.list(ModelUri.parse(f"{model.as_uri()}/none"), Wanted())
    with pytest.raises(NotFoundError, match="“gone”"):
        source.list(_uri(model), Wanted(paths=frozenset({"gone"})))
    [artifact] = source.list(_uri(model), Wanted(include=("sub/*",))).artifacts
    assert source.locate(artifact).url.reveal().endswith("/a%20model/sub/weights%20%231")
    with pytest.raises(UsageError):
        source.list(ModelUri.parse("file://host/dir"), Wanted())
