"""The last report of a run on a full volume: over the blocks that were set aside, no longer than these."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nimpull.core.report.contents import Failure, State
from nimpull.errors import NoSpaceError
from nimpull.store.report_file import REPORT, SPARE, set_aside
from nimpull.store.tree import Tree
from nimpull.wiring.shares import leave
from tests.pods import mounted
from tests.reports import a_report, an_outcome
from tests.running import check


@pytest.mark.parametrize(("files", "listed"), [(20, 20), (5000, 0)])
def test_f30_the_list_of_files_is_left_out_where_it_has_no_room(
    tmp_path: Path, files: int, listed: int
) -> None:
    outcomes = tuple(an_outcome(f"file-{number}") for number in range(files))
    error = Failure.of(NoSpaceError("full", hint="Enlarge it."))
    report = a_report(state=State.FAILED, error=error, artifacts=outcomes)
    with mounted("-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)):
        tree = Tree(str(tmp_path))
        set_aside(tree, 64 << 10)
        with (tmp_path / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(4096))
        leave(tree, report, last=True)
        written = json.loads((tmp_path / REPORT).read_text())
        assert not (tmp_path / SPARE).exists()
    check(written)
    assert written["error"]["reference"] == "no-space"
    assert len(written["artifacts"]) == listed
    told = "the list of 5000 files is left out: the volume has no room" in written["notes"]
    assert told is (listed == 0)
