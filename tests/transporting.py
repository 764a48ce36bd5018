"""What the tests of the transport share: one with its clock and its events, and answers to script."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from threading import Event

from nimpull.clock import SystemClock
from nimpull.core.artifacts import Location
from nimpull.core.ports import Clock
from nimpull.core.reply import Head
from nimpull.transport import HttpApi, Network, TransportPolicy
from nimpull.transport.loop import Loop
from tests.clocks import StepClock
from tests.servers import Peer, Seen

CANARY = "canary-7f3a"
CONTENT = os.urandom(3 * (1 << 20) + 12345)


class Rig:
    """A Transport with its clock, cancel event and told events."""

    def __init__(self, policy: TransportPolicy, clock: StepClock) -> None:
        self.clock = clock
        self.cancel = Event()
        self.told: list[object] = []
        network = Network(policy, clock)
        self.network = network
        self.api = HttpApi(network, clock=clock, cancel=self.cancel, emit=self.told.append)

    def close(self) -> None:
        self.api.close()


class Whole:
    """Implements :class:`nimpull.core.ports.Receiver`: keeps all that comes."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.done = False
        self.error: BaseException | None = None
        self._head: Head | None = None

    @property
    def status(self) -> int:
        assert self._head is not None
        return self._head.status

    @property
    def headers(self) -> Mapping[str, str]:
        assert self._head is not None
        return self._head.headers

    @property
    def content(self) -> bytes:
        return bytes(self.received)

    def head(self, head: Head) -> bool:
        self._head = head
        return True

    def data(self, octets: bytes) -> int | None:
        self.received += octets
        return None

    def ended(self, error: BaseException | None) -> None:
        self.done, self.error = True, error


def get(
    by: Network | Loop,
    location: Location,
    start: int = 0,
    end: int | None = None,
    *,
    clock: Clock | None = None,
    fresh: bool = False,
) -> Whole:
    """One attempt; raises what it ends with. Over the loop's connections, or new ones."""
    loop, clock = by if isinstance(by, Loop) else Loop(by), clock or SystemClock()
    whole = Whole()
    loop.ask(location, start, end, whole, fresh=fresh)
    looked = time.monotonic()
    while not whole.done:
        loop.turn(0.05)
        if time.monotonic() - looked > 0.05:  # not at each byte: a look may move the clock
            looked = time.monotonic()
            loop.check(clock.monotonic())
    if loop is not by:
        loop.close()
    if whole.error is not None:
        raise whole.error
    return whole


def ok(seen: Seen, peer: Peer) -> None:
    peer.reply(200, b"{}")


def status(code: int, **headers: str) -> Callable[[Seen, Peer], None]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda seen, peer: peer.reply(code, b"", named)


def redirect(to: str, code: int = 302) -> Callable[[Seen, Peer], None]:
    return lambda seen, peer: peer.reply(code, b"moved", {"Location": to})


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
