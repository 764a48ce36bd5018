"""NFS and CIFS, server and client under one kernel: only in a guest, see :mod:`scripts.guest`."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from scripts.guest import is_guest

PROGRAMS: Final = {
    "nfs": ("rpcbind", "rpc.statd", "rpc.mountd", "rpc.nfsd", "exportfs", "mount.nfs"),
    "cifs": ("smbd", "mount.cifs"),
}
_DISK: Final = Path("/mnt")  # of the guest
_THREADS: Final = "8"
#: As the root of NFSv4: what is above cannot be exported.
_EXPORT: Final = "rw,no_root_squash,insecure,no_subtree_check,fsid=0"
_SAMBA: Final = """
[global]
map to guest = Bad User
guest account = root
unix extensions = no
load printers = no
disable spoolss = yes
log file = /var/log/samba/log
[volume]
path = {path}
guest ok = yes
read only = no
"""


def missing(kind: str) -> str:
    """What this machine lacks for volumes of a ``kind``, "" if nothing."""
    return ", ".join(each for each in PROGRAMS[kind] if not shutil.which(each))


@contextmanager
def nfs(work: Path, *, options: str) -> Iterator[Path]:
    """``options`` of the mount."""
    _serve_nfs()
    path = str(_DISK / "nfs") if "vers=3" in options else "/"
    with _client(work, "nfs", options, f"127.0.0.1:{path}") as directory:
        yield directory


@contextmanager
def cifs(work: Path, *, options: str) -> Iterator[Path]:
    path, settings = _DISK / "cifs", work / "smb.conf"
    path.mkdir(exist_ok=True)
    settings.write_text(_SAMBA.format(path=path))
    subprocess.run(["smbd", "-D", "-s", settings], check=True)
    with _client(work, "cifs", options, "//127.0.0.1/volume") as directory:
        yield directory


def _serve_nfs() -> None:
    assert is_guest(), "another machine's exports are not ours"
    path = _DISK / "nfs"
    if path.is_dir():
        return
    path.mkdir()
    for kind, place in (("nfsd", "/proc/fs/nfsd"), ("rpc_pipefs", "/var/lib/nfs/rpc_pipefs")):
        if not os.path.ismount(place):
            subprocess.run(["mount", "-t", kind, kind, place], check=True)
    for name in ("nfsv4leasetime", "nfsv4gracetime"):
        Path("/proc/fs/nfsd", name).write_text("10\n")
    for command in (
        ("rpcbind", "-w"),
        ("rpc.statd", "--no-notify"),
        ("rpc.mountd",),
        ("exportfs", "-o", _EXPORT, f"*:{path}"),
    ):
        _quietly(*command)
    serve_nfs(_THREADS)


def serve_nfs(threads: str = _THREADS) -> None:
    """ "0": the server is away, and whoever asks it waits."""
    _quietly("rpc.nfsd", threads)


def _quietly(*command: str) -> None:
    """They tell of a guest without IPv6 for each of their sockets."""
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stderr.strip()[-300:]}")


@contextmanager
def _client(work: Path, kind: str, options: str, source: str) -> Iterator[Path]:
    directory = work / "mount"
    directory.mkdir()
    until = 20
    while True:
        done = subprocess.run(
            ["mount", "-t", kind, "-o", options, source, directory],
            check=False,
            capture_output=True,
            text=True,
        )
        if not done.returncode:
            break
        until -= 1
        if not until:
            raise RuntimeError(f"{source}: {done.stderr.strip()}")
        subprocess.run(["sleep", "0.5"], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-f", "-l", directory], check=False)
