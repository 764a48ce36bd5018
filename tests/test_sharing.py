"""Many pods, one volume, at the level of the store: schedules of starts, kills, sleep and clocks."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nimpull.core import work
from nimpull.core.artifacts import Action, Artifact, Outcome
from nimpull.core.digest import new_hasher
from nimpull.core.events import Event, Note
from nimpull.core.names import ModelUri
from nimpull.core.ports import Cancel, Verified
from nimpull.core.ranges import Checkpoint
from nimpull.core.work import from_place, units_of
from nimpull.errors import Cancelled, LeaseHeldError
from nimpull.store import presence, sharing
from nimpull.store.area import IngestArea
from nimpull.store.claims import CLAIMS, Claims
from nimpull.store.ingest import FileIngest
from nimpull.store.presence import EXPIRY, RENEWAL, RUNS, Presence
from nimpull.store.sharing import SharedWork
from nimpull.store.tree import INGESTS, Tree
from tests.committing import artifact, digest_of
from tests.pulling import PlainLayout, noise

CHUNK = 1 << 12
LARGEST = 6 * CHUNK
SMALLEST_LARGE = 2 * CHUNK


def model(name: str, large: int, small: int) -> dict[Artifact, bytes]:
    uri = ModelUri.parse(f"hf://acme/{name}:{'a' * 40}")
    sizes = {f"{name}/large-{n}": SMALLEST_LARGE + n * CHUNK // 2 for n in range(large)}
    sizes |= {f"{name}/small-{n}": 100 + n for n in range(small)}
    contents = {path: noise(size, seed) for seed, (path, size) in enumerate(sizes.items())}
    return {artifact(path, content, uri): content for path, content in contents.items()}


@pytest.fixture(autouse=True)
def small_files_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "LARGE", SMALLEST_LARGE)
    monkeypatch.setattr(work, "BUNDLES", 3)


# -- how work is cut ------------------------------------------------------------------------------------


def test_every_pod_cuts_alike_whatever_else_it_wants() -> None:
    wanted = tuple(model("tiny", 6, 40))
    names = {each.identity: unit.name for unit in units_of(wanted) for each in unit.artifacts}
    assert len(names) == len(wanted)
    shuffled = random.Random(1).sample(wanted, 20)
    for unit in units_of(shuffled):
        assert {names[each.identity] for each in unit.artifacts} == {unit.name}


def test_a_large_file_is_a_unit_and_small_ones_come_in_bundles() -> None:
    units = units_of(model("tiny", 6, 40))
    assert [len(unit.artifacts) for unit in units if unit.size >= SMALLEST_LARGE] == [1] * 6
    assert sum(unit.size < SMALLEST_LARGE for unit in units) == 3
    assert [unit.size for unit in units] == sorted((unit.size for unit in units), reverse=True)


def test_a_file_of_unknown_size_is_a_unit() -> None:
    one = artifact("x", b"x")
    unknown = Artifact(one.path, None, one.digests, one.uri)
    assert len(units_of([unknown, artifact("y", b"y"), artifact("z", b"z")])) >= 2
    assert units_of([unknown])[0].size == 0


def test_two_models_share_no_unit() -> None:
    one, other = units_of(model("one", 4, 20)), units_of(model("other", 4, 20))
    assert not {unit.name for unit in one} & {unit.name for unit in other}


def test_pods_begin_apart() -> None:
    units = units_of(model("tiny", 64, 0))
    starts = {from_place(units, "pod", index)[0].name for index in range(16)}
    assert len(starts) == 16
    assert sorted(unit.name for unit in from_place(units, "pod", 5)) == sorted(unit.name for unit in units)
    assert from_place((), "pod", 3) == ()
    assert from_place(units, "pod-x", None) == from_place(units, "pod-x", None)
    assert len({from_place(units, f"pod-{n}", None)[0].name for n in range(16)}) > 8


# -- a cluster, step by step ----------------------------------------------------------------------------


class Blocked(Exception):
    """A pod would wait."""


@dataclass(slots=True)
class World:
    """One volume with a clock of its own, a registry that counts, and pods that do one step at a time."""

    root: Path
    contents: dict[Artifact, bytes]
    now: float = 1_000_000.0
    served: int = 0
    pods: list[Pod] = field(default_factory=list)

    def pod(self, wanted: Sequence[Artifact], days: float = 0.0) -> Pod:
        made = Pod(self, len(self.pods), tuple(wanted), days * 86400)
        self.pods.append(made)
        return made

    def pass_time(self, seconds: float) -> None:
        """Who is awake renews in time."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + RENEWAL)
            for pod in self.pods:
                if pod.awake:
                    pod.claims.presence.renew()

    def wrong_files(self) -> list[str]:
        return [
            each.path
            for each, content in self.contents.items()
            if (self.root / each.path).exists() and (self.root / each.path).read_bytes() != content
        ]


