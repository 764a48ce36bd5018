"""Images and containers for ``scripts/test-image``: built by buildah, run by podman as Kubernetes would."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

IMAGE = "localhost/nimpull:test-image"
MEMORY = "512m"
USER, GROUP = 1000, 2000

# what the operator's init container runs (k8s-nim-operator, internal/k8sutil/k8sutil.go)
UPDATE_CAS = """cp /custom/*.crt /usr/local/share/ca-certificates/
for f in /custom/*.pem; do cp "$f" "/usr/local/share/ca-certificates/$(basename "${f%.pem}")-pem.crt"; done
update-ca-certificates; cp -r /etc/ssl/certs/ /ca-certs; echo done"""
# what its probe pod runs, but for the sleep at its end
PROBE = """if [ -f /opt/nim/etc/default/model_manifest.yaml ]
then cat /opt/nim/etc/default/model_manifest.yaml
elif [ -f /etc/nim/config/model_manifest.yaml ]
then cat /etc/nim/config/model_manifest.yaml
else echo "model_manifest.yaml not found"; fi"""


@dataclass(frozen=True, slots=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


def _podman() -> tuple[str, ...]:
    """Flags in place of a containers.conf: they hold without systemd, too."""
    runtime = ("--runtime=runc",) if shutil.which("runc") else ()
    return ("podman", "--cgroup-manager=cgroupfs", "--events-backend=file", *runtime)


PODMAN = _podman()
CONTAINER = f"nimpull-test-image-{os.getpid()}"
_LIMITS = ("--ulimit=nofile=4096:4096", "--ulimit=nproc=4096:4096")


def podman(*arguments: str) -> Ran:
    # of a container that ran out of memory, conmon leaves a file "oom" where it was started
    with tempfile.TemporaryDirectory() as directory:
        command = [*PODMAN, "run", "--rm", f"--name={CONTAINER}", "--pull=never", *_LIMITS, *arguments]
        return ran(command, directory)


def ran(command: list[str], directory: str | None = None) -> Ran:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=directory)
    return Ran(done.returncode, done.stdout, done.stderr)


def engine(directory: Path) -> Path:
    """podman with these flags as one command, for scripts that take ENGINE."""
    path = directory / "engine"
    words = (*PODMAN, "run", "--pull=never", *_LIMITS)
    path.write_text(f'#!/bin/sh\n[ "$1" = run ] && shift\nexec {" ".join(words)} "$@"\n')
    path.chmod(0o755)
    return path


@dataclass(frozen=True, slots=True)
class Pod:
    """What differs between the pods of the checks. ``groups``: supplementary ones, as fsGroup adds."""

    image: str = IMAGE
    user: int = USER
    group: int = GROUP
    groups: tuple[int, ...] = ()


def as_operator(
    command: list[str], mounts: dict[Path, str], variables: dict[str, str], pod: Pod | None = None
) -> Ran:
    """The main container of a caching Job: no passwd entry, no writable /tmp, no HOME."""
    pod = pod or Pod()
    options = [f"--user={pod.user}:{pod.group}", "--passwd=false", "--network=host"]
    options += [f"--group-add={group}" for group in pod.groups]
    options += ["--read-only", "--read-only-tmpfs=false", "--cap-drop=ALL"]
    options += [
        "--security-opt=no-new-privileges",
        f"--memory={MEMORY}",
        f"--memory-swap={MEMORY}",
        "--pids-limit=100",
    ]
    options += [f"--volume={source}:{target}" for source, target in mounts.items()]
    # podman would hand the proxies of this machine down to the container
    options += ["--http-proxy=false", *(f"--env={name}={value}" for name, value in variables.items())]
    return podman(*options, pod.image, "env", "-u", "HOME", *command)  # podman itself sets HOME=/


def build(context: Path, tag: str, *options: str) -> None:
    """Layers of an earlier build are taken over; nothing is pulled that is here."""
    command = ["buildah", "bud", "--isolation=chroot", "--network=host", "--layers", "--quiet", *options]
    done = subprocess.run([*command, f"--tag={tag}", str(context)], check=False, stdout=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(f"test-image: the build of {tag} failed, buildah's exit code {done.returncode}")


def build_from(scratch: Path, name: str, *lines: str, manifest: bytes = b"") -> str:
    """An image of these Dockerfile lines, with ``manifest`` as model_manifest.yaml beside them; its tag."""
    context = scratch / f"context-{name}"
    context.mkdir()
    (context / "Dockerfile").write_text("\n".join([*lines, ""]))
    (context / "model_manifest.yaml").write_bytes(manifest)
    tag = f"{IMAGE}-{name}"
    build(context, tag, "--pull=never")
    return tag


def is_here(image: str) -> bool:
    return subprocess.run(["podman", "image", "exists", image], check=False).returncode == 0


def volume(scratch: Path, name: str) -> Path:
    """What ``fsGroup: 2000`` makes of a volume."""
    path = scratch / name
    path.mkdir()
    os.chown(path, 0, GROUP)
    path.chmod(0o2775)
    return path
