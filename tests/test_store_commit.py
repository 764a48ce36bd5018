"""Ingests and layouts together: what a fetch leaves on the volume."""

from __future__ import annotations

from pathlib import Path

import pytest

from nimpull.core.ports import Verified
from nimpull.core.ranges import Checkpoint
from nimpull.errors import NotWritableError
from nimpull.store.area import IngestArea
from nimpull.store.layouts import StoreLayout
from tests.committing import HUB, artifact, digest_of, listing, open_store

SMALL = b"{}"
LARGE = b"\0\1\2\3" * 5000


@pytest.mark.parametrize("name", ["nim_cache", "local_dir", "workspace"])
def test_a_batch_becomes_visible_whole_and_read_only(tmp_path: Path, name: str) -> None:
    with open_store(str(tmp_path)) as store:
        layout: StoreLayout = getattr(store, name)()
        area = IngestArea(store.tree, layout)
        config, weights = artifact("a/config.json", SMALL, HUB), artifact("weights.bin", LARGE, HUB)
        ingest = area.open(weights)
        ingest.begin(len(LARGE), "")
        ingest.write(memoryview(LARGE), 0)
        ingest.record(Checkpoint(0, len(LARGE), bytes(32)))
        (partial,) = store.status().partial
        assert (partial.identity, partial.size) == (weights.identity, len(LARGE))
        small = area.stage(config, memoryview(SMALL))
        assert layout.committed(weights) is None
        area.commit(
            (
                Verified(ingest, len(LARGE), digest_of(LARGE)),
                Verified(small, len(SMALL), digest_of(SMALL)),
            )
        )
        layout.finish(listing(config, weights), complete=True)
        for one, content in ((config, SMALL), (weights, LARGE)):
            path = tmp_path / layout.path_of(one)
            assert path.read_bytes() == content
            assert path.stat().st_mode & 0o777 == 0o444
            assert layout.committed(one) is not None
        assert store.status().partial == ()
        assert list((tmp_path / ".nimpull/ingest").iterdir()) == []
        assert store.verify().sound


def test_f51_a_batch_stops_at_a_planted_link_and_keeps_what_was_fetched(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    with open_store(str(tmp_path / "store")) as store:
        (tmp_path / "store/huggingface").symlink_to(outside)
        area = IngestArea(store.tree, store.nim_cache())
        weights = artifact("weights.bin", LARGE, HUB)
        ingest = area.open(weights)
        ingest.begin(len(LARGE), "")
        ingest.write(memoryview(LARGE), 0)
        with pytest.raises(NotWritableError):
            area.commit((Verified(ingest, len(LARGE), digest_of(LARGE)),))
        ingest.close()
        assert list(outside.iterdir()) == []
        assert len(store.status().partial) == 1
