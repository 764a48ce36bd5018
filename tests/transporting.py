"""What the tests of the transport share: one with its clock and its events, and answers to script."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from threading import Event

from nimpull.core.artifacts import Location
from nimpull.core.ports import Body
from nimpull.transport import HttpApi, Network, Transport, TransportPolicy
from tests.clocks import StepClock
from tests.servers import Peer, ScriptedServer, Seen

CANARY = "canary-7f3a"
CONTENT = os.urandom(3 * (1 << 20) + 12345)


class Rig:
    """A Transport with its clock, cancel event and told events."""

    def __init__(self, policy: TransportPolicy, clock: StepClock) -> None:
        self.clock = clock
        self.cancel = Event()
        self.told: list[object] = []
        network = Network(policy, clock)
        self.transport = Transport(
            policy, clock=clock, cancel=self.cancel, emit=self.told.append, network=network
        )
        self.api = HttpApi(network, clock=clock, cancel=self.cancel, emit=self.told.append)

    def close(self) -> None:
        self.transport.close()
        self.api.close()


def read_all(body: Body, block: int = 1 << 20) -> bytes:
    buffer = memoryview(bytearray(block))
    received = bytearray()
    while count := body.readinto(buffer):
        received += buffer[:count]
    return bytes(received)


def fetch(transport: Transport, server: ScriptedServer) -> bytes:
    with transport(Location(server.url()), 0, None) as body:
        return read_all(body)


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
