"""Servers that are slow, silent or gone: how long a pull goes on, and what it says at the end.

Over real sockets, with a clock that is moved: no test waits for a real back-off.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from nimpull.core.events import Waiting
from nimpull.errors import AuthError, NetworkError, RedirectError
from nimpull.fetch import FetchLimits
from nimpull.transport import TransportPolicy
from tests.committing import artifact
from tests.pulling import MIB, Pull, hang_up, name_of, noise, partly, pulling, serve
from tests.servers import Peer, Seen, in_turn

CONTENT = noise(3 * MIB)
ONE = artifact("model", CONTENT)
GOOD = serve({"model": CONTENT})
ALONE = FetchLimits(connections=1)
BRIEF = FetchLimits(connections=1, retry_budget=20)


def said(pull: Pull) -> list[str]:
    return [each.reason for each in pull.events if isinstance(each, Waiting)]


def pauses(pull: Pull) -> list[float]:
    """Seconds that were waited after each failure, in order."""
    return [each.seconds for each in pull.events if isinstance(each, Waiting)]


def never(seen: Seen, peer: Peer) -> None:
    peer.stall()


def drip(seen: Seen, peer: Peer) -> None:
    """The bytes from the second MiB on, one by one."""
    at = MIB
    while not peer.stopped.wait(0.01):
        peer.send(CONTENT[at : at + 1])
        at += 1


# -- silent and slow ---------------------------------------------------------------------------------------


def test_f14_a_server_that_accepts_and_never_answers_is_asked_again(tmp_path: Path) -> None:
    with pulling(tmp_path, in_turn(never, never, GOOD)) as pull:
        pull.policy = TransportPolicy(read_timeout=3.0)
        pull.clock.step = 1.0
        (outcome,) = pull.run(ONE, limits=ALONE)
        assert pull.committed(ONE) == {"model": CONTENT}
    assert outcome.attempts == 3
    assert all("stalled" in reason for reason in said(pull))
    assert len({seen.connection for seen in pull.server.seen}) == 3


def test_f14_a_server_that_never_answers_ends_the_pull_with_its_cause(tmp_path: Path) -> None:
    with pulling(tmp_path, never) as pull:
        pull.policy = TransportPolicy(read_timeout=0.5)
        pull.clock.step = 0.5
        with pytest.raises(NetworkError, match=r"127\.0\.0\.1.*stalled.*no progress for \d+ s") as caught:
            pull.run(ONE, limits=BRIEF)
    assert 5 < sum(pull.clock.waits) <= 20
    assert caught.value.retryable


def test_f14_a_body_that_stalls_is_continued_where_it_stopped(tmp_path: Path) -> None:
    with pulling(tmp_path, in_turn(partly(CONTENT, MIB, never), GOOD)) as pull:
        # every look at the clock finds eleven seconds gone
        pull.clock.step = 11.0
        pull.policy = TransportPolicy(read_timeout=10.0, low_speed_bytes=0)
        pull.run(ONE, limits=ALONE)
        assert pull.committed(ONE) == {"model": CONTENT}
    assert [seen.span for seen in pull.server.seen] == [None, (MIB, 3 * MIB)]
    assert ["it stalled" in reason for reason in said(pull)] == [True]


def test_f15_a_trickle_is_dropped_and_its_rest_fetched_again(tmp_path: Path) -> None:
    def quick(seen: Seen, peer: Peer) -> None:
        pull.clock.step = 0.0
        GOOD(seen, peer)

    with pulling(tmp_path, in_turn(partly(CONTENT, MIB, drip), quick)) as pull:
        pull.clock.step = 12.0  # under the read timeout, over the low-speed window in three looks
        pull.run(ONE, limits=ALONE)
        assert pull.committed(ONE) == {"model": CONTENT}
    first, rest = (seen.span for seen in pull.server.seen)
    assert first is None
    assert rest is not None
    assert MIB <= rest[0] < MIB + 1000
    assert ["too slow" in reason for reason in said(pull)] == [True]


def test_f15_nothing_but_trickles_ends_with_its_cause(tmp_path: Path) -> None:
    with pulling(tmp_path, partly(CONTENT, 0, drip)) as pull:
        pull.clock.step = 12.0
        with pytest.raises(NetworkError, match=r"too slow, 0\.\d KiB/s.*no progress"):
            pull.run(ONE, limits=FetchLimits(connections=1, retry_budget=100))
    assert not (tmp_path / "model").exists()


# -- time without progress -----------------------------------------------------------------------------------


def test_f01_f15_a_pull_that_crawls_for_hours_over_cut_connections_never_gives_up(tmp_path: Path) -> None:
    """The budget is time without progress: neither hours nor failures use it up."""

    with pulling(tmp_path, partly(CONTENT, 70_000, hang_up)) as pull:
        pull.clock.step = 200.0
        pull.policy = TransportPolicy(low_speed_bytes=0)
        began = pull.clock.monotonic()
        (outcome,) = pull.run(ONE, limits=FetchLimits(connections=1, retry_budget=300))
        assert pull.committed(ONE) == {"model": CONTENT}
    assert outcome.attempts > 30
    assert pull.clock.monotonic() - began > 2 * 3600


def test_f01_a_cut_after_much_is_continued_at_once_and_one_without_bytes_is_not(tmp_path: Path) -> None:
    """What cuts long responses is no sign of a host that needs a rest."""
    mib = partly(CONTENT, MIB, hang_up)
    with pulling(tmp_path, in_turn(mib, mib, GOOD)) as pull:
        pull.run(ONE, limits=ALONE)
    assert pull.committed(ONE) == {"model": CONTENT}
    assert pauses(pull) == [0.0, 0.0]
    (tmp_path / "model").unlink()
    with pulling(tmp_path, in_turn(mib, hang_up, hang_up, GOOD)) as pull:
        pull.run(ONE, limits=ALONE)
    assert pauses(pull)[0] == 0.0
    assert 0.0 < pauses(pull)[1] < pauses(pull)[2]


def test_f01_f05_a_cut_at_the_same_byte_of_a_host_without_ranges_is_no_progress(tmp_path: Path) -> None:
    def cut(seen: Seen, peer: Peer) -> None:
        if len(pull.server.seen) > 100:  # it would never end
            peer.reply(404)
        peer.head(200, {"Content-Length": str(len(CONTENT)), "ETag": '"v1"'})
        peer.send(CONTENT[: 2 * MIB])
        peer.close()

    with pulling(tmp_path, cut) as pull, pytest.raises(NetworkError, match=r"closed early.*no progress"):
        pull.run(ONE, limits=BRIEF)
    assert pauses(pull)[0] == 0.0
    assert all(pauses(pull)[1:]), "the same bytes again are no reason to hurry"


def test_f16_a_host_that_is_gone_ends_the_pull_with_its_cause(tmp_path: Path) -> None:
    with pulling(tmp_path, GOOD) as pull:
        pass
    with pytest.raises(NetworkError, match=rf"{pull.server.address}.*refused.*no progress for \d+ s"):
        pull.run(ONE)
    assert 300 < sum(pull.clock.waits) <= 600


# -- endings -------------------------------------------------------------------------------------------------


def test_f03_a_body_that_is_always_cut_short_by_the_close_ends_with_its_cause(tmp_path: Path) -> None:
    def short(seen: Seen, peer: Peer) -> None:
        peer.head(200, {"Connection": "close"})
        peer.send(CONTENT[:-5])
        peer.close()

    with pulling(tmp_path, short) as pull, pytest.raises(NetworkError, match=r"ended early, at byte \d+"):
        pull.run(ONE, limits=BRIEF)
    assert not (tmp_path / "model").exists()


def test_f04_framing_that_is_always_broken_ends_with_its_cause(tmp_path: Path) -> None:
    def broken(seen: Seen, peer: Peer) -> None:
        peer.head(200, {"Transfer-Encoding": "chunked"})
        peer.send(b"zz\r\nnot a chunk")
        peer.close()

    with pulling(tmp_path, broken) as pull, pytest.raises(NetworkError, match=r"framing.*no progress"):
        pull.run(ONE, limits=BRIEF)
    assert len({seen.connection for seen in pull.server.seen}) == len(pull.server.seen) > 2
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "to", ["/model?again", "file:///etc/passwd", "http://169.254.169.254/latest/meta-data"]
)
def test_f19_a_redirect_that_must_not_be_followed_ends_the_pull_at_once(tmp_path: Path, to: str) -> None:
    def elsewhere(seen: Seen, peer: Peer) -> None:
        peer.reply(302, b"moved", {"Location": to})

    with pulling(tmp_path, elsewhere) as pull, pytest.raises(RedirectError):
        pull.run(ONE, limits=ALONE)
    assert len(pull.server.seen) <= 11
    assert pull.clock.waits == []
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("silence", ["before the head", "in the body"])
@pytest.mark.parametrize("size", [1000, 3 * MIB], ids=["small", "large"])
def test_a_failure_does_not_wait_for_a_sibling_that_a_server_keeps_waiting(
    tmp_path: Path, silence: str, size: int
) -> None:
    stalled = threading.Event()
    content = noise(size)

    def answer(seen: Seen, peer: Peer) -> None:
        if name_of(seen) == "refused":
            stalled.wait(30)
            peer.reply(401)
            return
        if silence == "in the body":
            peer.head(200, {"Content-Length": str(size), "ETag": '"v1"'})
            peer.send(content[:500])
        stalled.set()
        peer.stall()

    wanted = [artifact("silent", content), artifact("refused", noise(size, 2))]
    with pulling(tmp_path, answer) as pull:
        began = time.monotonic()
        with pytest.raises(AuthError, match="refused"):
            pull.run(*wanted, limits=FetchLimits(connections=2))
        assert time.monotonic() - began < 30, "the read timeout is a minute"
    assert stalled.is_set()
