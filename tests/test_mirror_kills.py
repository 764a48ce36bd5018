"""F67: a mirror whose writer is killed. ``scripts/mirror-kill-test`` does it at every step."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.mirror_kills import (
    Mirror,
    calls_of,
    killed_at_call,
    killed_at_request,
    mirror,
    requests_of,
    tree_server,
)
from tests.volume_faults import COMPILER, WITHOUT


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirror]:
    with mirror(tmp_path_factory.mktemp("kills")) as ready:
        yield ready


@pytest.mark.parametrize(("before_the_last", "after"), [(8, True), (2, False), (0, True)])
def test_f67_a_bucket_whose_writer_was_killed(made: Mirror, before_the_last: int, after: bool) -> None:
    assert killed_at_request(made, requests_of(made) - before_the_last, after=after) == []


@pytest.mark.skipif(COMPILER is None, reason=WITHOUT)
@pytest.mark.parametrize("share", [0.1, 0.4])
def test_f67_a_directory_whose_writer_was_killed(made: Mirror, share: float) -> None:
    assert killed_at_call(made, int(calls_of(made) * share), tree_server) == []