class Pod:
    """What a run does, cut into steps. Its bytes may come damaged, which it notices by its hash alone."""

    def __init__(self, world: World, number: int, wanted: tuple[Artifact, ...], ahead: float) -> None:
        self.world, self.wanted, self._ahead = world, wanted, ahead
        self.awake, self.done, self.alive = True, False, True
        self.garbles = False
        self.events: list[Event] = []
        self._queue: list[Artifact] = []
        self._current: tuple[Artifact, FileIngest, int, list[bytes]] | None = None
        tree = Tree(str(world.root))
        self.claims = Claims(tree, owner=f"pod-{number}", clock=self)
        self.claims.presence.content = self.claims.presence.content.replace(
            presence.this_process().encode(), f"boot-{number}:1:1:1".encode()
        )
        self.claims.presence.renew()
        self._known = self._standing()
        self.work = SharedWork(
            [each for each in wanted if each.identity not in self._known],
            self.claims,
            self.look,
            self.news,
            pod=f"pod-{number}",
            index=number,
            clock=self,
            cancel=threading.Event(),
            emit=self.events.append,
            patience=600.0,
        )
        self.area = IngestArea(tree, PlainLayout(world.root), fence=self.work)

    def _standing(self) -> set[str]:
        return {each.identity for each in self.wanted if (self.world.root / each.path).exists()}

    def news(self) -> set[str]:
        """As the record tells them."""
        found = self._standing() - self._known
        self._known |= found
        return found

    def monotonic(self) -> float:
        return self.world.now + 77.0

    def time(self) -> float:
        return self.world.now + self._ahead

    def wait(self, seconds: float, until: Cancel) -> bool:
        raise Blocked

    def jitter(self) -> float:
        return 0.0

    def look(self, one: Artifact) -> Outcome | None:
        path = self.world.root / one.path
        if not path.exists():
            return None
        return Outcome(one, Action.SKIPPED, 0, 0, 0.0, "sha256", path.stat().st_size, one.digest)

    def step(self) -> None:
        if not (self.alive and self.awake) or self.done:
            return
        if self._current:
            self._go_on(*self._current)
        elif self._queue:
            self._begin(self._queue.pop())
        else:
            try:
                self._queue = list(self.work.take())
            except Blocked:
                return
            if not self._queue and not self.work.unfinished:
                self.finish()

    def _begin(self, one: Artifact) -> None:
        if (one.size or 0) < SMALLEST_LARGE:
            self.world.served += one.size or 0
            content = self.world.contents[one]
            ingest = self.area.stage(one, memoryview(content))
            self._commit(Verified(ingest, len(content), digest_of(content)))
            return
        large = self.area.open(one)
        if not large.checkpoints:
            large.begin(one.size or 0, "")
        position = 0
        blocks: list[bytes] = []
        for claim in large.checkpoints:  # what an earlier run left counts once it reads back right
            block = bytearray(claim.end - claim.start)
            large.read(memoryview(block), claim.start)
            if claim.start != position or digest_of(bytes(block), "blake3").hex != claim.digest.hex():
                break
            position, blocks = claim.end, [*blocks, bytes(block)]
        self._current = (one, large, position, blocks)

    def _go_on(self, one: Artifact, ingest: FileIngest, position: int, blocks: list[bytes]) -> None:
        content = self.world.contents[one]
        if position == len(content):
            hasher = new_hasher("sha256", len(content))
            for block in blocks:
                hasher.update(block)
            self._current = None
            if hasher.hexdigest() != digest_of(content).hex:
                ingest.reset()
                ingest.close()
                self._queue.append(one)
            else:
                self._commit(Verified(ingest, len(content), digest_of(content)))
            return
        block = content[position : position + CHUNK]
        self.world.served += len(block)
        if self.garbles:
            block, self.garbles = bytes(len(block)), False
        ingest.write(memoryview(block), position)
        digest = bytes.fromhex(digest_of(block, "blake3").hex)
        ingest.record(Checkpoint(position, position + len(block), digest))
        self._current = (one, ingest, position + len(block), [*blocks, block])

    def _commit(self, verified: Verified) -> None:
        self.area.commit([verified])

    def finish(self) -> None:
        assert {each.artifact for each in self.work.elsewhere} <= set(self.wanted)
        for each in self.wanted:
            assert (self.world.root / each.path).read_bytes() == self.world.contents[each], each.path
        self.area.sweep(self.wanted)
        self.leave()
        self.done = True

    def leave(self) -> None:
        self.area.close()
        self.claims.__exit__()
        self.awake = self.alive = False

    def kill(self) -> None:
        """Its descriptors close; nothing is dropped."""
        if self._current:
            self._current[1].close()
        self.area.close()
        self.awake = self.alive = False


