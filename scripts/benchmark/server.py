"""nginx as a Hugging Face hub and its CDN, and the links that lead to it.

The hub is 127.0.0.1 and the CDN 127.0.0.2, on the same port: a redirect to the port that was asked for stays
on the link that was asked over.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from scripts.benchmark.content import MIB, Repository
from scripts.benchmark.session import Failed, Session

HUB, CDN = "127.0.0.1", "127.0.0.2"
WINDOW = 6 * MIB  # the most that Linux lets a receive window grow to (tcp_rmem's default)
_SOURCE = Path(__file__).with_name("link.c")
_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # often not in a user's PATH


@dataclass(frozen=True, slots=True)
class Link:
    """``delay``: round trip in seconds; ``rate``: bytes per second that a connection gets, 0 = all."""

    delay: float = 0.0
    rate: int = 0

    def __str__(self) -> str:
        parts = [f"{self.delay * 1000:.0f} ms"]
        return ", ".join([*parts, f"{self.rate // MIB} MiB/s a connection"] if self.rate else parts)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One way to the server. ``ca``: what to trust, None over plain http; ``hosts``: of hub and CDN."""

    scheme: str
    port: int
    ca: Path | None
    hosts: tuple[str, str] = (HUB, CDN)

    @property
    def hub(self) -> str:
        return f"{self.scheme}://{self.hosts[0]}:{self.port}"

    @property
    def cdn(self) -> str:
        return f"{self.scheme}://{self.hosts[1]}:{self.port}"


@dataclass(frozen=True, slots=True)
class Server:
    """``log``: a line for each request: the bytes of the answer's body; empty unless asked for."""

    endpoint: Endpoint
    log: Path

    @property
    def requests(self) -> int:
        return len(self.log.read_text().splitlines())

    @property
    def sent(self) -> int:
        return sum(int(line) for line in self.log.read_text().splitlines())


def find_nginx() -> str:
    return shutil.which("nginx", path=os.pathsep.join((os.environ.get("PATH", ""), *_SBIN))) or ""


class Authority:
    """A certificate authority of this run's own, and a certificate for both addresses."""

    def __init__(self, folder: Path) -> None:
        import trustme

        self._folder = folder
        self.ca = folder / "ca.pem"
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.ca))
        authority.issue_cert(HUB, CDN).private_key_and_cert_chain_pem.write_to_path(
            str(folder / "server.pem")
        )

    @property
    def configuration(self) -> str:
        made = self._folder / "server.pem"
        return f"ssl_certificate {made}; ssl_certificate_key {made}; ssl_protocols TLSv1.2 TLSv1.3;"


def _listening() -> tuple[socket.socket, socket.socket]:
    """Two sockets with one port, at the hub's and the CDN's address."""
    for _ in range(100):
        first = socket.create_server((HUB, 0), backlog=1024)
        try:
            return first, socket.create_server((CDN, first.getsockname()[1]), backlog=1024)
        except OSError:
            first.close()
    raise Failed("no port is free at both 127.0.0.1 and 127.0.0.2")


def _free_port() -> int:
    first, second = _listening()
    with first, second:
        port: int = first.getsockname()[1]
    return port


