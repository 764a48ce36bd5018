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

from scripts.containers import (
    CONTAINER,
    GROUP,
    IMAGE,
    MEMORY,
    PODMAN,
    PROBE,
    UPDATE_CAS,
    Pod,
    Ran,
    as_operator,
    build,
    build_from,
    engine,
    is_here,
    podman,
    volume,
)
from scripts.pull_demo import VERSION, manifest
from tests.registry import Answer, Fault, Registry, Request
from tests.servers import Proxy, ProxyRules

MIB = 1 << 20
WEIGHTS = 640 * MIB  # more than the memory limit, so that buffers and page cache would show
LONG = f"{'n' * 251}.bin"  # the longest name that file systems take
PROXY_PASSWORD = "proxy-canary-7d1f"  # opens nothing but the proxy below
TERMINATION_LOG = "/dev/termination-log"
MANIFEST = "/opt/nim/etc/default/model_manifest.yaml"
PROFILE = hashlib.sha256(b"tinyH100").hexdigest()
BUILT_FROM = ("Dockerfile", ".dockerignore", "LICENSE", "README.md", "pyproject.toml")


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


def model_files(scratch: Path) -> dict[str, Path]:
    root = scratch / "model"
    root.mkdir()
    (root / "config.json").write_text('{"model_type": "tiny"}\n')
    (root / LONG).write_bytes(b"long")
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

    @property
    def small(self) -> dict[str, Path]:
        return {name: path for name, path in self.files.items() if name != "model.safetensors"}

    def manifest(self) -> bytes:
        """Of the small files, as a NIM image carries one."""
        directory = self.scratch / "manifest"
        directory.mkdir(exist_ok=True)
        return manifest("nim", "acme", "tiny", self.small, directory).read_bytes()

    def hub(self, registry: Registry, store: Path, pod: Pod | None = None, *, trusting: bool = True) -> Ran:
        """The Job of a Hugging Face cache; kubelet makes the file for the termination message."""
        command = ["huggingface-cli", "download", "acme/tiny", "--local-dir", "/model-store"]
        variables = {"HF_ENDPOINT": registry.hub_url, "HF_TOKEN": registry.hub.token}
        variables |= {"HF_HOME": "/model-store/huggingface/hub", "NIM_CACHE_PATH": "/model-store"}
        log = self.message(store)
        log.write_bytes(b"")
        log.chmod(0o666)
        mounts = {store: "/model-store", log: TERMINATION_LOG}
        mounts |= {self.etc_ssl: "/etc/ssl"} if trusting else {}
        return as_operator([*command, "--repo-type", "model"], mounts, variables, pod)

    def message(self, store: Path) -> Path:
        return self.scratch / f"message-{store.name}"

    def ngc(
        self, registry: Registry, store: Path, pod: Pod | None = None, *, proxy: str = "", key: str = ""
    ) -> Ran:
        """An NGC cache, perhaps behind a proxy. An image of nimpull's own gets its manifest from a
        ConfigMap (docs/image.md, way 2)."""
        variables = {"NGC_API_KEY": key or registry.ngc.key}
        variables |= {"NGC_API_ENDPOINT": registry.ngc_url, "NGC_AUTH_ENDPOINT": registry.ngc_url}
        variables |= {"NIM_CACHE_PATH": "/model-store", "NIM_SDK_USE_NATIVE_TLS": "1"}
        variables |= {"NIMPULL_RETRY_SECONDS": "0"}
        variables |= dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"), proxy)
        variables |= {"NO_PROXY": "10.0.0.0/8,.svc", "no_proxy": "10.0.0.0/8,.svc"}
        mounts = {store: "/model-store", self.etc_ssl: "/etc/ssl"}
        if pod is None or pod.image == IMAGE:
            self.manifest()
            mounts |= {self.scratch / "manifest": "/manifest"}
            variables |= {"NIM_MANIFEST_PATH": "/manifest/model_manifest.yaml"}
        return as_operator(["download-to-cache", "--profiles", PROFILE], mounts, variables, pod)

    def snapshot(self, store: Path) -> Path:
        return store / f"ngc/hub/models--nim--acme--tiny/snapshots/{VERSION}"


# -- the image itself --------------------------------------------------------------------------------------


