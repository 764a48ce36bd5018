"""What the tests of sources share: sources over real registry answers, and names never to be written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from threading import Event as Flag

import requests

from nimpull.core.artifacts import Artifact, Listing, Location, Wanted
from nimpull.core.names import ModelUri, Url
from nimpull.core.ports import Source
from nimpull.sources.huggingface import HubSource
from nimpull.sources.ngc import NgcSource
from nimpull.transport import HttpApi, Network, TransportPolicy
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
def an_api(clock: StepClock) -> Iterator[HttpApi]:
    """Proxy-free; the retry budget passes on ``clock``."""
    policy = TransportPolicy(retry_budget=20.0)
    api = HttpApi(Network(policy, clock), clock=clock, cancel=Flag(), emit=lambda _event: None)
    with closing(api):
        yield api


def ngc_source(api: HttpApi, registry: Registry, clock: StepClock, key: str | None = None) -> NgcSource:
    endpoint = Url(registry.ngc_url)
    key = registry.ngc.key if key is None else key
    return NgcSource(api, api_endpoint=endpoint, auth_endpoint=endpoint, key=key, clock=clock)


def hub_source(
    api: HttpApi, registry: Registry, clock: StepClock, token: str = "", base: str = ""
) -> HubSource:
    return HubSource(api, endpoint=Url(base or registry.hub_url), token=token, clock=clock)


def listed(source: NgcSource | HubSource, uri: str, *paths: str) -> Listing:
    return source.list(ModelUri.parse(uri), Wanted(paths=frozenset(paths)))


def content_of(source: Source, artifact: Artifact) -> bytes:
    """The file's bytes, as any client would get them from where the source says."""
    answer = asked(source.locate(artifact))
    assert answer.status_code == 200
    return answer.content


def asked(location: Location, start: int = 0, end: int | None = None) -> requests.Response:
    headers = {"Accept-Encoding": "identity", **location.headers}
    if end is not None:
        headers["Range"] = f"bytes={start}-{end - 1}"
    return requests.get(location.url.reveal(), headers=headers, timeout=30)