@pytest.fixture
def world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[dict[Artifact, bytes]], World]]:
    made: list[World] = []
    real = Presence._touch

    def touch(self: Presence) -> float:
        real(self)
        now = made[-1].now
        os.utime(made[-1].root / self.path, (now, now))
        return now

    monkeypatch.setattr(Presence, "_touch", touch)
    monkeypatch.setattr(Presence, "sweep", lambda self: None)  # by times that are not of this world

    def make(contents: dict[Artifact, bytes]) -> World:
        root = tmp_path / f"world-{len(made)}"
        root.mkdir()
        made.append(World(root, contents))
        return made[-1]

    yield make
    for each in made:
        for pod in each.pods:
            if pod.alive:
                pod.kill()


def run_to_the_end(world: World) -> None:
    for _ in range(20_000):
        going = [pod for pod in world.pods if pod.alive]
        if not going:
            return
        for pod in going:
            pod.awake = True
            pod.step()
        world.pass_time(1.0)
    raise AssertionError("pods hang: " + ", ".join(pod.claims.presence.token for pod in going))


def left_behind(world: World) -> list[str]:
    return [
        str(path.relative_to(world.root))
        for place in (CLAIMS, INGESTS)
        for path in (world.root / place).glob("*")
        if not path.name.startswith(".")
    ]


@pytest.mark.parametrize("pods", [1, 2, 5])
def test_f46_pods_share_a_model_and_fetch_each_file_once(
    world: Callable[[dict[Artifact, bytes]], World], pods: int
) -> None:
    here = world(model("tiny", 9, 30))
    for _ in range(pods):
        here.pod(list(here.contents))
    run_to_the_end(here)
    assert here.wrong_files() == []
    assert here.served == sum(map(len, here.contents.values()))
    brought = [len(here.contents) - len(pod.work.elsewhere) for pod in here.pods]
    assert min(brought) > 0, "nobody only waits"
    assert left_behind(here) == []


def test_f46_overlapping_sets_are_fetched_once(world: Callable[[dict[Artifact, bytes]], World]) -> None:
    here = world(model("tiny", 9, 30))
    wanted = list(here.contents)
    for those in (wanted[:25], wanted[10:], wanted[::2]):
        here.pod(those)
    run_to_the_end(here)
    assert here.wrong_files() == []
    assert here.served == sum(len(here.contents[each]) for each in {*wanted[:25], *wanted[10:], *wanted[::2]})