class Servers:
    """Starts nginx and links for a session. ``folder`` holds their files."""

    def __init__(self, session: Session, nginx: str, folder: Path) -> None:
        self._session = session
        self._nginx = nginx
        self._folder = folder
        self._link = folder / "link"

    @cached_property
    def authority(self) -> Authority:
        return Authority(self._folder)

    @cached_property
    def compiler(self) -> str:
        return shutil.which("cc") or ""

    @contextmanager
    def serve(
        self,
        *repositories: Repository,
        tls: bool = False,
        log: bool = False,
        hosts: tuple[str, str] = (HUB, CDN),
    ) -> Iterator[Server]:
        """nginx, until the end of the block; then it answers what is under way and ends.

        ``repositories``: all below one ``www``.
        """
        port = _free_port()
        configuration, written = self._folder / "nginx.conf", self._folder / "access.log"
        ca = self.authority.ca if tls else None
        written.write_text("")
        self._write_maps(repositories)
        endpoint = Endpoint("https" if tls else "http", port, ca, hosts)
        configuration.write_text(
            self._configuration(repositories[0].www, endpoint, log=written if log else None)
        )
        command = [self._nginx, "-c", str(configuration), "-p", str(self._folder), "-e", "stderr"]
        with (self._folder / "error.log").open("w+") as errors:
            child = self._session.start(command, stderr=errors)
            try:
                _await(child, endpoint, self._folder / "error.log")
                yield Server(endpoint, written)
            finally:
                self._session.end(child, signal.SIGQUIT)

    @contextmanager
    def through(self, link: Link, endpoint: Endpoint) -> Iterator[Endpoint]:
        """``endpoint`` as it is over ``link``."""
        if not self._link.exists():
            subprocess.run([self.compiler, "-O2", "-o", str(self._link), str(_SOURCE)], check=True)
        listening = _listening()
        for each in listening:
            each.setblocking(False)
        descriptors = [each.fileno() for each in listening]
        one_way = round(link.delay / 2 * 1e6)
        numbers = (one_way, link.rate, WINDOW, endpoint.port, *descriptors)
        child = self._session.start([self._link, *map(str, numbers)], pass_fds=descriptors)
        port = listening[0].getsockname()[1]
        for each in listening:
            each.close()
        try:
            yield Endpoint(endpoint.scheme, port, endpoint.ca)
        finally:
            self._session.end(child)

    def _write_maps(self, repositories: Sequence[Repository]) -> None:
        """What the hub's headers say about a file, by the path of its URL."""
        oids, sizes = [], []
        for repository in repositories:
            for file in repository.files:
                path = f"/{repository.path}/{file.name}"
                oids.append(f'{path} "{file.oid}";')
                if file.lfs:
                    sizes.append(f"{path} {file.size};")
        (self._folder / "oids.map").write_text("\n".join(oids))
        (self._folder / "sizes.map").write_text("\n".join(sizes))

    def _configuration(self, www: Path, endpoint: Endpoint, *, log: Path | None) -> str:
        here, tls, port, (hub, cdn) = self._folder, endpoint.ca is not None, endpoint.port, endpoint.hosts
        listen = " ssl http2" if tls else ""
        temporary = " ".join(
            f"{name}_temp_path {here}/temporary;"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        return f"""
daemon off; pid {here}/nginx.pid; worker_processes auto; error_log stderr;
{"user root;" if os.geteuid() == 0 else ""}
events {{ worker_connections 4096; }}
http {{
    {temporary}
    log_format sent $body_bytes_sent; access_log {f"{log} sent" if log else "off"};
    sendfile on; output_buffers 2 256k; open_file_cache max=20000; default_type application/octet-stream;
    keepalive_timeout 600; keepalive_requests 1000000; {self.authority.configuration if tls else ""}
    map_hash_max_size 65536; map_hash_bucket_size 512;
    map $uri $oid {{ include {here}/oids.map; }}
    map $uri $linked_size {{ default ""; include {here}/sizes.map; }}
    map $linked_size $linked_etag {{ "" ""; default '"$oid"'; }}
    map $http_host $asked_port {{ "~:(?<digits>[0-9]+)$" $digits; }}
    map $uri $commit {{ "~/resolve/(?<found>[0-9a-f]+)/" $found; }}
    root {www};
    server {{
        listen {hub}:{port}{listen} backlog=1024;
        location /api/ {{ default_type application/json; }}
        location / {{
            etag off;
            add_header ETag '"$oid"';
            add_header X-Repo-Commit $commit;
            add_header X-Linked-Size $linked_size;
            add_header X-Linked-ETag $linked_etag;
            if ($linked_size) {{ return 302 $scheme://{cdn}:$asked_port$uri?Expires=4102444800; }}
        }}
    }}
    server {{ listen {cdn}:{port}{listen} backlog=1024; }}
}}
"""


def _await(child: subprocess.Popen[str], endpoint: Endpoint, errors: Path) -> None:
    while child.poll() is None:
        with (
            suppress(ConnectionRefusedError),
            socket.create_connection((endpoint.hosts[1], endpoint.port), 1),
        ):
            return
        time.sleep(0.02)
    raise Failed(f"nginx did not start: {errors.read_text().strip()[-300:]}")
