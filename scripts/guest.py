"""Commands under another kernel, for a while: user-mode Linux, for file systems that this machine's has not.

The guest sees this machine's files and programs, and cannot change them. It has one CPU, 2 GiB of memory, a
network of its own with nothing but loopback, and an empty disk that is mounted at ``/mnt``.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Final

MISSING: Final = 77
_KERNEL: Final = "linux.uml"
_HERE: Final = Path(__file__).resolve().parent
_DISK: Final = 8 << 30  # bytes, sparse
_MARK: Final = "nimpull_guest"  # the kernel gives it to the first process as a variable
_LOOK: Final = 0.2  # seconds between two looks at what the guest said


def missing() -> str:
    """Why no guest can be had here, "" if one can."""
    if os.geteuid():
        return "a guest with this machine's files needs root"
    for program in (_KERNEL, "cc", "mkfs.ext4", "modprobe", "ip"):
        if not shutil.which(program):
            return f"{program} is not installed"
    return ""


def is_guest() -> bool:
    return Path("/run/guest/command").exists()


def run(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> int:
    """The exit code of ``command``, whose output is shown while it runs; it runs where the caller is.

    RuntimeError for a guest that ended before the command did, with what its kernel said.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a guest is not left behind
    with tempfile.TemporaryDirectory(prefix="nimpull-guest-") as folder:
        work = Path(folder)
        variables = [f"{name}={value}" for name, value in (environment or {}).items()]
        line = shlex.join(["exec", "env", "PYTHONDONTWRITEBYTECODE=1", *variables, *map(str, command)])
        (work / "command").write_text(f"cd {shlex.quote(os.getcwd())}\n{line}\n")
        (work / "output").touch()
        with (work / "disk").open("wb") as disk:
            disk.truncate(_DISK)
        library = work / "ptrace.so"
        source = _HERE / "guest_ptrace.c"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        with (work / "kernel.log").open("wb") as log:
            guest = _boot(work, library, log)
            try:
                _follow(guest, work / "output")
            finally:
                _end(guest)
        try:
            return int((work / "code").read_text())
        except (FileNotFoundError, ValueError):
            said = (work / "kernel.log").read_text(errors="replace")[-2000:]
            raise RuntimeError(f"the guest ended before its command: {said}") from None


def _boot(work: Path, library: Path, log: IO[bytes]) -> subprocess.Popen[bytes]:
    fast = "/dev/shm" if os.access("/dev/shm", os.W_OK) else str(work)
    options = (
        "mem=2048M",
        f"uml_dir={work}",
        "umid=guest",
        f"ubd0={work / 'disk'}",
        "root=/dev/root rootfstype=hostfs rootflags=/ ro",
        f"init={_HERE / 'guest-init'}",
        f"{_MARK}={work}",
        "con0=null,fd:1 con=null quiet",
    )
    return subprocess.Popen(
        [_KERNEL, *" ".join(options).split()],
        env={**os.environ, "LD_PRELOAD": str(library), "TMPDIR": fast},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _follow(guest: subprocess.Popen[bytes], output: Path) -> None:
    with output.open("rb") as said:
        ended = False
        while not ended:
            try:
                guest.wait(_LOOK)
                ended = True
            except subprocess.TimeoutExpired:
                pass
            sys.stdout.write(said.read().decode(errors="replace"))
            sys.stdout.flush()


def _end(guest: subprocess.Popen[bytes]) -> None:
    """With the processes of the guest, which are this machine's: they would spin without their kernel."""
    for found in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = found.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == guest.pid:  # its session
            try:
                os.kill(int(found.parent.name), 9)
            except ProcessLookupError:
                continue
    guest.wait()


if __name__ == "__main__":  # python -m scripts.guest COMMAND …
    raise SystemExit(run(sys.argv[1:]))
