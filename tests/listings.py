"""What the tests of sources share: sources over the real transport, and names never to be written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event as Flag

from nimpull.core.artifacts import Artifact, Listing
from nimpull.core.names import ModelUri, Url
from nimpull.core.ports import Wanted
from nimpull.sources import HubSource, NgcSource
from nimpull.transport import Transport, TransportPolicy
from tests.clocks import StepClock
from tests.registry import Registry

FILES = {
    "config.json": b"{}\n",
    "empty.txt": b"",
    "sub/with space & +plus.txt": b"odd name\n",
    "model.safetensors": bytes(range(256)) * 1000,
}
NAMES_NEVER_TO_WRITE = (
    "../up",
    "a/../../up",
    "//etc/passwd",
    "a\\b",
    "C:/x",
    "nul\0l",
    "new\nline",
    "bidi\u202egnp.exe",
    "\x1b[2Jscreen",
    ".nimpull/ready/x",
    "a//b",
    "a/./b",
    "x" * 256,
)


@contextmanager
def a_transport(clock: StepClock) -> Iterator[Transport]:
    """Proxy-free; the retry budget passes on ``clock``."""
    policy = TransportPolicy(retry_budget=20.0)
    with Transport(policy, clock=clock, cancel=Flag(), emit=lambda _event: None) as transport:
        yield transport


def ngc_source(
    transport: Transport, registry: Registry, clock: StepClock, key: str | None = None
) -> NgcSource:
    endpoint = Url(registry.ngc_url)
    key = registry.ngc.key if key is None else key
    return NgcSource(transport, api_endpoint=endpoint, auth_endpoint=endpoint, key=key, clock=clock)


def hub_source(
    transport: Transport, registry: Registry, clock: StepClock, token: str = "", base: str = ""
) -> HubSource:
    return HubSource(transport, endpoint=Url(base or registry.hub_url), token=token, clock=clock)


def listed(source: NgcSource | HubSource, uri: str, *paths: str) -> Listing:
    return source.list(ModelUri.parse(uri), Wanted(paths=frozenset(paths)))


def fetched(transport: Transport, source: NgcSource | HubSource, artifact: Artifact) -> bytes:
    """The file's bytes, as one range of the fetch would come."""
    with transport(source.locate(artifact), 0, None) as body:
        assert body.head.status == 200
        buffer = bytearray(1 << 20)
        return bytes(buffer[: body.readinto(memoryview(buffer))])
