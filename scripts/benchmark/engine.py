"""nimpull's engine alone, as the downloaders are that only fetch: ``python -m scripts.benchmark.engine JOB``.

JOB is a JSON file: ``base``, ``target``, ``ca`` ("" = none), ``connections`` (0 = as the engine finds best)
and ``files`` (name, size, SHA-256). It fetches, verifies, syncs and commits; it lists nothing and leaves no
record.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from nimpull.clock import SystemClock
from nimpull.core.artifacts import Artifact, Location
from nimpull.core.digest import Digest
from nimpull.core.events import Event
from nimpull.core.names import ModelUri, SafePath, Url
from nimpull.fetch import Batch, Fetcher, FetchLimits
from nimpull.store.area import IngestArea
from nimpull.store.tree import Tree
from nimpull.transport import Network, TransportPolicy
from nimpull.transport.loop import Loop


class Flat:
    """The layout: each file by its name in ``target``."""

    def __init__(self, target: str) -> None:
        self._target = target

    def place(self, artifact: Artifact, staged: str, *, digest: Digest, etag: str) -> tuple[str, ...]:
        del digest, etag
        os.rename(os.path.join(self._target, staged), os.path.join(self._target, artifact.path))
        return "", os.path.dirname(staged)

    def placing(self) -> AbstractContextManager[None]:
        return nullcontext()


def silent(event: Event) -> None:
    del event


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    uri = ModelUri.parse("hf://bench/engine:main")
    wanted = [
        Artifact(SafePath(name), size, (Digest("sha256", digest),), uri.with_path(name))
        for name, size, digest in job["files"]
    ]

    def locate(artifact: Artifact, fresh: bool) -> Location:
        del fresh
        return Location(Url(f"{job['base']}/{artifact.path}"))

    forced = job["connections"]
    limits = FetchLimits()
    if forced:
        limits = replace(limits.with_most(forced), start=forced)
    policy = TransportPolicy(ca_files=(job["ca"],) if job["ca"] else ())
    clock, cancel = SystemClock(), threading.Event()
    network = Network(policy, clock)
    fetcher = Fetcher(
        locate,
        lambda: Loop(network),
        IngestArea(Tree(job["target"]), Flat(job["target"])),
        clock=clock,
        cancel=cancel,
        emit=silent,
        pauses=network.pauses,
        limits=limits,
    )
    fetcher.run(Batch(wanted))


if __name__ == "__main__":
    main()