def test_f61_a_model_does_not_wait_for_another(world: Callable[[dict[Artifact, bytes]], World]) -> None:
    one, other = model("one", 3, 5), model("other", 3, 5)
    here = world(one | other)
    slow, quick = here.pod(list(one)), here.pod(list(other))
    slow.step()
    for _ in range(200):
        quick.step()
    assert quick.done
    assert not any("waiting" in note.text for note in quick.events if isinstance(note, Note))
    run_to_the_end(here)


def test_who_waits_says_for_whom_and_for_what(world: Callable[[dict[Artifact, bytes]], World]) -> None:
    here = world(model("tiny", 1, 0))
    first, second = here.pod(list(here.contents)), here.pod(list(here.contents))
    first.step()
    for _ in range(90):
        second.step()
        here.pass_time(1.0)
    notes = [event.text for event in second.events if isinstance(event, Note)]
    assert notes == ["waiting for pod-0: 1 file, 8.0 KiB (tiny/large-0)"] * 2, "and again after a minute"
    run_to_the_end(here)


def test_waiting_is_no_failure_while_another_lives(world: Callable[[dict[Artifact, bytes]], World]) -> None:
    here = world(model("tiny", 1, 0))
    first, second = here.pod(list(here.contents)), here.pod(list(here.contents))
    first.step()
    for _ in range(2000):  # more than half an hour; its patience is ten minutes
        second.step()
        here.pass_time(1.0)
    assert second.alive
    run_to_the_end(here)


