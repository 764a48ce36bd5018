"""Volumes of many kinds, mounted for a while: loop devices, memory, networks on loopback, FUSE, guests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from scripts import network_volumes
from tests import refusing_mounts

Mount = Callable[[Path], AbstractContextManager[Path]]
_DISK: Final = 400 << 20  # bytes; the least that mkfs.xfs takes is 300 MiB
_PATIENCE: Final = 10.0  # seconds for a mount to come up
_SFTP: Final = "/usr/lib/openssh/sftp-server"


class MissingError(Exception):
    """What this machine lacks for a volume."""


def _need(*programs: str) -> None:
    for each in programs:
        if not shutil.which(each):
            raise MissingError(f"{each} is not installed")


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MissingError(f"{command[0]}: {(done.stderr or done.stdout).strip()[-200:]}")


@contextmanager
def _mounted(directory: Path, server: subprocess.Popen[bytes] | None = None) -> Iterator[Path]:
    """Unmounted at the end, whoever is in it; ``server``: the process that serves it."""
    above = os.stat(directory.parent).st_dev
    until = time.monotonic() + _PATIENCE
    try:
        while os.stat(directory).st_dev == above:
            if (server and server.poll() is not None) or time.monotonic() > until:
                raise MissingError("the mount does not come up")
            time.sleep(0.05)
        yield directory
    finally:
        subprocess.run(["umount", "-l", directory], stderr=subprocess.DEVNULL, check=False)
        if server:
            server.terminate()
            server.wait()


@contextmanager
def _disk(work: Path, *, make: tuple[str, ...], options: str = "loop") -> Iterator[Path]:
    _need(make[0])
    image, directory = work / "disk.img", work / "mount"
    directory.mkdir()
    with image.open("wb") as file:
        file.truncate(_DISK)
    _run(*make, image)
    _run("mount", "-o", options, image, directory)
    with _mounted(directory):
        yield directory


@contextmanager
def _memory(work: Path) -> Iterator[Path]:
    directory = work / "mount"
    directory.mkdir()
    _run("mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", directory)
    with _mounted(directory):
        yield directory


@contextmanager
def _refusing(work: Path, *, kind: str) -> Iterator[Path]:
    if reason := refusing_mounts.missing():
        raise MissingError(reason)
    with refusing_mounts.mounted(kind, work / "behind", work / "mount") as directory:
        yield directory


@contextmanager
def _rclone(work: Path) -> Iterator[Path]:
    _need("rclone", "fusermount3")
    (work / "behind").mkdir()
    (work / "mount").mkdir()
    options = ("--vfs-cache-mode", "writes", "--cache-dir", str(work / "cache"), "--config", "")
    server = subprocess.Popen(
        ["rclone", "mount", *options, f":local:{work / 'behind'}", str(work / "mount")],
        stderr=subprocess.DEVNULL,
    )
    with _mounted(work / "mount", server):
        yield work / "mount"


@contextmanager
def _sshfs(work: Path) -> Iterator[Path]:
    """Over a socket that an sftp-server listens behind: no daemon, no keys."""
    _need("sshfs")
    if not os.access(_SFTP, os.X_OK):
        raise MissingError("sftp-server is not installed")
    (work / "behind").mkdir()
    (work / "mount").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                subprocess.run([_SFTP], stdin=peer.fileno(), stdout=peer.fileno(), check=False)

        threading.Thread(target=serve, daemon=True).start()
        options = ("-f", "-o", f"directport={port}", f"127.0.0.1:{work / 'behind'}", str(work / "mount"))
        server = subprocess.Popen(["sshfs", *options], stderr=subprocess.DEVNULL)
        with _mounted(work / "mount", server):
            yield work / "mount"


@contextmanager
def _s3fs(work: Path) -> Iterator[Path]:
    _need("s3fs")
    try:
        import boto3
        from moto.server import ThreadedMotoServer
    except ImportError as error:
        raise MissingError(f"moto[server] is not installed: {error}") from error
    (work / "mount").mkdir()
    keys = work / "keys"
    keys.write_text("key:secret\n")
    keys.chmod(0o600)
    with ExitStack() as stack:
        moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        moto.start()
        stack.callback(moto.stop)
        url = "http://{}:{}".format(*moto.get_host_and_port())
        session = boto3.Session("key", "secret", region_name="us-east-1")
        session.client("s3", endpoint_url=url).create_bucket(Bucket="models")
        options = f"passwd_file={keys},url={url},use_path_request_style,ensure_diskfree=100"
        server = subprocess.Popen(
            ["s3fs", "models", str(work / "mount"), "-f", "-o", options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stack.enter_context(_mounted(work / "mount", server))
        yield work / "mount"


VOLUMES: Final[Mapping[str, Mount]] = {
    "ext4": partial(_disk, make=("mkfs.ext4", "-q", "-F")),
    "xfs": partial(_disk, make=("mkfs.xfs", "-q", "-f")),
    "btrfs": partial(_disk, make=("mkfs.btrfs", "-q", "-f")),
    "vfat": partial(_disk, make=("mkfs.vfat", "-F", "32"), options="loop,utf8"),
    "tmpfs": _memory,
    "sshfs": _sshfs,
    "s3fs": _s3fs,
    "rclone": _rclone,
    **{f"refusing-{kind}": partial(_refusing, kind=kind) for kind in refusing_mounts.KINDS},
}

#: Only in a guest: this machine's kernel seldom has the servers, and shall not be given any.
IN_GUEST: Final[Mapping[str, Mount]] = {
    "nfs3": partial(network_volumes.nfs, options="vers=3"),
    "nfs4": partial(network_volumes.nfs, options="vers=4.2"),
    "cifs": partial(network_volumes.cifs, options="guest,vers=3.1.1"),
    "cifs-mfsymlinks": partial(network_volumes.cifs, options="guest,vers=3.1.1,mfsymlinks"),
}
OUTAGES: Final[Mapping[str, Mount]] = {
    "nfs4-soft": partial(network_volumes.nfs, options="vers=4.2,soft,timeo=5,retrans=1"),
    "nfs4-hard": partial(network_volumes.nfs, options="vers=4.2"),
}

if __name__ == "__main__":  # a volume to try by hand: python -m scripts.volumes NAME DIRECTORY
    with VOLUMES[sys.argv[1]](Path(sys.argv[2])) as place:
        print(place, flush=True)
        sys.stdin.read()
