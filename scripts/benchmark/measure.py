"""Runs a case: every downloader in turn, round after round."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from scripts.benchmark.cases import Case, Kind
from scripts.benchmark.content import Repository, difference, make_repository, occupied
from scripts.benchmark.peers import NIMPULL, Peer, Work, hash_command
from scripts.benchmark.server import Endpoint, Link, Server, Servers
from scripts.benchmark.session import Failed, Sample, Session

_OWN = ("engine", "nimpull")  # where these fail, the benchmark fails


@dataclass(frozen=True, slots=True)
class Row:
    """``samples``: one a round. ``figures``: what else was counted in each round, by its heading."""

    peer: Peer
    link: Link | None = None
    samples: list[Sample] = field(default_factory=list)
    figures: dict[str, list[float]] = field(default_factory=dict)

    def add(self, sample: Sample, **figures: float) -> None:
        self.samples.append(sample)
        for name, value in figures.items():
            self.figures.setdefault(name, []).append(value)

    @property
    def label(self) -> str:
        return f"{self.peer.name}, {self.link}" if self.link else self.peer.name


@dataclass(frozen=True, slots=True)
class Result:
    """``notes``: who was left out, and why."""

    case: Case
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    def row(self, key: str, link: Link | None = None) -> Row | None:
        found = (row for row in self.rows if row.peer.key == key and (link is None or row.link == link))
        return next(found, None)


class Bench:
    """``source``: where files are served from, ``target``: where they are downloaded to."""

    def __init__(self, session: Session, nginx: str, source: Path | None, target: Path) -> None:
        self._session = session
        self._kept = session.folder(target)
        self.servers = Servers(session, nginx, session.folder(target))
        self._source = source.resolve() if source else None
        self._www: Path | None = None
        self._repository: Repository | None = None
        self._made_for: tuple[tuple[int, ...], bool] | None = None

    # -- content ---------------------------------------------------------------------------------------

    def repository(self, sizes: tuple[int, ...], *, sparse: bool = False) -> Repository:
        """The files, made anew only where the case before had others."""
        if self._repository and self._made_for == (sizes, sparse):
            return self._repository
        if self._www:
            self._session.remove(self._www)
        for name in ("target", "home"):  # of the case before: its room is needed now
            shutil.rmtree(self._kept / name, ignore_errors=True)
        needed = len(sizes) * 8192 + (sum(sizes) if not sparse else sum(sizes) >> 7)
        self._check_space(sum(sizes))
        self._www = self._session.folder(self._source or self._choose_source(needed))
        say(f"making {len(sizes)} files of {sum(sizes) >> 20:,} MiB in {self._www}")
        self._repository = make_repository(self._www, sizes, sparse=sparse)
        self._made_for = (sizes, sparse)
        return self._repository

    def _choose_source(self, needed: int) -> Path:
        """Memory, if half of what is free of it is enough: then the disk has only the downloads to bear."""
        memory = Path("/dev/shm")
        if memory.is_dir() and needed < min(shutil.disk_usage(memory).free, available_memory()) // 2:
            return memory
        return self._kept

    def _check_space(self, needed: int) -> None:
        free = shutil.disk_usage(self._kept).free
        if free < needed * 5 // 4:
            raise Failed(
                f"{self._kept.parent} has {free >> 20:,} MiB free and the downloads take {needed >> 20:,}: "
                "name another place with --target, or make the work smaller with --unit and --files"
            )

    def work(self, repository: Repository, endpoint: Endpoint) -> Work:
        target, home, scratch = (self._kept / name for name in ("target", "home", "scratch"))
        for folder in (target, home, scratch):
            folder.mkdir(exist_ok=True)
        return Work(repository, endpoint, target, home, scratch)

    def empty(self, work: Work) -> None:
        """What the run before left must not cost the next: its files go, and the disk comes to rest."""
        for folder in (work.target, work.home):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        os.sync()

    # -- cases -----------------------------------------------------------------------------------------

    def run(self, case: Case, peers: tuple[Peer, ...], rounds: int) -> Result:
        if case.links and not self.servers.compiler:
            return Result(case, (), ("skipped: the slow link is compiled with cc, which is not in PATH",))
        repository = self.repository(case.files)
        measure = {
            Kind.DOWNLOAD: self._download,
            Kind.RESUME: self._resume,
            Kind.WARM: self._warm,
            Kind.VERIFY: self._verify,
        }[case.kind]
        return measure(case, repository, peers, rounds)

    def _download(self, case: Case, repository: Repository, peers: tuple[Peer, ...], rounds: int) -> Result:
        with ExitStack() as stack:
            server = stack.enter_context(self.servers.serve(repository, tls=case.tls))
            ways: list[tuple[Link | None, Endpoint]] = [(None, server.endpoint)]
            if case.links:
                ways = [
                    (link, stack.enter_context(self.servers.through(link, server.endpoint)))
                    for link in case.links
                ]
            runs = [
                (
                    Row(peer, link if len(ways) > 1 else None),
                    self.downloading(peer, self.work(repository, way)),
                )
                for peer in peers
                for link, way in ways
            ]
            return in_rounds(case, runs, rounds)

    def downloading(self, peer: Peer, work: Work) -> Callable[[Row, int], None]:
        def run(row: Row, turn: int) -> None:
            self.empty(work)
            row.add(self._session.measure(peer.command(work), work.environment()))
            if turn == 0:
                self.check(work)

        return run

    def check(self, work: Work) -> None:
        wrong = difference(work.repository, work.target)
        if wrong:
            raise Failed(wrong)

    def _resume(self, case: Case, repository: Repository, peers: tuple[Peer, ...], rounds: int) -> Result:
        runs = [(Row(peer), self._resuming(peer, case, repository)) for peer in peers]
        return in_rounds(case, runs, rounds)

    def _resuming(self, peer: Peer, case: Case, repository: Repository) -> Callable[[Row, int], None]:
        def run(row: Row, turn: int) -> None:
            del turn
            with self.servers.serve(repository) as server:
                work = self.work(repository, server.endpoint)
                self.empty(work)
                kept = self._killed(peer, work)
            with self.servers.serve(repository, log=True) as server:
                work = replace(self.work(repository, server.endpoint), resume=True)
                sample = self._session.measure(peer.command(work), work.environment())
            self.check(work)
            row.add(sample, kept=kept / case.size, fetched=server.sent / case.size)

        return run

    def _killed(self, peer: Peer, work: Work) -> int:
        """Bytes on the disk of a run that was killed as soon as half of them were there."""
        for _ in range(5):
            child = self._session.launch(peer.command(work), work.environment())
            try:
                while child.poll() is None and occupied(work.target) < work.repository.size // 2:
                    time.sleep(0.002)
                ended = child.poll() is not None
            finally:
                self._session.end(child)
            if not ended:
                return occupied(work.target)
            self.empty(work)
        raise Failed("it ended before it could be killed")

    def _warm(self, case: Case, repository: Repository, peers: tuple[Peer, ...], rounds: int) -> Result:
        with ExitStack() as stack:
            server = stack.enter_context(self.servers.serve(repository, log=True))
            runs = []
            for peer in peers:
                work = self.work(repository, server.endpoint)
                own = replace(work, target=work.target / peer.key, home=work.home / peer.key)
                runs.append((Row(peer), self._rerunning(peer, own, server)))
            self.empty(work)
            return in_rounds(case, runs, rounds)

    def _rerunning(self, peer: Peer, work: Work, server: Server) -> Callable[[Row, int], None]:
        def run(row: Row, turn: int) -> None:
            if turn == 0:
                work.target.mkdir()
                work.home.mkdir()
                self._session.measure(peer.command(work), work.environment())
                self.check(work)
            before = server.requests
            sample = self._session.measure(peer.command(work), work.environment())
            row.add(sample, requests=server.requests - before)

        return run

    def _verify(self, case: Case, repository: Repository, peers: tuple[Peer, ...], rounds: int) -> Result:
        openssl = shutil.which("openssl")
        with self.servers.serve(repository) as server:
            work = self.work(repository, server.endpoint)
            self.empty(work)
            self._session.measure(NIMPULL.command(work), work.environment())
        self.check(work)
        commands: dict[Peer, list[str]] = {}
        if NIMPULL in peers:
            verify = [NIMPULL.program, "-m", "nimpull", "verify", "--store", str(work.target)]
            commands[replace(NIMPULL, name="nimpull verify")] = verify
        if openssl:
            commands[replace(NIMPULL, key="openssl", name="openssl dgst")] = hash_command(openssl, work)
        runs = [(Row(peer), self._hashing(command, work)) for peer, command in commands.items()]
        return in_rounds(case, runs, rounds)

    def _hashing(self, command: list[str], work: Work) -> Callable[[Row, int], None]:
        def run(row: Row, turn: int) -> None:
            del turn
            forget(work.target)
            row.add(self._session.measure(command, work.environment()))

        return run

    # -- before ----------------------------------------------------------------------------------------

    def able(self, peers: tuple[Peer, ...]) -> Iterator[Peer]:
        """Those that download a small repository here: the others are told, and left out."""
        repository = self.repository((3 << 20, 5000, 6000))
        with self.servers.serve(repository) as server:
            work = self.work(repository, server.endpoint)
            for peer in peers:
                self.empty(work)
                try:
                    self._session.measure(peer.command(work), work.environment())
                    self.check(work)
                except Failed as error:
                    if peer.key in _OWN:
                        raise
                    say(f"{peer.name}: left out, it does not work here: {error}")
                else:
                    yield peer


def in_rounds(case: Case, runs: list[tuple[Row, Callable[[Row, int], None]]], rounds: int) -> Result:
    """Each run once a round. Who fails is left out from then on, but for nimpull: that raises Failed."""
    notes = []
    for turn in range(rounds):
        for row, run in tuple(runs):
            try:
                run(row, turn)
            except Failed as error:
                if row.peer.key in _OWN:
                    raise Failed(f"{case.name}: {row.label}: {error}") from error
                notes.append(f"{row.label} is left out: {error}")
                say(f"{case.name}: {notes[-1]}")
                runs.remove((row, run))
                continue
            sample = row.samples[-1]
            more = "".join(f", {name} {values[-1]:.2f}" for name, values in row.figures.items())
            say(
                f"{case.name} {turn + 1}/{rounds}: {row.label}: {sample.wall:.2f} s, CPU {sample.cpu:.2f} s, "
                f"RSS {sample.rss >> 20} MiB{more}"
            )
    return Result(case, tuple(row for row, _ in runs), tuple(notes))


def forget(target: Path) -> None:
    """Drop the files' pages from the page cache: they are written first, only clean pages can go."""
    os.sync()
    for folder, _, names in os.walk(target):
        for name in names:
            descriptor = os.open(os.path.join(folder, name), os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def available_memory() -> int:
    """Bytes that can be had without swapping (proc(5), MemAvailable)."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
