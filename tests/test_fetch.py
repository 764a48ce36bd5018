"""The fetch engine against servers that misbehave, over real sockets into real files."""

from __future__ import annotations

from pathlib import Path

from nimpull.core.artifacts import Action
from nimpull.core.events import Advanced, Finished
from nimpull.fetch import FetchLimits
from tests.committing import artifact
from tests.pulling import MIB, noise, pulling, serve

FILES = {
    "config.json": b"{}\n",
    "empty": b"",
    "sub/model-1.safetensors": noise(5 * MIB + 17, 1),
    "sub/model-2.safetensors": noise(3 * MIB + 1, 2),
}
SMALL_STEPS = FetchLimits(chunk=MIB, pool=4 * MIB)


def test_files_of_all_sizes_arrive_verified_and_read_only(tmp_path: Path) -> None:
    wanted = [artifact(path, content) for path, content in FILES.items()]
    with pulling(tmp_path, serve(FILES)) as pull:
        outcomes = pull.run(*wanted)
    assert pull.committed(*wanted) == FILES
    assert pull.leftovers() == []
    assert [each.artifact for each in outcomes] == wanted
    assert {each.verified for each in outcomes} == {"sha256"}
    assert {each.action for each in outcomes} == {Action.FETCHED}
    assert [each.digest for each in outcomes] == [each.digest for each in wanted]
    assert {(tmp_path / path).stat().st_mode & 0o777 for path in FILES} == {0o444}
    total = sum(len(content) for content in FILES.values())
    assert sum(each.fetched for each in outcomes) == total
    assert sum(each.count for each in pull.events if isinstance(each, Advanced)) == total
    assert sum(isinstance(each, Finished) for each in pull.events) == len(FILES)


def test_one_large_file_comes_in_ranges_over_several_connections(tmp_path: Path) -> None:
    content = noise(24 * MIB + 5)
    one = artifact("model", content)
    with pulling(tmp_path, serve({"model": content})) as pull:
        pull.run(one, limits=SMALL_STEPS)
    assert pull.committed(one) == {"model": content}
    assert len({seen.connection for seen in pull.server.seen}) > 1
    spans = sorted(seen.span or (0, None) for seen in pull.server.seen)
    assert [start for start, _ in spans] == [0, *(end for _, end in spans[:-1])]
