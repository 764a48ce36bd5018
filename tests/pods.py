"""A process as the container of a pod: its user, its mounts, the commands of the image on its PATH."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from scripts.containers import UPDATE_CAS

ROOT = Path(__file__).parent.parent

#: Runs what follows "--" with each pair of paths before it bind-mounted: source, target, source, target, …
_BIND = 'while [ "$1" != -- ]; do mount --bind "$1" "$2" || exit 125; shift 2; done; shift; exec "$@"'


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    under: Sequence[str] = (),
    directory: Path | None = None,
) -> tuple[int, str]:
    """(exit code, stdout then stderr) with this environment and no other. ``under``: a command before it."""
    done = subprocess.run(
        [*under, *command],
        env=environment,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def link_commands(directory: Path) -> Path:
    """The commands of this installation as the image has them on its PATH, in ``directory``."""
    subprocess.run([sys.executable, ROOT / "image/link_commands.py", directory], check=True)
    return directory


def as_user(uid: int, gid: int) -> tuple[str, ...]:
    """A command under which modes and owners count: this user, no other group, nothing gained by exec.

    Whoever is not root is bound by them anyway, and stays who they are. The one capability left lets the
    process read this checkout, wherever it lies; it writes nothing.
    """
    if os.geteuid() != 0:
        return ()
    left = "-all,+dac_read_search"
    ids = (f"--reuid={uid}", f"--regid={gid}", "--clear-groups")
    capabilities = (f"--inh-caps={left}", f"--ambient-caps={left}", f"--bounding-set={left}")
    under = ("setpriv", *ids, *capabilities, "--no-new-privs", "--")
    if not _works(under):
        pytest.skip("setpriv cannot drop capabilities here")
    return under


def mounting(mounts: Mapping[Path, str]) -> tuple[str, ...]:
    """A command under which these files and directories lie over those paths, for no one else."""
    under = ("unshare", "--mount") if os.geteuid() == 0 else ("unshare", "--map-root-user", "--mount")
    if not _works(under):
        pytest.skip("mount namespaces are not allowed here")
    pairs = [text for source, target in mounts.items() for text in (str(source), target)]
    return (*under, "sh", "-c", _BIND, "sh", *pairs, "--")


@cache
def _works(under: tuple[str, ...]) -> bool:
    if shutil.which(under[0]) is None:
        return False
    return subprocess.run([*under, "true"], check=False, capture_output=True).returncode == 0


@contextmanager
def mounted(*arguments: str) -> Iterator[None]:
    """``mount`` with these arguments, the last of which is where, for everyone; skips where it is refused."""
    done = subprocess.run(["mount", *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", arguments[-1]], check=True)


def volume(path: Path, group: int, sub_path: str = "") -> Path:
    """What ``fsGroup`` makes of a volume, and kubelet of a directory below it: group-owned, set-group-id."""
    path.mkdir(exist_ok=True)
    made = [path]
    for name in sub_path.split("/") if sub_path else ():
        made.append(made[-1] / name)
        made[-1].mkdir(exist_ok=True)
    for each in made:
        if os.geteuid() == 0:
            os.chown(each, 0, group)
        each.chmod(0o2775)
    return made[-1]


def ca_certs(directory: Path, certificate: bytes) -> Path:
    """What the CA init container leaves for the main one: its /ca-certs, of a ConfigMap with ``corp.pem``."""
    if shutil.which("update-ca-certificates") is None:
        pytest.skip("needs update-ca-certificates")
    for name in ("custom", "ca-certs", "local", "hooks"):
        (directory / name).mkdir()
    (directory / "custom/corp.pem").write_bytes(certificate)
    shutil.copytree("/etc/ssl", directory / "ssl", symlinks=True, ignore=shutil.ignore_patterns("private"))
    own = {
        directory / "ssl": "/etc/ssl",
        directory / "local": "/usr/local/share/ca-certificates",
        directory / "hooks": "/etc/ca-certificates/update.d",
    }
    places = {"/custom": str(directory / "custom"), "/ca-certs": str(directory / "ca-certs")}
    script = re.sub("|".join(places), lambda found: places[found[0]], UPDATE_CAS)
    code, text = run(["/bin/sh", "-c", script], {"PATH": os.environ["PATH"]}, under=mounting(own))
    assert code == 0, text
    return directory / "ca-certs"