def build_all(place: Place, base: str) -> None:
    """The default image, and one with a manifest by the build argument (docs/image.md, way 1)."""
    context = place.scratch / "source"
    context.mkdir()
    for name in BUILT_FROM:
        shutil.copy2(name, context / name)
    for name in ("image", "man", "nimpull", "profiles"):
        shutil.copytree(name, context / name, ignore=shutil.ignore_patterns("__pycache__"))
    (context / "image/tiny.yaml").write_bytes(place.manifest())
    options = ("--pull=never" if is_here(base) else "--pull=true", f"--build-arg=BASE={base}")
    build(context, IMAGE, *options)
    build(context, f"{IMAGE}-argument", "--build-arg=MANIFEST=image/tiny.yaml", *options)
    build(context, f"{IMAGE}-none", "--target=runtime", *options)


#: How the operator's probe finds out by which command an image downloads.
CAPABILITIES = "command -v download-to-cache >/dev/null && python3 -c 'from nimlib import nimutils'"


def probed(image: str) -> Ran:
    return as_operator(["sh", "-c", PROBE], {}, {}, Pod(image))


def check_image(place: Place) -> None:
    carried = Path("image/model_manifest.yaml").read_text()
    probe = probed(IMAGE)
    found = (probe.code, probe.text) == (0, carried)
    place.check("the probe pod reads the manifest, and nothing else", found, probe)
    none = probed(f"{IMAGE}-none")
    place.check("without a manifest it says so", none.text == "model_manifest.yaml not found\n", none)
    able = as_operator(["sh", "-c", CAPABILITIES], {}, {})
    place.check("what the operator asks the image for is there", (able.code, able.text) == (0, ""), able)
    call = "from nimlib import nimutils; nimutils.download_models()"
    asked = as_operator(["python3", "-c", call], {}, {})
    place.check("the operator's call of nimlib is a download", asked.code == 11, asked)
    greedy = as_operator(["/opt/nimpull/bin/python3", "-c", f"print(len(b'x' * {WEIGHTS}))"], {}, {})
    place.check(f"{MEMORY} is a limit: a process that wants more is killed", greedy.code == 137, greedy)


def check_manifests(place: Place, base: str, registry: Registry) -> None:
    """The ways for a manifest to get in, but for the ConfigMap of ``Place.ngc``; and out of a NIM image."""
    given = place.manifest()
    nim = build_from(
        place.scratch, "nim", f"FROM {base}", f"COPY model_manifest.yaml {MANIFEST}", manifest=given
    )
    environment = {**os.environ, "ENGINE": str(engine(place.scratch))}
    extracted = subprocess.run(
        ["scripts/extract-manifest", nim], env=environment, check=False, capture_output=True
    )
    place.check("extract-manifest takes it out of a NIM image", extracted.stdout == given, extracted)
    absent = subprocess.run(
        ["scripts/extract-manifest", f"{IMAGE}-none"], env=environment, check=False, capture_output=True
    )
    place.check("extract-manifest fails where there is none", absent.returncode == 3, absent)
    child = (f"FROM {IMAGE}", f"COPY --chmod=0444 model_manifest.yaml {MANIFEST}")
    copied = (
        f"FROM {nim}",
        f"COPY --from={IMAGE} /opt/nimpull /opt/nimpull",
        "ENV PATH=/opt/nimpull/commands:$PATH",
    )
    images = {
        "way 1, the build argument": f"{IMAGE}-argument",
        "way 1, a thin child": build_from(place.scratch, "child", *child, manifest=given),
        "way 3, copied onto a NIM image": build_from(place.scratch, "copied", *copied),
    }
    for way, image in images.items():
        probe = probed(image)
        place.check(f"{way}: the probe pod reads it", probe.text == given.decode(), probe)
        store = volume(place.scratch, image.rpartition("-")[2])
        pulled = place.ngc(registry, store, Pod(image))
        different = changed(place.small, place.snapshot(store))
        place.check(f"{way}: its profile is pulled", pulled.code == 0 and not different, (pulled, different))


# -- Jobs --------------------------------------------------------------------------------------------------


