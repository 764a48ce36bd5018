"""The fetch engine against servers that misbehave, over real sockets into real files."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from nimpull.core.artifacts import Action
from nimpull.core.events import Advanced, Event, Finished, Waiting
from nimpull.core.ranges import Checkpoint
from nimpull.errors import (
    AuthError,
    Cancelled,
    ForbiddenError,
    IntegrityError,
    NetworkError,
    NotFoundError,
    SourceChangedError,
)
from nimpull.fetch import FetchLimits
from nimpull.store.area import IngestArea
from nimpull.store.tree import Tree
from tests.committing import artifact, digest_of
from tests.pulling import MIB, PlainLayout, Pull, hang_up, name_of, noise, partly, pulling, reset, serve
from tests.servers import Answer, Peer, Seen, in_turn

FILES = {
    "config.json": b"{}\n",
    "empty": b"",
    "sub/model-1.safetensors": noise(5 * MIB + 17, 1),
    "sub/model-2.safetensors": noise(3 * MIB + 1, 2),
}
SMALL_STEPS = FetchLimits(chunk=MIB, pool=4 * MIB)
ONE = FetchLimits(connections=1)


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


def test_a_second_run_fetches_only_what_is_missing(tmp_path: Path) -> None:
    content = noise(8 * MIB + 3)
    one = artifact("model", content)

    def until_half(seen: Seen, peer: Peer) -> None:
        start, _ = seen.span or (0, len(content))
        if start >= 4 * MIB:
            peer.reply(404)
        else:
            peer.file(seen, content)

    limits = FetchLimits(chunk=MIB, block=MIB, pool=4 * MIB, connections=1)
    with pulling(tmp_path, until_half) as pull:
        stopped = stop_after(pull, 4 * MIB)
        with pytest.raises(Cancelled):
            stopped.run(one, limits=limits)
    assert not (tmp_path / "model").exists()
    with pulling(tmp_path, serve({"model": content})) as pull:
        assert pull.present(one) >= 4 * MIB
        (outcome,) = pull.run(one, limits=limits)
    assert pull.committed(one) == {"model": content}
    assert outcome.action is Action.RESUMED
    assert outcome.fetched <= len(content) - 4 * MIB
    assert pull.leftovers() == []


def test_f39_a_file_that_was_whole_before_its_commit_needs_no_request(tmp_path: Path) -> None:
    content = noise(2 * MIB)
    one = artifact("model", content)
    with pulling(tmp_path, serve({"model": content})) as pull:
        ingest = pull.area().open(one)
        ingest.begin(len(content), '"v1"')
        ingest.write(memoryview(content), 0)
        ingest.record(Checkpoint(0, len(content), bytes.fromhex(digest_of(content).hex)))
        ingest.close()
        layout = PlainLayout(tmp_path)
        (outcome,) = pull.run(one, ingests=IngestArea(Tree(str(tmp_path)), layout))
    assert pull.committed(one) == {"model": content}
    assert pull.server.seen == []
    assert outcome.fetched == 0
    assert layout.etags == {"model": "v1"}


def stop_after(pull: Pull, count: int) -> Pull:
    """Cancels once ``count`` bytes were written."""
    seen = 0

    def emit(event: Event) -> None:
        nonlocal seen
        pull.events.append(event)
        if isinstance(event, Advanced):
            seen += event.count
            if seen >= count:
                pull.cancel.set()

    pull.emit = emit
    return pull


# -- faults of the transfer ----------------------------------------------------------------------------


@pytest.mark.parametrize("end", [reset, hang_up], ids=["f01_reset", "f02_close"])
def test_f01_f02_a_cut_is_continued_from_the_first_missing_byte(tmp_path: Path, end: Answer) -> None:
    content = noise(3 * MIB)
    one = artifact("model", content)
    good = serve({"model": content})
    with pulling(tmp_path, in_turn(partly(content, 2 * MIB, end), good)) as pull:
        (outcome,) = pull.run(one, limits=ONE)
    assert pull.committed(one) == {"model": content}
    assert outcome.attempts == 2
    first, second = (seen.span for seen in pull.server.seen)
    assert first is None
    assert second is not None
    # a reset may take what the kernel had not handed over yet
    assert second == (2 * MIB, 3 * MIB) or (end is reset and 0 < second[0] < 2 * MIB)
    assert outcome.fetched == len(content)


def test_f01_cuts_without_end_are_no_reason_to_give_up_while_bytes_come(tmp_path: Path) -> None:
    content = noise(2 * MIB)
    one = artifact("model", content)
    with pulling(tmp_path, partly(content, 100_000, hang_up)) as pull:
        pull.clock.step = 0.5
        (outcome,) = pull.run(one, limits=FetchLimits(connections=1, retry_budget=20))
    assert pull.committed(one) == {"model": content}
    assert outcome.attempts > 20


def test_f03_a_short_body_framed_by_the_close_is_noticed(tmp_path: Path) -> None:
    content = noise(2 * MIB)
    one = artifact("model", content)

    def short(seen: Seen, peer: Peer) -> None:
        peer.head(200, {"Connection": "close"})
        peer.send(content[:-5])
        peer.close()

    with pulling(tmp_path, in_turn(short, serve({"model": content}))) as pull:
        pull.run(one, limits=ONE)
    assert pull.committed(one) == {"model": content}


def test_f04_broken_chunked_framing_is_tried_again(tmp_path: Path) -> None:
    content = noise(2 * MIB)
    one = artifact("model", content)

    def broken(seen: Seen, peer: Peer) -> None:
        peer.head(200, {"Transfer-Encoding": "chunked"})
        peer.chunk(content[:1000])
        peer.send(b"zz\r\n")
        peer.close()

    with pulling(tmp_path, in_turn(broken, serve({"model": content}))) as pull:
        pull.run(one, limits=ONE)
    assert pull.committed(one) == {"model": content}


def test_f05_a_host_that_ignores_ranges_is_streamed_from_the_start(tmp_path: Path) -> None:
    content = noise(6 * MIB)
    files = {"one": content, "two": content[::-1]}
    wanted = [artifact(path, each) for path, each in files.items()]

    def whole(seen: Seen, peer: Peer) -> None:
        if len(pull.server.seen) > 20:  # it would never end
            peer.reply(404)
        peer.reply(200, files[name_of(seen)])

    with pulling(tmp_path, whole) as pull:
        pull.run(*wanted, limits=SMALL_STEPS)
    assert pull.committed(*wanted) == files
    assert sum(seen.span is None for seen in pull.server.seen) == len(files)
    assert len(pull.server.seen) <= 2 * len(files), "the host is known by then"


RIGHT = f"bytes {2 * MIB}-{3 * MIB - 1}/{3 * MIB}"


@pytest.mark.parametrize(
    ("sent", "headers"),
    [
        (2 * MIB, {"Content-Range": f"bytes {MIB}-{3 * MIB - 1}/{3 * MIB}"}),
        (MIB - 1, {"Content-Range": f"bytes {2 * MIB}-{3 * MIB - 2}/{3 * MIB}"}),
        (MIB, {"Content-Range": f"bytes {2 * MIB}-{3 * MIB - 1}/{4 * MIB}"}),
        (MIB, {"Content-Range": ""}),
        (MIB, {"Content-Range": RIGHT, "Content-Type": "multipart/byteranges; boundary=x"}),
    ],
    ids=["start", "end", "total", "missing", "multipart"],
)
def test_f06_a_wrong_content_range_is_refused_after_one_retry(
    tmp_path: Path, sent: int, headers: dict[str, str]
) -> None:
    content = noise(3 * MIB)
    one = artifact("model", content)

    def lie(seen: Seen, peer: Peer) -> None:
        peer.reply(206, content[-sent:], headers)

    with (
        pulling(tmp_path, in_turn(partly(content, 2 * MIB, hang_up), lie)) as pull,
        pytest.raises(IntegrityError, match="model"),
    ):
        pull.run(one, limits=ONE)
    assert len(pull.server.seen) == 3
    assert not (tmp_path / "model").exists()


def test_f07_a_refused_range_is_located_once_more_and_never_loops(tmp_path: Path) -> None:
    content = noise(3 * MIB)
    one = artifact("model", content)

    def unsatisfied(seen: Seen, peer: Peer) -> None:
        peer.reply(416, b"", {"Content-Range": f"bytes */{len(content)}"})

    with pulling(tmp_path, unsatisfied) as pull, pytest.raises(IntegrityError, match="416"):
        pull.run(one, limits=ONE)
    assert pull.located == [("model", False), ("model", True)]


def test_f07_a_range_that_is_refused_once_costs_no_byte(tmp_path: Path) -> None:
    content = noise(3 * MIB)
    one = artifact("model", content)

    def unsatisfied(seen: Seen, peer: Peer) -> None:
        peer.reply(416, b"", {"Content-Range": f"bytes */{len(content)}"})

    answers = in_turn(partly(content, 2 * MIB, hang_up), unsatisfied, serve({"model": content}))
    with pulling(tmp_path, answers) as pull:
        (outcome,) = pull.run(one, limits=ONE)
    assert pull.committed(one) == {"model": content}
    assert outcome.fetched == len(content)
    assert pull.located == [("model", False), ("model", True)]


def test_f08_a_file_that_changes_once_starts_over_and_twice_is_source_changed(tmp_path: Path) -> None:
    old, new = noise(3 * MIB, 1), noise(3 * MIB, 2)
    one = artifact("model", new)

    def changed(etag: str) -> Answer:
        return lambda seen, peer: peer.file(seen, new, f'"{etag}"')

    old_then = partly(old, 2 * MIB, hang_up)
    with pulling(tmp_path, in_turn(old_then, changed("v2"))) as pull:
        pull.run(one, limits=ONE)
    assert pull.committed(one) == {"model": new}
    (tmp_path / "model").unlink()

    def always(seen: Seen, peer: Peer) -> None:
        etag = f'"{len(pull.server.seen)}"'
        peer.head(206 if seen.span else 200, {"Content-Length": str(3 * MIB), "ETag": etag})
        peer.send(new[: 2 * MIB])
        peer.close()

    def ranged(seen: Seen, peer: Peer) -> None:
        if seen.span:
            peer.file(seen, new, f'"{len(pull.server.seen)}"')
        else:
            always(seen, peer)

    with pulling(tmp_path, ranged) as pull, pytest.raises(SourceChangedError):
        pull.run(one, limits=ONE)
    assert [seen.span and seen.span[0] for seen in pull.server.seen] == [None, 2 * MIB] * 2
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("etag", ["", 'W/"v1"', '"v2"'])
def test_f09_without_a_digest_chunks_of_two_runs_need_one_validator(tmp_path: Path, etag: str) -> None:
    old, new = noise(4 * MIB, 1), noise(4 * MIB, 2)
    one = replace(artifact("model", new), digests=())

    def tagged(content: bytes, tag: str) -> Answer:
        return lambda seen, peer: peer.file(seen, content, tag)

    limits = FetchLimits(chunk=MIB, block=MIB, pool=4 * MIB, connections=1)
    with pulling(tmp_path, tagged(old, etag if etag != '"v2"' else '"v1"')) as pull, pytest.raises(Cancelled):
        stop_after(pull, 2 * MIB).run(one, limits=limits)
    with pulling(tmp_path, tagged(new, etag)) as pull:
        (outcome,) = pull.run(one, limits=limits)
    assert pull.committed(one) == {"model": new}
    assert outcome.verified == "size"
    assert outcome.action is Action.FETCHED


def test_f09_with_an_equal_strong_validator_they_are_combined(tmp_path: Path) -> None:
    content = noise(4 * MIB)
    one = replace(artifact("model", content), digests=())
    limits = FetchLimits(chunk=MIB, block=MIB, pool=4 * MIB, connections=1)
    with pulling(tmp_path, serve({"model": content})) as pull, pytest.raises(Cancelled):
        stop_after(pull, 2 * MIB).run(one, limits=limits)
    with pulling(tmp_path, serve({"model": content})) as pull:
        (outcome,) = pull.run(one, limits=limits)
    assert pull.committed(one) == {"model": content}
    assert outcome.action is Action.RESUMED
    assert outcome.fetched <= 2 * MIB


@pytest.mark.parametrize("size", [1000, 2 * MIB + 9])
def test_f10_a_flipped_bit_is_fetched_again_once_then_corrupt(tmp_path: Path, size: int) -> None:
    content = noise(size)
    flipped = bytes([content[0] ^ 1]) + content[1:]
    one = artifact("model", content)
    with pulling(tmp_path, in_turn(serve({"model": flipped}), serve({"model": content}))) as pull:
        pull.run(one, limits=ONE)
    assert pull.committed(one) == {"model": content}
    assert {seen.connection for seen in pull.server.seen} == {0, 1}
    (tmp_path / "model").unlink()
    with pulling(tmp_path, serve({"model": flipped})) as pull, pytest.raises(IntegrityError) as caught:
        pull.run(one, limits=ONE)
    assert len(pull.server.seen) == 2
    assert str(one.digest) in caught.value.message
    assert str(digest_of(flipped)) in caught.value.message
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("size", [2000, 2 * MIB + 9])
def test_f11_a_content_coding_is_refused_after_one_retry_if_the_content_is_not_the_files(
    tmp_path: Path, size: int
) -> None:
    """What is stored as it is, and only called coded (Apache's AddEncoding for .gz), is the file."""
    content, other = noise(size), noise(size, 2)
    one = artifact("model", content)

    def coded(body: bytes) -> Answer:
        return lambda seen, peer: peer.reply(200, body, {"Content-Encoding": "gzip"})

    with pulling(tmp_path, coded(other)) as pull, pytest.raises(IntegrityError, match="gzip"):
        pull.run(one, limits=ONE)
    assert len(pull.server.seen) == 2
    assert not (tmp_path / "model").exists()
    for answers in (in_turn(coded(other), serve({"model": content})), coded(content)):
        with pulling(tmp_path, answers) as pull:
            pull.run(one, limits=ONE)
        assert pull.committed(one) == {"model": content}
        (tmp_path / "model").unlink()


@pytest.mark.parametrize("size", [1000, 2 * MIB])
def test_f12_an_endless_body_stops_at_the_expected_byte(tmp_path: Path, size: int) -> None:
    content = noise(size)
    one = artifact("model", content)

    def endless(seen: Seen, peer: Peer) -> None:
        peer.head(200, {"Connection": "close"})
        while not peer.stopped.is_set():
            peer.send(content)

    with pulling(tmp_path, endless) as pull, pytest.raises(IntegrityError, match="more bytes"):
        pull.run(one, limits=ONE)
    stored = sum(each.stat().st_size for each in tmp_path.rglob("*") if each.is_file())
    assert stored <= size + 4096


def test_f12_bytes_behind_a_body_get_into_no_other_file(tmp_path: Path) -> None:
    """A connection whose answer is longer than its head says is not asked again."""
    files = {f"file-{number}": noise(1000, number) for number in range(4)}
    wanted = [artifact(path, content) for path, content in files.items()]

    def more(seen: Seen, peer: Peer) -> None:
        peer.reply(200, files[name_of(seen)] * 2, {"Content-Length": "1000"})

    with pulling(tmp_path, more) as pull:
        pull.run(*wanted, limits=FetchLimits(connections=1, small_connections=1))
    assert pull.committed(*wanted) == files
    assert len({seen.connection for seen in pull.server.seen}) == len(files)


def test_f13_a_web_page_in_place_of_a_file_names_the_host_and_is_not_saved(tmp_path: Path) -> None:
    one = artifact("model", noise(2 * MIB))

    def portal(seen: Seen, peer: Peer) -> None:
        peer.reply(200, b"<html>sign in</html>", {"Content-Type": "text/html; charset=utf-8"})

    with pulling(tmp_path, portal) as pull, pytest.raises(IntegrityError, match=r"127\.0\.0\.1.*text/html"):
        pull.run(one)
    assert not (tmp_path / "model").exists()


def test_f14_f18_a_storm_of_errors_is_waited_out_and_ends_with_its_cause(tmp_path: Path) -> None:
    content = noise(2 * MIB)
    one = artifact("model", content)

    def busy(seen: Seen, peer: Peer) -> None:
        peer.reply(503)

    with pulling(tmp_path, in_turn(*[busy] * 8, serve({"model": content}))) as pull:
        pull.run(one, limits=ONE)
    assert pull.committed(one) == {"model": content}
    waits = [each.seconds for each in pull.events if isinstance(each, Waiting)]
    assert len(waits) == 8
    assert waits[1] > waits[0]
    assert max(waits) <= 60
    (tmp_path / "model").unlink()
    with pulling(tmp_path, busy) as pull, pytest.raises(NetworkError, match=r"503.*no progress"):
        pull.run(one, limits=ONE)
    assert 400 < sum(pull.clock.waits) <= 600


def test_f17_a_pause_beyond_the_budget_is_cut_to_one_last_attempt_and_named(tmp_path: Path) -> None:
    one = artifact("model", noise(2 * MIB))
    limits = FetchLimits(connections=1, retry_budget=100)

    def limited(seen: Seen, peer: Peer) -> None:
        peer.reply(429, b"", {"Retry-After": "3600"})

    with pulling(tmp_path, limited) as pull:
        with pytest.raises(NetworkError, match=r"429 .*no progress for 100 s; it asks for 300 s more"):
            pull.run(one, limits=limits)
        assert len(pull.server.seen) == 2
    assert sum(pull.clock.waits) == pytest.approx(100)
    with pulling(tmp_path, in_turn(limited, serve({"model": noise(2 * MIB)}))) as pull:
        pull.run(one, limits=limits)
        assert pull.committed(one) == {"model": noise(2 * MIB)}


def test_f17_a_host_that_asks_for_a_pause_gets_it_from_all_connections(tmp_path: Path) -> None:
    files = {f"file-{number}": noise(100, number) for number in range(20)}
    wanted = [artifact(path, content) for path, content in files.items()]
    good = serve(files)
    early: list[Seen] = []

    def limited(seen: Seen, peer: Peer) -> None:
        if len(pull.server.seen) == 1:
            peer.reply(429, b"", {"Retry-After": "120"})
            return
        if not pull.clock.waits:
            early.append(seen)
        good(seen, peer)

    with pulling(tmp_path, limited) as pull:
        pull.run(*wanted, limits=FetchLimits(connections=1, small_connections=4))
    assert pull.committed(*wanted) == files
    assert len(early) <= 3, "those were under way already"
    assert 120 <= sum(pull.clock.waits) < 300


def test_f20_an_expired_url_is_located_again_and_chunks_are_kept(tmp_path: Path) -> None:
    content = noise(6 * MIB)
    one = artifact("model", content)
    uses: Counter[str] = Counter()

    def expiring(seen: Seen, peer: Peer) -> None:
        uses[seen.target] += 1
        if uses[seen.target] > 1:
            peer.reply(403, b"<Error><Code>AccessDenied</Code></Error>", {"Content-Type": "application/xml"})
        else:
            partly(content, MIB, hang_up)(seen, peer)

    with pulling(tmp_path, expiring) as pull:
        (outcome,) = pull.run(one, limits=ONE)
    assert pull.committed(one) == {"model": content}
    assert outcome.fetched == len(content)
    assert pull.located[0] == ("model", False)
    assert len(pull.located) == 6, "more often than an expiry without progress is forgiven"
    (tmp_path / "model").unlink()
    with pulling(tmp_path, lambda seen, peer: peer.reply(403)) as pull, pytest.raises(ForbiddenError):
        pull.run(one, limits=ONE)
    assert len(pull.located) == 4


@pytest.mark.parametrize(("ahead", "located"), [(0.0, 2), (-1e6, 1), (1e6, 1)], ids=["right", "slow", "fast"])
def test_f20_f45_a_url_is_used_until_shortly_before_its_end_if_the_clock_makes_sense(
    tmp_path: Path, ahead: float, located: int
) -> None:
    """By a clock that is far off every location would be too old, or none."""
    content = noise(6 * MIB)
    one = artifact("model", content)

    def minutely(seen: Seen, peer: Peer) -> None:
        pull.clock.wait(100, pull.cancel)
        partly(content, MIB, hang_up)(seen, peer)

    with pulling(tmp_path, minutely) as pull:
        pull.expires_in = 300.0 - ahead
        pull.run(one, limits=ONE)
    assert pull.committed(one) == {"model": content}
    assert len(pull.located) == located


def test_f21_a_second_401_is_unauthorized(tmp_path: Path) -> None:
    one = artifact("model", noise(100))
    with pulling(tmp_path, lambda seen, peer: peer.reply(401)) as pull, pytest.raises(AuthError):
        pull.run(one)
    assert pull.located == [("model", False), ("model", True)]


@pytest.mark.parametrize("size", [100, 2 * MIB])
def test_f23_a_missing_file_is_named_and_the_others_are_kept(tmp_path: Path, size: int) -> None:
    files = {"here": noise(2 * MIB), "too": b"x"}
    wanted = [artifact("gone", noise(size)), *(artifact(path, each) for path, each in files.items())]
    with pulling(tmp_path, serve(files)) as pull, pytest.raises(NotFoundError, match="gone"):
        pull.run(*wanted, limits=ONE)
    assert pull.committed(*wanted[1:]) == files


@pytest.mark.parametrize("chunked", [False, True])
def test_f24_a_file_of_unknown_size_is_streamed_to_its_end(tmp_path: Path, chunked: bool) -> None:
    content = noise(2 * MIB + 100)
    one = replace(artifact("model", content), size=None)

    def answer(seen: Seen, peer: Peer) -> None:
        if chunked:
            peer.head(200, {"Transfer-Encoding": "chunked"})
            peer.chunk(content)
            peer.chunk(b"")
        else:
            peer.file(seen, content)

    with pulling(tmp_path, answer) as pull:
        (outcome,) = pull.run(one)
    assert pull.committed(one) == {"model": content}
    assert outcome.size == len(content)
    assert outcome.verified == "sha256"