def test_beside_others_a_pod_claims_no_more_than_keeps_its_link_busy(
    world: Callable[[dict[Artifact, bytes]], World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "LARGE", SMALLEST_LARGE)
    here = world(model("tiny", 6, 0))
    first = here.pod(list(here.contents))
    assert all(first.work.take() for _ in range(3)), "alone it may have all"
    second, third = here.pod(list(here.contents)), here.pod(list(here.contents))
    here.pass_time(EXPIRY)
    for pod in (second, third, first):
        held = 3 if pod is first else 0
        with pytest.raises(Blocked):
            while pod.work.take():
                held += 1
        assert held == (3 if pod is first else min(2, 6 - 3 - (2 if pod is third else 0)))


def test_what_the_registry_does_not_have_is_waited_for_by_nobody(
    world: Callable[[dict[Artifact, bytes]], World],
) -> None:
    here = world(model("tiny", 2, 5))
    pods = [here.pod(list(here.contents)), here.pod(list(here.contents))]
    asked: dict[int, set[str]] = {0: set(), 1: set()}
    ended = set()
    for _ in range(200):
        for number, pod in enumerate(pods):
            try:
                taken = pod.work.take()
            except Blocked:
                continue
            asked[number] |= {each.path for each in taken}
            for each in taken:
                pod.work.give_up(each)
            if not taken:
                ended.add(number)
        here.pass_time(1.0)
    assert ended == {0, 1}
    assert asked[0] == asked[1] == {each.path for each in here.contents}
    assert not any(pod.work.unfinished for pod in pods)


def test_waiting_ends_by_a_signal(world: Callable[[dict[Artifact, bytes]], World]) -> None:
    here = world(model("tiny", 1, 0))
    here.pod(list(here.contents)).step()
    second = here.pod(list(here.contents))
    second.work._cancel.set()
    with pytest.raises(Cancelled):
        second.work.take()


def test_a_claim_that_neither_expires_nor_moves_ends_the_patience(
    world: Callable[[dict[Artifact, bytes]], World], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = world(model("tiny", 1, 0))
    first, second = here.pod(list(here.contents)), here.pod(list(here.contents))
    first.step()
    monkeypatch.setattr(Presence, "trusts_ages", lambda self: False)
    first.awake = False
    here.pass_time(60.0)

    def wait(seconds: float, until: Cancel) -> bool:
        here.pass_time(seconds)
        return False

    monkeypatch.setattr(second, "wait", wait)
    with pytest.raises(LeaseHeldError, match="nothing has come for 600 s from pod-0: 1 file"):
        second.work.take()


def test_f62_a_killed_pod_costs_no_more_than_what_was_under_way(
    world: Callable[[dict[Artifact, bytes]], World],
) -> None:
    here = world(model("tiny", 6, 4))
    for _ in range(4):
        here.pod(list(here.contents))
    for _ in range(4):
        for pod in here.pods:
            pod.step()
    for pod in here.pods[:2]:
        pod.kill()
    started = here.now
    run_to_the_end(here)
    assert here.wrong_files() == []
    assert all(pod.done for pod in here.pods[2:])
    assert here.served <= sum(map(len, here.contents.values())) + 2 * CHUNK
    assert here.now - started < 2 * EXPIRY + 60


def test_f48_what_a_sleeper_writes_when_it_wakes_is_in_no_file(
    world: Callable[[dict[Artifact, bytes]], World],
) -> None:
    """It has the descriptor of its ingest, and bytes under way that may be wrong."""
    here = world(model("tiny", 1, 0))
    sleeper, taker = here.pod(list(here.contents)), here.pod(list(here.contents))
    for _ in range(3):
        sleeper.step()
    sleeper.awake = False
    here.pass_time(EXPIRY + 1)
    for _ in range(3):
        taker.step()
    sleeper.awake = sleeper.garbles = True
    sleeper.step()  # over what the taker has read already
    while not taker.done:
        taker.step()
        here.pass_time(0.1)
    assert here.wrong_files() == []
    run_to_the_end(here)
    assert here.wrong_files() == []
    assert sleeper.done, "it goes on: what the other brought is here"


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["step"] * 6 + ["kill", "sleep", "wake", "garble", "time", "start"]),
        st.integers(0, 4),
        st.integers(1, 40),
    ),
    min_size=20,
    max_size=120,
)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(STEPS, st.integers(2, 5), st.integers(0, 1 << 30))
def test_f62_random_schedules(
    world: Callable[[dict[Artifact, bytes]], World],
    steps: list[tuple[str, int, int]],
    pods: int,
    seed: int,
) -> None:
    """Two models; pods that are killed, sleep and wake, start late, and have clocks that are days off."""
    one, other = model("one", 3, 6), model("other", 2, 3)
    here, dice = world(one | other), random.Random(seed)
    kills = sleeps = 0
    for number in range(pods):
        here.pod(list((one, other)[number % 2]), dice.choice((-400, -1, 0, 0, 30)))
    for action, which, amount in steps:
        pod = here.pods[which % len(here.pods)]
        if action == "step":
            for _ in range(amount % 8 + 1):
                pod.step()
        elif action == "kill" and pod.alive and sum(each.alive for each in here.pods) > 1:
            pod.kill()
            kills += 1
        elif action == "sleep" and pod.alive:
            pod.awake = False
            sleeps += 1
        elif action == "wake" and pod.alive:
            pod.awake = True
        elif action == "garble":
            pod.garbles = True
            sleeps += 1
        elif action == "time":
            here.pass_time(amount)
        elif action == "start" and len(here.pods) < 7:
            here.pod(list(dice.choice((one, other, one | other))))
        assert here.wrong_files() == []
    here.pod(list(one | other))
    run_to_the_end(here)
    assert here.wrong_files() == []
    assert set(here.contents) == {each for each in here.contents if (here.root / each.path).exists()}
    whole = sum(map(len, here.contents.values()))
    bundle = sum(len(content) for content in here.contents.values() if len(content) < SMALLEST_LARGE)
    assert here.served <= whole + kills * (CHUNK + bundle) + sleeps * (LARGEST + bundle)
    assert left_behind(here) == []
    assert all(
        (here.root / RUNS / pod.claims.presence.token).exists() is False for pod in here.pods if pod.done
    )
