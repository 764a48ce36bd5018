"""Build the image and run it as the NIM Operator does, against a registry on loopback with a private CA.

Started by ``scripts/test-image``. Each check prints a line; the last line counts them. Exit 1: one failed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Any

import trustme

from scripts.pull_demo import VERSION, manifest
from tests.registry import Answer, Fault, Registry, Request
from tests.servers import Proxy, ProxyRules

IMAGE = "localhost/nimpull:test-image"
COPIED = "localhost/nimpull:test-image-copied"
MIB = 1 << 20
MEMORY = "512m"
WEIGHTS = 640 * MIB  # more than the memory limit, so that buffers and page cache would show
USER, GROUP = 1000, 2000
PROXY_PASSWORD = "proxy-canary-7d1f"  # opens nothing but the proxy below

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


@dataclass(slots=True)
class Checks:
    passed: int = 0
    failed: list[str] = field(default_factory=list)

    def __call__(self, name: str, good: bool, seen: object = "") -> None:
        if good:
            self.passed += 1
            print(f"ok      {name}", flush=True)
        else:
            self.failed.append(name)
            print(f"FAILED  {name}: {seen}", flush=True)

    def close(self) -> int:
        print(f"{self.passed} passed, {len(self.failed)} failed")
        return 1 if self.failed else 0


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


def podman(*arguments: str) -> Ran:
    limits = ("--ulimit=nofile=4096:4096", "--ulimit=nproc=4096:4096")
    whole = [*PODMAN, "run", "--rm", f"--name={CONTAINER}", "--pull=never", *limits, *arguments]
    done = subprocess.run(whole, capture_output=True, text=True, check=False, timeout=120)
    return Ran(done.returncode, done.stdout, done.stderr)


def as_operator(command: list[str], mounts: dict[Path, str], variables: dict[str, str]) -> Ran:
    """The main container of a caching Job: no passwd entry, no writable /tmp, no HOME."""
    options = [f"--user={USER}:{GROUP}", "--passwd=false", "--network=host"]
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
    return podman(*options, IMAGE, "env", "-u", "HOME", *command)  # podman itself sets HOME=/


def build(base: str) -> None:
    local = subprocess.run(["podman", "image", "exists", base], check=False).returncode == 0
    command = ["buildah", "bud", "--isolation=chroot", "--network=host", "--layers", "--quiet"]
    command += ["--pull=never" if local else "--pull=true", f"--build-arg=BASE={base}", f"--tag={IMAGE}"]
    done = subprocess.run([*command, "."], check=False, stdout=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(f"test-image: the build failed, buildah's exit code {done.returncode}")


def build_copied(base: str, scratch: Path) -> None:
    """docs/image.md, way 3: nimpull copied onto another image with the same Python."""
    lines = (f"FROM {base}", f"COPY --from={IMAGE} /opt/nimpull /opt/nimpull", "USER 1000:2000")
    context = scratch / "copied"
    context.mkdir()
    (context / "Dockerfile").write_text("\n".join([*lines, "ENV PATH=/opt/nimpull/commands:$PATH", ""]))
    command = ["buildah", "bud", "--isolation=chroot", "--pull=never", "--quiet", f"--tag={COPIED}"]
    subprocess.run([*command, str(context)], check=True, stdout=subprocess.DEVNULL)


def volume(scratch: Path, name: str) -> Path:
    """What ``fsGroup: 2000`` makes of a volume."""
    path = scratch / name
    path.mkdir()
    os.chown(path, 0, GROUP)
    path.chmod(0o2775)
    return path


def model_files(scratch: Path) -> dict[str, Path]:
    root = scratch / "model"
    root.mkdir()
    (root / "config.json").write_text('{"model_type": "tiny"}\n')
    (root / "tokenizer.json").write_bytes(random.Random(1).randbytes(3 * MIB + 17))
    with (root / "model.safetensors").open("wb") as weights:
        for number in range(WEIGHTS // MIB):
            weights.write(random.Random(number).randbytes(MIB))
    return {path.name: path for path in sorted(root.iterdir())}


def report_of(store: Path) -> dict[str, Any]:
    path = store / ".nimpull/report.json"
    loaded: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"status": {}}
    return loaded


def sha256(path: Path) -> str:
    if not path.is_file():
        return "missing"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def changed(files: dict[str, Path], root: Path) -> list[str]:
    return [name for name, original in files.items() if sha256(root / name) != sha256(original)]


def foreign(store: Path) -> list[str]:
    """Files that the volume's group cannot read."""
    return [
        str(path.relative_to(store))
        for path in store.rglob("*")
        if not path.is_symlink() and (path.stat().st_gid != GROUP or not path.stat().st_mode & 0o040)
    ]


