"""Claims on units of work: one pod at a time, by the volume's clock, without flock."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from nimpull.errors import LimitError, NoSpaceError, StoreIOError
from nimpull.store import presence
from nimpull.store.claims import CLAIMS, Claims
from nimpull.store.presence import EXPIRY, RENEWAL, RUNS
from nimpull.store.tree import Tree
from tests.clocks import HandClock

UNIT, OTHER = "a" * 32, "b" * 32


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def pod(tmp_path: Path, clock: HandClock, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Claims]:
    """Pods of other nodes, whose processes cannot be seen; nothing renews their claims but a test."""

    def make(name: str) -> Claims:
        monkeypatch.setattr(presence, "this_process", lambda: f"boot-of-{name}:1:1:1")
        made = Claims(Tree(str(tmp_path)), owner=name, clock=clock)
        monkeypatch.undo()
        made.presence.renew()
        return made

    return make


def grow_old(claims: Claims, seconds: float) -> None:
    """As if it had not been renewed for that long, by the volume's clock."""
    path = claims.tree.absolute(claims.presence.path)
    then = os.stat(path).st_mtime - seconds
    os.utime(path, (then, then))


def owner_of(claims: Claims, unit: str = UNIT) -> str:
    """Whom it would have to wait for; "" where it has the unit itself now."""
    run = claims.take(unit)
    return run.owner if run else ""


Pods = Callable[[str], Claims]


def test_f46_the_second_is_told_who_has_it(pod: Pods) -> None:
    first, second = pod("pod-a"), pod("pod-b")
    assert owner_of(first) == ""
    assert owner_of(second) == "pod-a"
    assert owner_of(first) == "", "who has it takes it again"
    assert owner_of(second, OTHER) == "", "and nobody waits for another unit"
    assert not first.lost((UNIT,)) and second.lost((UNIT,))
    assert second.standing() == {UNIT, OTHER}


def test_f46_what_is_dropped_is_free_at_once(pod: Pods) -> None:
    first, second = pod("pod-a"), pod("pod-b")
    assert owner_of(first) == ""
    first.drop(UNIT)
    assert owner_of(second) == ""
    assert first.lost((UNIT,))


def test_f46_a_run_leaves_nothing_behind(tmp_path: Path, clock: HandClock) -> None:
    with Claims(Tree(str(tmp_path)), owner="pod-a", clock=clock) as claims:
        claims.take(UNIT)
        assert os.listdir(tmp_path / RUNS) == [claims.presence.token]
    assert os.listdir(tmp_path / RUNS) == os.listdir(tmp_path / CLAIMS) == []


