"""Fixtures that several test modules ask for by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from hypothesis import HealthCheck, settings

from nimpull.core.proxies import Proxies
from nimpull.transport import HttpApi, TransportPolicy
from tests.calls import FILES, manifest
from tests.clocks import StepClock
from tests.cluster import Cluster, a_cluster
from tests.listings import an_api
from tests.pods import link_commands
from tests.registry import Registry
from tests.running import end_what_was_started
from tests.transporting import Rig

settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)  # a busy machine is no failure
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    end_what_was_started()


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the commands of the image."""
    return link_commands(tmp_path_factory.mktemp("image") / "commands")


@pytest.fixture
def cluster(tmp_path: Path, commands: Path) -> Iterator[Cluster]:
    with a_cluster(tmp_path, commands) as made:
        yield made


@pytest.fixture
def rig() -> Iterator[Callable[..., Rig]]:
    """Makes transports; keywords are fields of their policy. They are closed after the test."""
    made: list[Rig] = []

    def make(*, clock: StepClock | None = None, **policy: object) -> Rig:
        named = {name: str(policy.pop(f"{name}_proxy", "")) for name in ("http", "https")}
        proxies = Proxies.parse(**named, everything=str(policy.pop("all_proxy", "")))
        fields: dict[str, object] = {
            "connect_timeout": 5.0,
            "read_timeout": 5.0,
            "proxies": proxies,
            **policy,
        }
        made.append(Rig(TransportPolicy(**fields), clock or StepClock()))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def bundle(ca: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(path)
    return str(path)


@pytest.fixture
def clock() -> StepClock:
    return StepClock()


@pytest.fixture
def api(clock: StepClock) -> Iterator[HttpApi]:
    with an_api(clock) as made:
        yield made


@pytest.fixture
def registry() -> Iterator[Registry]:
    """NGC and a DataStore with the same small model."""
    with Registry() as started:
        started.add_ngc_model("nim", "meta", "tiny", "hf-1", FILES)
        started.add_hub_repo("default/tiny", FILES)
        yield started


@pytest.fixture
def listed(tmp_path: Path) -> str:
    """The path of a manifest with the small model."""
    return str(manifest(tmp_path / "m.yaml"))
