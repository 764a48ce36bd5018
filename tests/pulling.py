"""What the tests of the fetch engine share: files on a scripted server, pulled over the real transport."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event as Flag
from urllib.parse import unquote

from nimpull.core.artifacts import Artifact, Location, Outcome
from nimpull.core.digest import Digest
from nimpull.core.events import Event
from nimpull.core.names import Url
from nimpull.core.ports import Connections, Emit, Ingests
from nimpull.fetch import Batch, Fetcher, FetchLimits
from nimpull.store.area import IngestArea
from nimpull.store.ingest import present_of
from nimpull.store.tree import Tree
from nimpull.transport import Network, TransportPolicy
from nimpull.transport.loop import Loop
from tests.clocks import StepClock
from tests.servers import Answer, Peer, ScriptedServer, Seen

MIB = 1 << 20


class PlainLayout:
    """A file at its path below ``root``; remembers the order of what it was told."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.etags: dict[str, str] = {}

    def place(self, artifact: Artifact, staged: str, *, digest: Digest, etag: str) -> tuple[str, ...]:
        target = self.root / artifact.path
        target.parent.mkdir(parents=True, exist_ok=True)
        (self.root / staged).rename(target)
        self.etags[artifact.path] = etag
        return str(target.parent.relative_to(self.root)).strip("."), str(Path(staged).parent)

    def placing(self) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass(slots=True)
class Pull:
    """One store and one server; ``run`` is a pull of a new process.

    ``expires_in``: seconds, by the clock here, that a location says it is good for; None = it does not say.
    """

    root: Path
    server: ScriptedServer
    clock: StepClock = field(default_factory=lambda: StepClock(jitter=0.0))
    events: list[Event] = field(default_factory=list)
    located: list[tuple[str, bool]] = field(default_factory=list)
    cancel: Flag = field(default_factory=Flag)
    policy: TransportPolicy = field(default_factory=TransportPolicy)
    expires_in: float | None = None
    emit: Emit = field(init=False)

    def __post_init__(self) -> None:
        self.emit = self.events.append

    def area(self) -> IngestArea:
        return IngestArea(Tree(str(self.root)), PlainLayout(self.root))

    def present(self, *artifacts: Artifact) -> int:
        """Bytes that journals speak of."""
        return present_of(Tree(str(self.root)), artifacts)

    def run(
        self,
        *artifacts: Artifact,
        limits: FetchLimits | None = None,
        connect: Callable[[], Connections] | None = None,
        ingests: Ingests | None = None,
    ) -> Sequence[Outcome]:
        network = Network(self.policy, self.clock)
        try:
            return Fetcher(
                self.locate,
                connect or (lambda: Loop(network)),
                ingests or self.area(),
                clock=self.clock,
                cancel=self.cancel,
                emit=self.emit,
                pauses=network.pauses,
                limits=limits or FetchLimits(),
            ).run(Batch(artifacts))
        finally:
            self.cancel = Flag()  # a run that failed set it

    def locate(self, artifact: Artifact, fresh: bool) -> Location:
        self.located.append((artifact.path, fresh))
        query = f"?signed={len(self.located)}"
        ends = None if self.expires_in is None else self.clock.time() + self.expires_in
        return Location(Url(str(self.server.url(f"/{artifact.path}")) + query), expires_at=ends)

    def committed(self, *artifacts: Artifact) -> dict[str, bytes]:
        return {each.path: (self.root / each.path).read_bytes() for each in artifacts}

    def leftovers(self) -> list[str]:
        """Names in the ingest area."""
        area = self.root / ".nimpull" / "ingest"
        return sorted(each.name for each in area.iterdir()) if area.exists() else []


@contextmanager
def pulling(root: Path, answer: Answer) -> Iterator[Pull]:
    with ScriptedServer(answer) as server:
        yield Pull(root, server)


def serve(files: Mapping[str, bytes]) -> Answer:
    """A good server of ``files``, with ranges and strong ETags."""

    def answer(seen: Seen, peer: Peer) -> None:
        content = files.get(name_of(seen))
        if content is None:
            peer.reply(404, b"gone")
        else:
            peer.file(seen, content)

    return answer


def partly(content: bytes, count: int, then: Answer) -> Answer:
    """A good server of ``content``, but of each answer only ``count`` bytes come, then ``then``."""

    def answer(seen: Seen, peer: Peer) -> None:
        start, end = seen.span or (0, len(content))
        part = content[start:end]
        headers = {"Content-Length": str(len(part)), "ETag": '"v1"'}
        if seen.span:
            headers["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
        peer.head(206 if seen.span else 200, headers)
        peer.send(part[:count])
        then(seen, peer)

    return answer


def hang_up(seen: Seen, peer: Peer) -> None:
    peer.close()


def reset(seen: Seen, peer: Peer) -> None:
    peer.reset()


def name_of(seen: Seen) -> str:
    return unquote(seen.target.partition("?")[0]).lstrip("/")


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)
