"""Mirrors whose writer is killed: at a chosen request to a bucket, at a chosen call on a directory."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock
from urllib.parse import unquote, urlsplit

from nimpull.core.mirror_objects import CHECKSUMS, object_key
from nimpull.core.names import ModelUri
from tests.buckets import AWS
from tests.pulling import noise
from tests.registry import Registry
from tests.running import PROGRAM, Run, ended, start
from tests.servers import Peer, ScriptedServer, Seen
from tests.volume_faults import CHANGES, VolumeFault, faulty, read_log
from tests.writable_buckets import WritableBucket

MODEL = ModelUri.parse("hf://acme/tiny:main")
FILES: Mapping[str, bytes] = {
    "config.json": b'{"architectures": ["Tiny"]}\n',
    "empty": b"",
    "model.safetensors": noise((9 << 20) + 77),  # two parts
    "tokenizer/vocab.txt": b"a\nb\n",
}


@dataclass(slots=True)
class Killing:
    """Ends a process at request ``at`` (from 1): before it is done or, with ``after``, before its answer."""

    bucket: WritableBucket
    at: int = 0
    after: bool = False
    count: int = 0
    process: subprocess.Popen[str] | None = None
    started: Event = field(default_factory=Event)
    _lock: Lock = field(default_factory=Lock)

    def __call__(self, seen: Seen, peer: Peer) -> None:
        with self._lock:
            self.count += 1
            struck = self.count == self.at
        if struck and self.after:
            self.bucket(seen, peer)
        if struck:
            self.started.wait()
            assert self.process
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        if not struck:
            self.bucket(seen, peer)


class Mirror:
    """One store that has the model whole, and what a mirror of it needs."""

    def __init__(self, registry: Registry, root: Path) -> None:
        self.registry = registry
        self.root = root
        self.store = root / "store"

    def run(self, to: str, **environment: str) -> Run:
        return ended(self.start(to, **environment), self.store)

    def start(self, to: str, **environment: str) -> subprocess.Popen[str]:
        arguments = ("mirror", str(MODEL), "--to", to)
        return start(self.registry, self.store, *arguments, under=(), program=PROGRAM, **environment)

    def read_back(self, override: str, **environment: str) -> tuple[Run, Mapping[str, bytes]]:
        """By nimpull, into a store of its own; the files that it has then."""
        with tempfile.TemporaryDirectory(dir=self.root) as scratch:
            store = Path(scratch, "store")
            arguments = ("download", str(MODEL))
            known = {"NIM_REPOSITORY_OVERRIDE": override, "HF_ENDPOINT": "http://127.0.0.1:1", **environment}
            run = ended(start(self.registry, store, *arguments, under=(), program=PROGRAM, **known), store)
            snapshots = list(store.glob("huggingface/hub/models--*/snapshots/*"))
            found = {
                path.relative_to(snapshot).as_posix(): path.read_bytes()
                for snapshot in snapshots
                for path in snapshot.rglob("*")
                if path.is_file()
            }
            return run, found


@contextmanager
def mirror(root: Path) -> Iterator[Mirror]:
    with Registry() as registry:
        registry.add_hub_repo(f"{MODEL.org}/{MODEL.name}", FILES)
        made = Mirror(registry, root)
        run = ended(
            start(registry, made.store, "download", str(MODEL), under=(), program=PROGRAM), made.store
        )
        if run.code:
            raise RuntimeError(run.text)
        yield made


# -- a bucket ----------------------------------------------------------------------------------------------


def environment_of(server: ScriptedServer) -> dict[str, str]:
    return {**AWS, "AWS_ENDPOINT_URL": server.url("").reveal(), "AWS_EC2_METADATA_DISABLED": "true"}


def requests_of(made: Mirror) -> int:
    """How many a whole mirror makes."""
    killing = Killing(WritableBucket())
    with ScriptedServer(killing) as server:
        run = made.run("s3://models", **environment_of(server))
    if run.code:
        raise RuntimeError(run.text)
    return killing.count


def killed_at_request(made: Mirror, at: int, *, after: bool) -> list[str]:
    """What is wrong with a bucket whose writer was killed, and with what the next runs make of it."""
    killing = Killing(WritableBucket(), at, after)
    with ScriptedServer(killing) as server:
        environment = environment_of(server)
        killing.process = made.start("s3://models", **environment)
        killing.started.set()
        run = ended(killing.process, made.store)
        if run.code == 0:
            return []  # it made fewer requests
        killing.at = 0
        mark = object_key(MODEL.with_path(CHECKSUMS))
        return _judged(
            made,
            "s3://models",
            "s3://models",
            lambda: mark in killing.bucket.contents,
            environment,
        )


# -- a directory -------------------------------------------------------------------------------------------


def calls_of(made: Mirror) -> int:
    """How many a whole mirror changes its directory with."""
    with tempfile.TemporaryDirectory(dir=made.root) as scratch:
        target, log = Path(scratch, "mirror"), Path(scratch, "log")
        run = made.run(str(target), **faulty(log=log))
        if run.code:
            raise RuntimeError(run.text)
        return sum(call.name in CHANGES and call.path.startswith(str(target)) for call in read_log(log))


def killed_at_call(made: Mirror, at: int, serve: Callable[[Path], ScriptedServer]) -> list[str]:
    """The same for a directory, served by ``serve``."""
    with tempfile.TemporaryDirectory(dir=made.root) as scratch:
        target = Path(scratch, "mirror")
        run = made.run(str(target), **faulty(VolumeFault("kill", first=at, path=str(target))))
        if run.code == 0:
            return []
        mark = target / object_key(MODEL.with_path(CHECKSUMS))
        with serve(target) as server:
            return _judged(made, str(target), server.url("").reveal(), mark.exists, {})


def tree_server(root: Path) -> ScriptedServer:
    """The files of a directory, as a web server gives them: the address is decoded once."""

    def answer(seen: Seen, peer: Peer) -> None:
        path = os.path.join(root, unquote(urlsplit(seen.target).path).lstrip("/"))
        if not os.path.isfile(path):
            peer.reply(404)
        elif seen.method == "HEAD":
            peer.head(200, {"Content-Length": str(os.stat(path).st_size)})
        else:
            peer.file(seen, Path(path).read_bytes(), f'"{os.stat(path).st_mtime_ns}"')

    return ScriptedServer(answer)


# -- what must hold ----------------------------------------------------------------------------------------


def _judged(
    made: Mirror, to: str, override: str, marked: Callable[[], bool], environment: Mapping[str, str]
) -> list[str]:
    wrong = []
    was_marked = marked()
    read, found = made.read_back(override, **environment)
    state = read.report.get("status", {}).get("state", "")
    if was_marked and (read.code or not _same(found)):
        wrong.append(f"it has its list of checksums, and is not whole: {read.text}")
    if not was_marked and (read.code == 0 or state == "Ready"):
        wrong.append("it has no list of checksums, and was read as complete")
    again = made.run(to, **environment)
    if again.code:
        wrong.append(f"the next run ended with {again.code}: {again.text}")
    read, found = made.read_back(override, **environment)
    if read.code or not _same(found):
        wrong.append(f"after the next run it is not whole: {read.text}")
    last = made.run(to, **environment)
    if last.code or last.report["mirror"]["bytesSent"]:
        wrong.append(f"the run after that sent {last.report['mirror']['bytesSent']} bytes")
    return wrong


def _same(found: Mapping[str, bytes]) -> bool:
    return {path: content for path, content in found.items() if path != CHECKSUMS} == dict(FILES)