def check_trust(place: Place, authority: trustme.CA, registry: Registry) -> None:
    store = volume(place.scratch, "untrusting")
    refused = place.hub(registry, store, trusting=False)
    error = report_of(store).get("error") or {}
    place.check("F27 without the CA: exit 31", refused.code == 31, refused)
    place.check("F27 without the CA: tls-untrusted", error.get("reference") == "tls-untrusted", error)
    place.check("F27 without the CA: no request got through", not registry.requests, registry.requests)
    message = json.loads(place.message(store).read_bytes() or b"{}")
    place.check(f"F27 {TERMINATION_LOG} has the error", message.get("error") == error, message)
    last = refused.text.splitlines()[-1]
    place.check("F27 the last line has it", "tls-untrusted" in last and "proxy.certConfigMap" in last, last)

    custom = place.scratch / "custom"
    custom.mkdir()
    authority.cert_pem.write_to_path(custom / "corp.pem")
    place.etc_ssl.mkdir()
    mounts = [f"--volume={custom}:/custom", f"--volume={place.etc_ssl}:/ca-certs"]
    updated = podman("--user=0", "--network=none", *mounts, IMAGE, "/bin/sh", "-c", UPDATE_CAS)
    bundle = place.etc_ssl / "certs/ca-certificates.crt"
    there = bundle.is_file() and authority.cert_pem.bytes().decode().strip() in bundle.read_text()
    place.check("F27 the init container adds the CA", updated.code == 0 and there, updated)


def check_pull(place: Place, registry: Registry, store: Path) -> None:
    pulled = place.hub(registry, store)
    place.check(f"F27 F38 pull through the CA, {WEIGHTS // MIB} MiB under {MEMORY}", pulled.code == 0, pulled)
    state = report_of(store)["status"].get("state")
    place.check("F27 the report in the store says Ready", state == "Ready", state)
    different = changed(place.files, store)
    place.check("F27 F37 the files are byte-identical, and one has a name of 255 bytes", not different)
    unreadable = foreign(store)
    place.check("the volume's group can read every file", not unreadable, unreadable)
    place.check("no secret in the log", registry.hub.token not in pulled.text)


def check_ids(place: Place, registry: Registry, store: Path) -> None:
    """As OpenShift does: any uid, group 0, the volume's group beside it. And a reader of yet another uid."""
    other = volume(place.scratch, "openshift")
    pulled = place.ngc(registry, other, Pod(user=1000680000, group=0, groups=(GROUP,)))
    different = changed(place.small, place.snapshot(other))
    place.check("F38 any uid pulls", pulled.code == 0 and not different, (pulled, different))
    unreadable = foreign(other)
    place.check("F38 the volume's group can read its files", not unreadable, unreadable)
    again = place.ngc(registry, other, Pod(user=1234, group=GROUP))
    place.check("F38 another uid of the group runs on the same store", again.code == 0, again)
    read = ["sh", "-c", "cd /model-store && cat config.json tokenizer.json model.safetensors | sha256sum"]
    seen = as_operator(read, {store: "/model-store:ro"}, {}, Pod(user=4321))
    whole = hashlib.sha256()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        whole.update(place.files[name].read_bytes())
    place.check("a reader of another uid reads all of a read-only mount", whole.hexdigest() in seen.out, seen)


@contextmanager
def held(registry: Registry, at: int = 0) -> Iterator[tuple[Event, Event]]:
    """(reached, release): every answer that has byte ``at`` of its file stops there until it is released."""
    reached, release = Event(), Event()

    def hold(_request: Request, answer: Answer) -> Answer:
        if not answer.start <= at < answer.end:
            return answer
        reached.set()
        return replace(answer, hold=release, hold_at=at - answer.start)

    registry.faults.append(Fault(hold, times=None))
    try:
        yield reached, release
    finally:
        release.set()
        registry.faults.clear()


def check_sigterm(place: Place, registry: Registry) -> None:
    """As PID 1 a process without a handler would not even notice SIGTERM."""
    store = volume(place.scratch, "stopped")
    with ThreadPoolExecutor(1) as pool, held(registry) as (reached, _):
        running = pool.submit(place.hub, registry, store)
        asked = reached.wait(60)
        begun = time.monotonic()
        subprocess.run([*PODMAN, "kill", "--signal=TERM", CONTAINER], check=False, capture_output=True)
        stopped = running.result(120)
        seconds = time.monotonic() - begun
    good = asked and stopped.code == 143 and seconds < 5
    place.check("F41 SIGTERM to PID 1: exit 143 within 5 s", good, (asked, seconds, stopped))


