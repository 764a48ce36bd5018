"""Fixtures that several test modules ask for by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.cluster import Cluster, a_cluster
from tests.pods import link_commands

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the commands of the image."""
    return link_commands(tmp_path_factory.mktemp("image") / "commands")


@pytest.fixture
def cluster(tmp_path: Path, commands: Path) -> Iterator[Cluster]:
    with a_cluster(tmp_path, commands) as made:
        yield made