@pytest.mark.parametrize("links", [True, False])
def test_f46_of_many_at_once_one_has_it(
    tmp_path: Path, pod: Pods, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pods = [pod(f"pod-{number}") for number in range(8)]
    if not links:
        monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    for turn in range(20):
        barrier = Barrier(8)

        def attempt(claims: Claims, barrier: Barrier = barrier) -> bool:
            barrier.wait()
            return claims.take(UNIT) is None

        with ThreadPoolExecutor(8) as pool:
            won = [each for each, mine in zip(pods, pool.map(attempt, pods), strict=True) if mine]
        holding = [each for each in pods if not each.lost((UNIT,))]
        assert len(holding) <= 1
        assert set(holding) <= set(won)
        for each in pods:
            each.presence.renew()
        for each in holding:  # the next round is a takeover, or a free unit
            grow_old(each, EXPIRY + 1)
            if turn % 2:
                each.drop(UNIT)


def test_f46_a_look_that_is_out_of_date_when_it_is_acted_on(
    pod: Pods, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its look and its link the claim expired, was taken over, given back, and taken by another."""
    dead, quick, other, late = (pod(name) for name in ("dead", "quick", "other", "late"))
    assert owner_of(dead) == ""
    grow_old(dead, EXPIRY + 1)
    real = Tree.hard_link

    def link(self: Tree, existing: str, path: str) -> None:
        monkeypatch.setattr(Tree, "hard_link", real)
        assert owner_of(quick) == ""
        quick.drop(UNIT)
        assert owner_of(other) == ""
        real(self, existing, path)

    monkeypatch.setattr(Tree, "hard_link", link)
    assert owner_of(late) == "other"
    assert not other.lost((UNIT,)) and late.lost((UNIT,))


def refuse(code: int) -> Callable[..., Any]:
    def call(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return call


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EPERM, errno.EIO, errno.ENOSYS])
def test_f64_without_hard_links_a_claim_is_one_all_the_same(
    pod: Pods, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = pod("pod-a"), pod("pod-b")
    monkeypatch.setattr(os, "link", refuse(code))
    assert owner_of(first) == ""
    assert owner_of(second) == "pod-a"
    grow_old(first, EXPIRY + 1)
    assert owner_of(second) == ""
    assert first.lost((UNIT,))


@pytest.mark.parametrize("call", ["link", "unlink"])
def test_f63_a_call_that_worked_and_says_that_it_did_not(
    tmp_path: Path, pod: Pods, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An NFS server that was slow is asked again, and answers for the second time."""
    first, second = pod("pod-a"), pod("pod-b")
    real = getattr(os, call)
    code = errno.EEXIST if call == "link" else errno.ENOENT

    def repeated(*arguments: object, **named: object) -> None:
        real(*arguments, **named)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, repeated)
    assert owner_of(first) == ""
    assert owner_of(second) == "pod-a"
    first.drop(UNIT)
    assert owner_of(second) == ""
    assert not second.lost((UNIT,))


def test_f63_a_file_handle_that_went_stale_is_looked_for_again(
    tmp_path: Path, pod: Pods, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = pod("pod-a"), pod("pod-b")
    assert owner_of(first) == ""
    real, stale = os.open, [True]

    def open_(path: str, *arguments: Any, **named: Any) -> int:
        if path.startswith(UNIT) and stale.pop():
            stale.append(False)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(path, *arguments, **named)

    monkeypatch.setattr(os, "open", open_)
    assert owner_of(second) == "pod-a"


def test_f47_no_flock_is_asked(pod: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", None)
    monkeypatch.setattr(fcntl, "lockf", None)
    first, second = pod("pod-a"), pod("pod-b")
    assert owner_of(first) == ""
    assert owner_of(second) == "pod-a"
    first.drop(UNIT)
    assert owner_of(second) == ""


# -- who slept, and who died ----------------------------------------------------------------------------


def test_f48_a_sleeper_finds_that_it_was_replaced(pod: Pods) -> None:
    sleeper, taker = pod("pod-a"), pod("pod-b")
    assert owner_of(sleeper) == ""
    grow_old(sleeper, EXPIRY - 1)
    assert owner_of(taker) == "pod-a"
    grow_old(sleeper, EXPIRY + 1)
    assert not sleeper.lost((UNIT,)), "run out, but nobody took it"
    assert owner_of(taker) == ""
    sleeper.presence.renew()
    assert sleeper.lost((UNIT,))
    assert owner_of(sleeper) == "pod-b"
    sleeper.drop(UNIT)
    assert not taker.lost((UNIT,))


def test_f48_also_when_the_taker_is_long_done(pod: Pods) -> None:
    sleeper, taker = pod("pod-a"), pod("pod-b")
    assert owner_of(sleeper) == ""
    grow_old(sleeper, EXPIRY + 1)
    assert owner_of(taker) == ""
    taker.drop(UNIT)
    sleeper.presence.renew()
    assert sleeper.lost((UNIT,))


def test_f48_what_is_renewed_is_not_taken(pod: Pods) -> None:
    first, second = pod("pod-a"), pod("pod-b")
    assert owner_of(first) == ""
    for _ in range(3):
        grow_old(first, EXPIRY + 1)
        first.presence.renew()
        assert owner_of(second) == "pod-a"
    assert RENEWAL * 3 < EXPIRY <= 30 - 2 * RENEWAL


def test_f66_who_stood_still_with_the_volume_lets_the_others_write_first(pod: Pods, clock: HandClock) -> None:
    first, second = pod("pod-a"), pod("pod-b")
    assert owner_of(first) == ""
    clock.now += 90  # the server was away, for both; this one is the first to be answered
    grow_old(first, 90)
    second.presence.renew()
    assert owner_of(second) == "pod-a"
    clock.now += 2 * RENEWAL
    assert owner_of(second) == "", "unless it never comes back"


@pytest.mark.parametrize("days", [-400, -1, 30, 400])
def test_f60_the_clock_of_a_node_says_nothing(
    pod: Pods, clock: HandClock, days: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pod("pod-a")
    assert owner_of(first) == ""
    clock.now += days * 86400
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + days * 86400)
    second = pod("pod-b")
    assert owner_of(second) == "pod-a"
    grow_old(first, EXPIRY + 1)
    assert owner_of(second) == ""


def test_f60_a_renewal_of_the_future_blocks_nobody(pod: Pods) -> None:
    """A mount that lets nodes set times, and a node 30 days ahead that died."""
    first, second = pod("pod-a"), pod("pod-b")
    assert owner_of(first) == ""
    grow_old(first, -30 * 86400)
    assert owner_of(second) == ""


def test_f46_a_process_that_was_killed_here_holds_nothing(tmp_path: Path, clock: HandClock) -> None:
    program = (
        "import sys\nfrom nimpull.clock import SystemClock\nfrom nimpull.store.claims import Claims\n"
        "from nimpull.store.tree import Tree\n"
        f"with Claims(Tree({str(tmp_path)!r}), owner='pod-a', clock=SystemClock()) as claims:\n"
        f"    claims.take({UNIT!r})\n    print('claimed', flush=True)\n    sys.stdin.read()"
    )
    second = Claims(Tree(str(tmp_path)), owner="pod-b", clock=clock)
    second.presence.renew()
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout and other.stdout.readline()
        assert owner_of(second) == "pod-a"
        other.kill()
    assert owner_of(second) == ""


# -- what stands in the state directory is hostile input ------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[" * 4000,
        b"\xff\xfe",
        json.dumps({"token": "../../x", "owner": "x", "process": ""}).encode(),
        json.dumps({"token": "c" * 32, "owner": "x" * 9000, "process": f"{'9' * 5000}:1:2:3"}).encode(),
        json.dumps({"token": "c" * 32, "owner": ["x"], "process": f"b:1:{'9' * 3000}:3"}).encode(),
    ],
)
def test_f43_a_claim_that_nobody_wrote_ends_with_its_file(tmp_path: Path, pod: Pods, content: bytes) -> None:
    planted = tmp_path / CLAIMS / f"{UNIT}.7"
    planted.parent.mkdir(parents=True)
    planted.write_bytes(content)
    claims = pod("pod-a")
    old = time.time() - EXPIRY - 1
    os.utime(planted, (old, old))
    assert owner_of(claims) == ""
    assert not claims.lost((UNIT,))


def test_f43_names_that_are_no_claims_are_left_alone(tmp_path: Path, pod: Pods) -> None:
    directory = tmp_path / CLAIMS
    directory.mkdir(parents=True)
    for name in (f"{UNIT}.{'9' * 200}", f"{UNIT}.x", f"{UNIT}", "x.1", f"{UNIT}.²"):
        (directory / name).touch()
    assert owner_of(pod("pod-a")) == ""


@pytest.mark.parametrize("place", [".nimpull", RUNS, CLAIMS])
def test_f49_a_cleaner_costs_a_claim_and_no_more(tmp_path: Path, pod: Pods, place: str) -> None:
    first = pod("pod-a")
    assert owner_of(first) == ""
    subprocess.run(["rm", "-rf", str(tmp_path / place)], check=True)
    assert bool(first.lost((UNIT,))) == (place != RUNS)
    first.presence.renew()
    assert owner_of(first) == ""
    assert owner_of(pod("pod-b")) == "pod-a"


def test_f43_what_runs_left_long_ago_is_swept(tmp_path: Path, pod: Pods, clock: HandClock) -> None:
    dead, asleep = pod("dead"), pod("asleep")
    grow_old(dead, 90000)
    grow_old(asleep, 80000)
    with Claims(Tree(str(tmp_path)), owner="pod-b", clock=clock) as claims:
        left = set(os.listdir(tmp_path / RUNS))
        assert left == {asleep.presence.token, claims.presence.token}


# -- a volume that refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "error"), [(errno.ENOSPC, NoSpaceError), (errno.EIO, StoreIOError)])
def test_f30_an_error_names_the_store_and_not_the_file_of_a_claim(
    tmp_path: Path, pod: Pods, code: int, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = pod("pod-a")
    monkeypatch.setattr(os, "link", refuse(code))
    monkeypatch.setattr(os, "pwrite", refuse(code))
    with pytest.raises(error, match=f"cannot claim work in {tmp_path}/?:"):
        claims.take(UNIT)


def test_the_end_of_a_run_hides_no_failure(
    tmp_path: Path, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ZeroDivisionError), Claims(Tree(str(tmp_path)), owner="pod-a", clock=clock) as claims:
        claims.take(UNIT)
        monkeypatch.setattr(os, "unlink", refuse(errno.ENOSPC))
        raise ZeroDivisionError


def test_a_thread_that_cannot_be_started_is_a_limit_and_no_bug(
    tmp_path: Path, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", start)
    with pytest.raises(RuntimeError) as caught, Claims(Tree(str(tmp_path)), owner="pod-a", clock=clock):
        pass
    limit = LimitError.of(caught.value)
    assert limit is not None
    assert "pids.max" in limit.hint
    assert os.listdir(tmp_path / RUNS) == []