@dataclass(frozen=True, slots=True)
class Place:
    """One run of the checks: where things lie, and what the Job's environment names."""

    check: Checks
    scratch: Path
    files: dict[str, Path]
    etc_ssl: Path

    def hub(self, registry: Registry, store: Path, *, trusting: bool = True) -> Ran:
        """The Job of a Hugging Face cache."""
        command = ["huggingface-cli", "download", "acme/tiny", "--local-dir", "/model-store"]
        variables = {"HF_ENDPOINT": registry.hub_url, "HF_TOKEN": registry.hub.token}
        variables |= {"HF_HOME": "/model-store/huggingface/hub", "NIM_CACHE_PATH": "/model-store"}
        mounts = {store: "/model-store"} | ({self.etc_ssl: "/etc/ssl"} if trusting else {})
        return as_operator([*command, "--repo-type", "model"], mounts, variables)

    def ngc(self, registry: Registry, store: Path, proxy: str) -> Ran:
        """An NGC cache behind a proxy, with the manifest from a ConfigMap (docs/image.md, way 2)."""
        small = {name: path for name, path in self.files.items() if name != "model.safetensors"}
        config_map = self.scratch / f"manifest-{store.name}"
        config_map.mkdir()
        manifest("nim", "acme", "tiny", small, config_map)
        profile = hashlib.sha256(b"tinyH100").hexdigest()
        variables = {"NGC_API_KEY": registry.ngc.key, "NGC_HOME": "/model-store/ngc/hub"}
        variables |= {"NGC_API_ENDPOINT": registry.ngc_url, "NGC_AUTH_ENDPOINT": registry.ngc_url}
        variables |= {"NIM_CACHE_PATH": "/model-store", "NIM_SDK_USE_NATIVE_TLS": "1"}
        variables |= {"NIM_MANIFEST_PATH": "/manifest/model_manifest.yaml", "NIMPULL_RETRY_SECONDS": "0"}
        variables |= dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"), proxy)
        variables |= {"NO_PROXY": "10.0.0.0/8,.svc", "no_proxy": "10.0.0.0/8,.svc"}
        mounts = {store: "/model-store", self.etc_ssl: "/etc/ssl", config_map: "/manifest"}
        return as_operator(["download-to-cache", "--profiles", profile], mounts, variables)


def check_image(place: Place, base: str) -> None:
    carried = Path("image/model_manifest.yaml").read_text()
    probe = as_operator(["sh", "-c", PROBE], {}, {})
    place.check(
        "the probe pod reads the manifest, and nothing else", (probe.code, probe.text) == (0, carried), probe
    )
    greedy = as_operator(["/opt/nimpull/bin/python3", "-c", f"print(len(b'x' * {WEIGHTS}))"], {}, {})
    place.check(f"{MEMORY} is a limit: a process that wants more is killed", greedy.code == 137, greedy)
    build_copied(base, place.scratch)
    copied = podman("--network=none", COPIED, "nimpull", "--version")
    place.check("nimpull copied onto another image starts", copied.code == 0, copied)


def check_trust(place: Place, authority: trustme.CA, registry: Registry) -> None:
    store = volume(place.scratch, "untrusting")
    refused = place.hub(registry, store, trusting=False)
    error = report_of(store).get("error") or {}
    place.check("F27 without the CA: exit 31", refused.code == 31, refused)
    place.check("F27 without the CA: tls-untrusted", error.get("reference") == "tls-untrusted", error)
    place.check("F27 without the CA: no request got through", not registry.requests, registry.requests)

    custom = place.scratch / "custom"
    custom.mkdir()
    authority.cert_pem.write_to_path(custom / "corp.pem")
    place.etc_ssl.mkdir()
    mounts = [f"--volume={custom}:/custom", f"--volume={place.etc_ssl}:/ca-certs"]
    updated = podman("--user=0", "--network=none", *mounts, IMAGE, "/bin/sh", "-c", UPDATE_CAS)
    bundle = place.etc_ssl / "certs/ca-certificates.crt"
    there = bundle.is_file() and authority.cert_pem.bytes().decode().strip() in bundle.read_text()
    place.check("F27 the init container adds the CA", updated.code == 0 and there, updated)