def written(store: Path) -> bool:
    """Whether a journal has a line."""
    return any(journal.stat().st_size > 8 for journal in store.glob(".nimpull/ingest/*/journal"))


def check_cleaner(place: Place, registry: Registry) -> None:
    store = volume(place.scratch, "cleaned")
    with ThreadPoolExecutor(1) as pool, held(registry, WEIGHTS - MIB) as (reached, release):
        running = pool.submit(place.hub, registry, store)
        asked = reached.wait(60)
        while not (begun := written(store)) and not running.done():
            release.wait(0.02)
        early = (store / "model.safetensors").exists()
        shutil.rmtree(store / ".nimpull/ingest")
        registry.faults.clear()
        release.set()
        pulled = running.result(120)
    place.check("F49 half a file is not seen by its name", asked and begun and not early)
    different = changed(place.files, store)
    place.check("F49 an ingest that is taken away is rebuilt", pulled.code == 0 and not different, pulled)


def check_bearer(place: Place, registry: Registry) -> None:
    """A legacy key is exchanged for a token, which ends after the listing, and so do the presigned URLs."""

    def expire(_request: Request, answer: Answer) -> Answer:
        registry.ngc.tokens.clear()
        registry.expire_urls()
        return answer

    store, before = volume(place.scratch, "expired"), len(registry.log("ngc", "/token"))
    registry.faults.append(Fault(expire, server="ngc", path="/files"))
    pulled = place.ngc(registry, store, key=registry.ngc.legacy_key)
    registry.faults.clear()
    exchanges = len(registry.log("ngc", "/token")) - before
    different = changed(place.small, place.snapshot(store))
    good = pulled.code == 0 and not different and exchanges == 2
    place.check("F20 F21 a token that ends during the pull is renewed once", good, (exchanges, pulled))


def check_proxy(place: Place, registry: Registry, proxy: Proxy) -> None:
    refused_store, store = volume(place.scratch, "refused"), volume(place.scratch, "proxied")
    before = len(registry.requests)
    wrong = f"http://job:wrong-{PROXY_PASSWORD}@{proxy.address}"
    refused = place.ngc(registry, refused_store, proxy=wrong)
    error = report_of(refused_store).get("error") or {}
    found = refused.code, error.get("reference")
    place.check("F28 wrong credentials: exit 32, proxy-failed", found == (32, "proxy-failed"), refused)
    place.check("F28 wrong credentials: nothing goes past the proxy", len(registry.requests) == before)

    accepted = sum(server.accepted for server in registry.servers)
    tunnels = len(proxy.seen)
    pulled = place.ngc(registry, store, proxy=f"http://job:{PROXY_PASSWORD}@{proxy.address}")
    place.check("F28 pull through the proxy with credentials", pulled.code == 0, pulled)
    state = report_of(store)["status"].get("state")
    place.check("F28 the report in the store says Ready", state == "Ready", state)
    different = changed(place.small, place.snapshot(store))
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
    with tempfile.TemporaryDirectory(prefix="nimpull-image-") as scratch_name:
        scratch = Path(scratch_name)
        scratch.chmod(0o755)
        place = Place(check, scratch, model_files(scratch), scratch / "etc-ssl")
        print(f"building on {base} …", flush=True)
        build_all(place, base)
        check_image(place)
        authority = trustme.CA()
        wanted = "Basic " + base64.b64encode(f"job:{PROXY_PASSWORD}".encode()).decode()
        store = volume(scratch, "store")
        with registry_over_tls(authority, place.files) as registry:
            check_trust(place, authority, registry)
            check_pull(place, registry, store)
            check_ids(place, registry, store)
            check_manifests(place, base, registry)
            check_sigterm(place, registry)
            check_cleaner(place, registry)
            check_bearer(place, registry)
            with Proxy(ProxyRules(authorization=wanted)) as proxy:
                check_proxy(place, registry, proxy)
        again = place.hub(registry, store)
        check("a complete store is Ready without the registry", again.code == 0, again)
    return check.close()


if __name__ == "__main__":
    sys.exit(main())
