"""A cluster for one Job, on this machine: its volume, its secrets, the registries that it reaches."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.buckets import Bucket, mirrored, model_bucket
from tests.calls import FILES
from tests.jobs import COMMIT, LATENCY, PULL_REQUEST, VERSIONS, Job
from tests.pods import as_user, run, volume
from tests.registry import Registry
from tests.running import check as check_schema
from tests.servers import Answer as Scripted
from tests.servers import Proxy, ScriptedServer

#: path -> what tells that a file was written again
Inventory = Mapping[str, tuple[int, int, int, int]]


@dataclass(slots=True)
class Cluster:
    """``places``: what the world's addresses and the pod's mounts are here. ``world``: what ``close`` ends.

    ``fixed``: variables that stand for what is in the image and on the node.
    """

    root: Path
    commands: Path
    registry: Registry
    proxy: Proxy
    places: Mapping[str, str]
    secrets: Mapping[str, str]
    fixed: Mapping[str, str]
    world: ExitStack = field(default_factory=ExitStack)

    def here(self, job: Job, text: str) -> str:
        mounts = {path: str(self.root / "pvc" / sub) for path, sub in job.mounts.items()}
        for there, here in {**self.places, **mounts}.items():
            text = text.replace(there, here)
        return text

    def store(self, job: Job) -> Path:
        return Path(self.here(job, job.store))

    def environment(self, job: Job, changes: Mapping[str, str]) -> dict[str, str]:
        """The Job's own variables over those of the secrets, and ``changes`` over both."""
        secrets = {name: self.secrets[name] for name in job.secrets}
        own = {name: self.here(job, value) for name, value in {**job.env, **changes}.items()}
        manifest = self.root / "model_manifest.yaml"
        if job.manifest:
            manifest.write_text(job.manifest)
        found = {"NIM_MANIFEST_PATH": str(manifest)} if job.manifest else {}
        kubelet = {"PATH": f"{self.commands}:{os.environ['PATH']}", "KUBERNETES_SERVICE_HOST": "10.96.0.1"}
        return {**kubelet, **self.fixed, **found, **secrets, **own}

    def run(
        self,
        job: Job,
        changes: Mapping[str, str] | None = None,
        *,
        under: Sequence[str] = (),
        prepared: bool = False,
    ) -> tuple[int, str]:
        """A pod: kubelet prepares the mounts and the file for the termination message. (exit code, log)

        ``changes``: variables that differ from the Job's. ``under``: a command before its own.
        ``prepared``: the volume is as it must be, kubelet changes nothing about it.
        """
        for sub_path in () if prepared else set(job.mounts.values()):
            volume(self.root / "pvc", job.user[1], sub_path)
        for name in ("scratch", "workdir"):
            (self.root / name).mkdir(exist_ok=True)
            (self.root / name).chmod(0o777)
        log = self.root / "termination-log"
        log.write_bytes(b"")
        log.chmod(0o666)
        for model in self.registry.ngc.models.values():
            model.public = job.public
        environment = self.environment(job, changes or {})
        user, directory = as_user(*job.user), self.root / "workdir"
        if job.init:
            init = [self.here(job, word) for word in job.init]
            code, text = run(init, environment, under=user, directory=directory)
            assert code == 0, text
        command = [self.here(job, word) for word in job.command] or ["nimpull"]
        return run(command, environment, under=(*under, *user), directory=directory)

    def report(self, job: Job) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.store(job) / ".nimpull/report.json").read_text())
        check_schema(document)
        return document

    def message(self) -> dict[str, Any]:
        """The termination message."""
        text = (self.root / "termination-log").read_bytes()
        assert len(text) <= 4096
        document: dict[str, Any] = json.loads(text)
        return document

    def inventory(self) -> Inventory:
        """What is on the volume, without the report: a run that does nothing writes that alone."""
        found = {}
        for path in sorted((self.root / "pvc").rglob("*")):
            stat = path.lstat()
            if path.name != "report.json" and not path.is_dir():
                found[str(path)] = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_mode)
        return found


@contextmanager
def a_cluster(root: Path, commands: Path) -> Iterator[Cluster]:
    with ExitStack() as world:
        registry = world.enter_context(Registry())
        proxy = world.enter_context(Proxy())
        mirror = world.enter_context(ScriptedServer(buckets(mirror_of_ngc(), model_bucket(FILES))))
        stock(registry)
        mirrored = mirror.url().reveal().rstrip("/")
        places = {
            "http://nemodatastore-sample.nemo.svc.cluster.local:8000/v1/hf": registry.datastore_url,
            "https://huggingface.co": registry.hub_url,
            "http://proxy.corp:3128": proxy.url().reveal().rstrip("/"),
            "https://<server-name>:<port>/": f"{mirrored}/nim_bucket/",
            "jfrog://<server-name>:<port>/": registry.ngc_url.replace("http://", "jfrog://"),
            "/scratch": str(root / "scratch"),
        }
        secrets = {
            "NGC_API_KEY": registry.ngc.key,
            "HF_TOKEN": registry.hub.token,
            "AWS_ENDPOINT_URL": mirrored,
            "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": "aws-canary",
            "AWS_REGION": "us-east-1",
        }
        fixed = {
            "HF_ENDPOINT": registry.hub_url,
            "NGC_API_ENDPOINT": registry.ngc_url,
            "NGC_AUTH_ENDPOINT": registry.ngc_url,
            **on_this_node(root),
        }
        yield Cluster(root, commands, registry, proxy, places, secrets, fixed, world)


def on_this_node(root: Path) -> dict[str, str]:
    """What the node has and the tests want: GPUs, the file of kubelet's, no patience."""
    return {
        "NIMPULL_GPUS": "H100:1",
        "NIMPULL_RETRY_SECONDS": "0",
        "NIMPULL_TERMINATION_LOG": str(root / "termination-log"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def stock(registry: Registry) -> None:
    """The models that the Jobs ask for."""
    for version, files in VERSIONS.items():
        registry.add_ngc_model("nim", "meta", "tiny", version, files)
    registry.add_ngc_model("acme", "", "tiny", "1.0", FILES)
    for namespace in ("acme", "default", "team-a"):
        registry.add_hub_repo(f"{namespace}/Tiny-LM", FILES)
        registry.add_hub_repo(f"{namespace}/Tiny-LM", PULL_REQUEST, branches=("refs/pr/7",))
        registry.add_hub_repo(f"{namespace}/tiny-set", FILES, commit=COMMIT, repo_type="dataset")


def buckets(mirror: Bucket, models: Bucket) -> Scripted:
    """Two buckets of one S3."""
    return lambda seen, peer: (models if seen.target.startswith("/bucket") else mirror)(seen, peer)


def mirror_of_ngc() -> Bucket:
    models = {f"ngc://nim/meta/tiny:{version}": files for version, files in VERSIONS.items()}
    return Bucket("/nim_bucket/", mirrored(models))


def check_ready(cluster: Cluster, job: Job) -> None:
    report = cluster.report(job)
    assert report["status"]["state"] == cluster.message()["status"]["state"] == "Ready"
    named = {profile["name"]: profile for profile in report["status"]["profiles"]}
    assert set(named) == set(job.profiles)
    if LATENCY in named:
        assert (named[LATENCY]["model"], named[LATENCY]["release"]) == ("meta/tiny", "1.0.0")
        assert named[LATENCY]["config"]["gpu_device"] == "2330:10de"
    assert all(artifact["digest"] for artifact in report["artifacts"])