def check_sigterm(place: Place, registry: Registry) -> None:
    """As PID 1 a process without a handler would not even notice SIGTERM."""
    store = volume(place.scratch, "stopped")
    reached, release = Event(), Event()

    def hold(_request: Request, answer: Answer) -> Answer:
        reached.set()
        return replace(answer, hold=release)

    registry.faults.append(Fault(hold, times=None))
    with ThreadPoolExecutor(1) as pool:
        try:
            running = pool.submit(place.hub, registry, store)
            asked = reached.wait(60)
            begun = time.monotonic()
            subprocess.run([*PODMAN, "kill", "--signal=TERM", CONTAINER], check=False, capture_output=True)
            stopped = running.result(120)
            seconds = time.monotonic() - begun
        finally:
            release.set()
            registry.faults.clear()
    good = asked and stopped.code == 143 and seconds < 5
    place.check("F41 SIGTERM to PID 1: exit 143 within 5 s", good, (asked, seconds, stopped))


def check_pull(place: Place, registry: Registry, store: Path) -> None:
    pulled = place.hub(registry, store)
    place.check(f"F27 F38 pull through the CA, {WEIGHTS // MIB} MiB under {MEMORY}", pulled.code == 0, pulled)
    state = report_of(store)["status"].get("state")
    place.check("F27 the report in the store says Ready", state == "Ready", state)
    different = changed(place.files, store)
    place.check("F27 the files are byte-identical", not different, different)
    unreadable = foreign(store)
    place.check("the volume's group can read every file", not unreadable, unreadable)
    place.check("no secret in the log", registry.hub.token not in pulled.text)


def check_proxy(place: Place, registry: Registry, proxy: Proxy) -> None:
    refused_store, store = volume(place.scratch, "refused"), volume(place.scratch, "proxied")
    before = len(registry.requests)
    refused = place.ngc(registry, refused_store, f"http://job:wrong-{PROXY_PASSWORD}@{proxy.address}")
    error = report_of(refused_store).get("error") or {}
    found = refused.code, error.get("reference")
    place.check("F28 wrong credentials: exit 32, proxy-failed", found == (32, "proxy-failed"), refused)
    place.check("F28 wrong credentials: nothing goes past the proxy", len(registry.requests) == before)

    accepted = sum(server.accepted for server in registry.servers)
    tunnels = len(proxy.seen)
    pulled = place.ngc(registry, store, f"http://job:{PROXY_PASSWORD}@{proxy.address}")
    place.check("F28 pull through the proxy with credentials", pulled.code == 0, pulled)
    state = report_of(store)["status"].get("state")
    place.check("F28 the report in the store says Ready", state == "Ready", state)
    small = {name: path for name, path in place.files.items() if name != "model.safetensors"}
    different = changed(small, store / f"ngc/hub/models--nim--acme--tiny/snapshots/{VERSION}")
    place.check("F28 the files are byte-identical", not different, different)
    counts = sum(server.accepted for server in registry.servers) - accepted, len(proxy.seen) - tunnels
    place.check("F28 every connection came through the proxy", counts[0] == counts[1] > 0, counts)
    logs = refused.text + pulled.text + json.dumps([report_of(refused_store), report_of(store)])
    leaked = [secret for secret in (PROXY_PASSWORD, registry.ngc.key) if secret in logs]
    place.check("F28 no secret in logs and reports", not leaked, leaked)


@contextmanager
def registry_over_tls(authority: trustme.CA, files: dict[str, Path]) -> Iterator[Registry]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with Registry(tls=context) as registry:
        registry.add_hub_repo("acme/tiny", files)
        registry.add_ngc_model("nim", "acme", "tiny", VERSION, files, checksums=True)
        yield registry


def main() -> int:
    base = sys.argv[1]
    check = Checks()
    print(f"building on {base} …", flush=True)
    build(base)
    with tempfile.TemporaryDirectory(prefix="nimpull-image-") as scratch_name:
        scratch = Path(scratch_name)
        scratch.chmod(0o755)
        place = Place(check, scratch, model_files(scratch), scratch / "etc-ssl")
        check_image(place, base)
        authority = trustme.CA()
        wanted = "Basic " + base64.b64encode(f"job:{PROXY_PASSWORD}".encode()).decode()
        store = volume(scratch, "store")
        with registry_over_tls(authority, place.files) as registry:
            check_trust(place, authority, registry)
            check_pull(place, registry, store)
            check_sigterm(place, registry)
            with Proxy(ProxyRules(authorization=wanted)) as proxy:
                check_proxy(place, registry, proxy)
        again = place.hub(registry, store)
        check("a complete store is Ready without the registry", again.code == 0, again)
    return check.close()


if __name__ == "__main__":
    sys.exit(main())
