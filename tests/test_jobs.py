"""The Jobs that the NIM Operator renders, one row for each kind: its command, args and env, run as they are.

``/model-store``, ``/model`` and ``/scratch`` are mounts below a temporary directory, the registries of the
world are on loopback, and the secrets that the Job takes with ``envFrom`` stand beside its own variables.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.registry import Registry
from tests.servers import Proxy, ScriptedServer
from tests.test_container import bucket
from tests.test_names import FILES, invoke, plain

FIRST, SECOND = "a" * 64, "b" * 64
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PULL_REQUEST = {"config.json": b'{"pr": 7}'}
WORKSPACE = {"config.json": FILES["config.json"], "engine/model.bin": FILES["weights/model.bin"]}
MANIFEST = f"""schema_version: '2.0'
profiles:
- id: {FIRST}
  tags: {{llm_engine: vllm, precision: fp16, tp: '1'}}
  workspace:
    files:
      config.json: {{uri: 'ngc://nim/meta/tiny:hf-1?file=config.json'}}
      engine/model.bin: {{uri: 'ngc://nim/meta/tiny:hf-1?file=weights/model.bin'}}
- id: {SECOND}
  tags: {{llm_engine: vllm, precision: fp8, tp: '8'}}
  workspace:
    files:
      config.json: {{uri: 'ngc://nim/meta/tiny:fp8-1?file=config.json'}}
"""

NGC = {"NIM_CACHE_PATH": "/model-store"}
HUB = {
    "HF_ENDPOINT": "https://huggingface.co",
    "HF_HUB_OFFLINE": "0",
    "NIM_CACHE_PATH": "/model-store",
    "HF_HOME": "/model-store/huggingface/hub",
}
DATASTORE = {**HUB, "HF_ENDPOINT": "http://nemodatastore-sample.nemo.svc.cluster.local:8000/v1/hf"}
PROXY = {
    "NIM_SDK_USE_NATIVE_TLS": "1",
    "HTTPS_PROXY": "http://proxy.corp:3128",
    "HTTP_PROXY": "http://proxy.corp:3128",
    "NO_PROXY": "10.0.0.0/8,.svc,.cluster.local",
    "https_proxy": "http://proxy.corp:3128",
    "http_proxy": "http://proxy.corp:3128",
    "no_proxy": "10.0.0.0/8,.svc,.cluster.local",
}
NATIVE = {"NIM_ENGINE_MODEL_DOWNLOAD_ONLY": "1", "NIM_ENGINE_MODEL_PATH": "/model/retriever-native"}
TO_CACHE = "download-to-cache"
LOCAL = ("--local-dir", "/model-store", "--repo-type")
RUNTIME = ("--manifest-file", "/model-store/model_manifest.json")

Check = Callable[[Path], object]


def in_ngc_cache(*versions: str) -> Check:
    def check(store: Path) -> None:
        snapshots = store / "ngc/hub/models--nim--meta--tiny/snapshots"
        assert {path.name for path in snapshots.iterdir()} == set(versions)
        for version in versions:
            assert (snapshots / version / "config.json").read_bytes() == FILES["config.json"]

    return check


def plain_tree(files: Mapping[str, bytes]) -> Check:
    def check(store: Path) -> None:
        assert plain(store) == files

    return check


def in_hub_cache(hub: str) -> Check:
    def check(store: Path) -> None:
        (snapshot,) = (store / hub).glob("models--*--Tiny-LM/snapshots/*")
        assert {path: (snapshot / path).read_bytes() for path in FILES} == FILES
        for path in FILES:  # NIM_MODEL_NAME=/model-store finds it as well, with the bytes on disk once
            assert (store / path).samefile(snapshot / path)
        written = json.loads((store / "model_manifest.json").read_text())
        assert set(written["profiles"][0]["workspace"]["files"]) == set(FILES)

    return check


@dataclass(frozen=True, slots=True)
class Job:
    """``store``: where its report is; ``fails``: (env that makes it fail, exit code)."""

    command: tuple[str, ...]
    env: Mapping[str, str]
    check: Check
    store: str = "/model-store"
    fails: tuple[Mapping[str, str], int] = field(default=({}, 0))


BAD_KEY = ({"NGC_API_KEY": "nvapi-wrong"}, 20)
NOBODY = ({"HF_ENDPOINT": "http://127.0.0.1:1"}, 30)
JOBS = {
    "ngc-profiles-one": Job(
        (TO_CACHE, "--profiles", FIRST), NGC, in_ngc_cache("hf-1"), fails=({"NGC_API_KEY": ""}, 20)
    ),
    "ngc-profiles-two": Job(
        (TO_CACHE, "--profiles", SECOND, FIRST), NGC, in_ngc_cache("hf-1", "fp8-1"), fails=BAD_KEY
    ),
    "ngc-profiles-all": Job(
        (TO_CACHE, "--all"),
        NGC,
        in_ngc_cache("hf-1", "fp8-1"),
        fails=({"NGC_API_ENDPOINT": "http://127.0.0.1:1"}, 30),
    ),
    "ngc-proxy": Job(
        (TO_CACHE, "--all"),
        {**PROXY, **NGC},
        in_ngc_cache("hf-1", "fp8-1"),
        fails=({"http_proxy": "http://127.0.0.1:1"}, 32),
    ),
    "ngc-env": Job(
        (TO_CACHE, "--profiles", FIRST),
        {"NGC_HOME": "/scratch/ngc", "NIM_CACHE_PATH": "/model-store/sub", "NIM_LOG_LEVEL": "DEBUG"},
        in_ngc_cache("hf-1"),
        store="/model-store/sub",
    ),
    "ngc-mirror-https": Job(
        (TO_CACHE, "--profiles", FIRST),
        {"NIM_REPOSITORY_OVERRIDE": "https://<server-name>:<port>/", **NGC},
        in_ngc_cache("hf-1"),
        fails=({"NIM_REPOSITORY_OVERRIDE": "jfrog://<server-name>:<port>/"}, 2),
    ),
    "ngc-mirror-s3": Job(
        (TO_CACHE, "--profiles", FIRST),
        {
            "NIM_REPOSITORY_OVERRIDE": "s3://nim_bucket/",
            "AWS_PROFILE": "default",
            "AWS_REGION": "us-east-1",
            **NGC,
        },
        in_ngc_cache("hf-1"),
        fails=({"NIM_REPOSITORY_OVERRIDE": "s3://other-bucket/"}, 21),
    ),
    "ngc-universal-ngc": Job(
        ("create-model-store", "--model-repo", "ngc://nim/meta/tiny:hf-1", "--model-store", "/model-store"),
        NGC,
        plain_tree(FILES),
        fails=BAD_KEY,
    ),
    "ngc-universal-hf": Job(
        ("create-model-store", "--model-repo", "hf://acme/Tiny-LM", "--model-store", "/model-store"),
        NGC,
        plain_tree(FILES),
        fails=NOBODY,
    ),
    "ngc-native": Job((), NATIVE, plain_tree(WORKSPACE), store="/model/retriever-native", fails=BAD_KEY),
    "ngc-native-proxy-ca": Job(
        (), {**PROXY, **NATIVE}, plain_tree(WORKSPACE), store="/model/retriever-native"
    ),
    "hf-model-cli": Job(
        ("huggingface-cli", "download", "acme/Tiny-LM", *LOCAL, "model"), HUB, plain_tree(FILES), fails=NOBODY
    ),
    "hf-model-revision-cli": Job(
        ("huggingface-cli", "download", "acme/Tiny-LM", *LOCAL, "model", "--revision", "refs/pr/7"),
        HUB,
        plain_tree(PULL_REQUEST),
    ),
    "hf-dataset-cli": Job(
        ("huggingface-cli", "download", "acme/tiny-set", *LOCAL, "dataset"), HUB, plain_tree(FILES)
    ),
    "hf-model-modelfree": Job(
        (TO_CACHE, "--model-uri", "hf://acme/Tiny-LM", *RUNTIME),
        HUB,
        in_hub_cache("huggingface/hub/hub"),
        fails=NOBODY,
    ),
    "hf-model-env-proxy-ca-cli": Job(
        ("huggingface-cli", "download", "acme/Tiny-LM", *LOCAL, "model"),
        {**PROXY, **HUB, "HF_HOME": "/scratch/hf", "HF_HUB_DOWNLOAD_TIMEOUT": "60"},
        plain_tree(FILES),
    ),
    "hf-model-env-proxy-ca-modelfree": Job(
        (TO_CACHE, "--model-uri", "hf://acme/Tiny-LM", *RUNTIME),
        {**PROXY, **HUB, "HF_HOME": "/scratch/hf", "HF_HUB_DOWNLOAD_TIMEOUT": "60"},
        in_hub_cache("huggingface/hub"),
    ),
    "datastore-model-cli": Job(
        ("huggingface-cli", "download", "default/Tiny-LM", *LOCAL, "model"),
        DATASTORE,
        plain_tree(FILES),
        fails=NOBODY,
    ),
    "datastore-model-modelfree": Job(
        (TO_CACHE, "--model-uri", "hf://default/Tiny-LM", *RUNTIME),
        DATASTORE,
        in_hub_cache("huggingface/hub/hub"),
    ),
    "datastore-model-revision-cli": Job(
        ("huggingface-cli", "download", "default/Tiny-LM", *LOCAL, "model", "--revision", "main"),
        DATASTORE,
        plain_tree(FILES),
    ),
    "datastore-dataset-revision-cli": Job(
        ("huggingface-cli", "download", "default/tiny-set", *LOCAL, "dataset", "--revision", COMMIT),
        DATASTORE,
        plain_tree(FILES),
    ),
}


#: Any write by an absolute path outside the mounts ends the process, and nobody has a name or a home.
LOCKED_DOWN = """
import os, pwd, sys
def nobody(uid): raise KeyError(uid)
pwd.getpwuid = nobody
def watch(event, arguments):
    if event == "open":
        path, flags = arguments[0], arguments[2]
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    else:
        path, writes = arguments[0] if arguments else "", event in ("os.mkdir", "os.rename", "os.link")
    if writes and isinstance(path, str) and path.startswith("/") and not path.startswith(ALLOWED):
        sys.stderr.write(f"writes to {path}\\n")
        os._exit(99)
sys.addaudithook(watch)
"""


@dataclass(slots=True)
class Cluster:
    """``places``: what the world's addresses and the pod's mounts are here."""

    root: Path
    registry: Registry
    places: tuple[tuple[str, str], ...]
    secrets: Mapping[str, str]

    def here(self, text: str) -> str:
        for there, here in self.places:
            text = text.replace(there, here)
        return text

    def run(self, job: Job, *, before: str = "", directory: Path | None = None) -> tuple[int, str]:
        """A pod of it: kubelet makes the file for the termination message."""
        (self.root / "termination-log").write_bytes(b"")
        environment = {**self.secrets, **{name: self.here(value) for name, value in job.env.items()}}
        command = [self.here(word) for word in job.command] or ["nimpull"]
        return invoke(command, environment, before=before, directory=directory)

    def report(self, job: Job) -> dict[str, Any]:
        path = Path(self.here(job.store), ".nimpull/report.json")
        document: dict[str, Any] = json.loads(path.read_text())
        return document

    def message(self) -> dict[str, Any]:
        text = (self.root / "termination-log").read_bytes()
        assert len(text) <= 4096
        document: dict[str, Any] = json.loads(text)
        return document


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    (tmp_path / "manifest.yaml").write_text(MANIFEST)
    (tmp_path / "native").mkdir()  # the mount is there, the directory in it is not
    with Registry() as registry, Proxy() as proxy, ScriptedServer(bucket("/nim_bucket/")) as mirror:
        registry.add_ngc_model("nim", "meta", "tiny", "fp8-1", {"config.json": FILES["config.json"]})
        registry.add_ngc_model("nim", "meta", "tiny", "hf-1", FILES)
        for namespace in ("acme", "default"):
            registry.add_hub_repo(f"{namespace}/Tiny-LM", FILES)
            registry.add_hub_repo(f"{namespace}/Tiny-LM", PULL_REQUEST, branches=("refs/pr/7",))
            registry.add_hub_repo(f"{namespace}/tiny-set", FILES, commit=COMMIT, repo_type="dataset")
        mirror_address = mirror.url().reveal().rstrip("/")
        places = (
            ("http://nemodatastore-sample.nemo.svc.cluster.local:8000/v1/hf", registry.datastore_url),
            ("https://huggingface.co", registry.hub_url),
            ("http://proxy.corp:3128", proxy.url().reveal().rstrip("/")),
            ("https://<server-name>:<port>/", f"{mirror_address}/nim_bucket/"),
            ("/model-store", str(tmp_path / "pvc")),
            ("/model/", f"{tmp_path}/native/"),
            ("/scratch", str(tmp_path / "scratch")),
        )
        secrets = {
            "PATH": os.environ["PATH"],
            "NGC_API_KEY": registry.ngc.key,
            "HF_TOKEN": registry.hub.token,
            "HF_ENDPOINT": registry.hub_url,
            "NGC_API_ENDPOINT": registry.ngc_url,
            "NGC_AUTH_ENDPOINT": registry.ngc_url,
            "AWS_ENDPOINT_URL": mirror_address,
            "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": "aws-canary",
            "NIM_MANIFEST_PATH": str(tmp_path / "manifest.yaml"),
            "NIMPULL_GPUS": "H100:1",
            "NIMPULL_RETRY_SECONDS": "0",
            "NIMPULL_TERMINATION_LOG": str(tmp_path / "termination-log"),
        }
        yield Cluster(tmp_path, registry, places, secrets)


@pytest.mark.parametrize("kind", JOBS)
def test_the_job_ends_ready(cluster: Cluster, kind: str) -> None:
    job = JOBS[kind]
    code, text = cluster.run(job)
    assert code == 0, text
    job.check(Path(cluster.here(job.store)))
    assert cluster.report(job)["status"]["state"] == "Ready"
    assert cluster.message()["status"]["state"] == "Ready"


@pytest.mark.parametrize("kind", [kind for kind, job in JOBS.items() if job.fails[1]])
def test_the_failing_job_says_why(cluster: Cluster, kind: str) -> None:
    change, expected = JOBS[kind].fails
    code, text = cluster.run(replace(JOBS[kind], env={**JOBS[kind].env, **change}))
    assert code == expected, text
    message = cluster.message()
    assert message["status"]["state"] == "Failed"
    assert cluster.report(JOBS[kind])["status"]["state"] == "Failed"
    assert message["error"]["exitCode"] == expected
    assert message["error"]["hint"]
    for secret in ("NGC_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        assert cluster.secrets[secret] not in text + json.dumps(message)


@pytest.mark.parametrize("kind", ["ngc-profiles-all", "hf-model-cli", "hf-model-modelfree", "ngc-native"])
def test_a_job_that_runs_again_asks_nothing(cluster: Cluster, kind: str) -> None:
    assert cluster.run(JOBS[kind])[0] == 0
    asked = len(cluster.registry.log())
    assert cluster.run(JOBS[kind])[0] == 0
    assert len(cluster.registry.log()) == asked


def test_an_unknown_profile_fails(cluster: Cluster) -> None:
    code, _ = cluster.run(Job((TO_CACHE, "--profiles", "f" * 64), NGC, plain_tree({})))
    assert (code, cluster.message()["error"]["reference"]) == (11, "no-profile")


def test_foreign_files_in_the_root_stay(cluster: Cluster) -> None:
    job = JOBS["hf-model-modelfree"]
    store = Path(cluster.here(job.store))
    (store / "local_cache").mkdir(parents=True)
    (store / "config.json").write_bytes(b"of another model")
    (store / "weights").symlink_to(cluster.root)
    (store / "local_cache/kernel").write_bytes(b"compiled")
    code, text = cluster.run(job)
    assert code == 0, text
    for path in FILES:
        assert f"{path} is only in the hub cache" in text
    assert (store / "config.json").read_bytes() == b"of another model"
    assert not (cluster.root / "model.bin").exists()
    assert (store / "local_cache/kernel").read_bytes() == b"compiled"


@pytest.mark.parametrize("change", [{"HF_TOKEN": "two words"}, {"HF_ENDPOINT": "ftp://datastore"}])
def test_an_environment_that_cannot_be_read_leaves_its_message_too(
    cluster: Cluster, change: Mapping[str, str]
) -> None:
    job = JOBS["datastore-model-cli"]
    code, text = cluster.run(replace(job, env={**job.env, **change}))
    assert (code, cluster.message()["error"]["reference"]) == (2, "bad-usage"), text
    assert next(iter(change)) in cluster.message()["error"]["message"]
    assert "two words" not in text


@pytest.mark.parametrize("kind", ["ngc-profiles-one", "hf-model-cli", "hf-model-modelfree", "ngc-native"])
def test_f38_only_the_mounts_are_written_without_home_or_passwd_entry(cluster: Cluster, kind: str) -> None:
    allowed = (cluster.here(JOBS[kind].store), str(cluster.root / "termination-log"), "/dev/null")
    empty = cluster.root / "workdir"
    empty.mkdir()
    job = replace(JOBS[kind], env={**JOBS[kind].env, "PYTHONDONTWRITEBYTECODE": "1"})
    code, text = cluster.run(job, before=f"ALLOWED = {allowed!r}{LOCKED_DOWN}", directory=empty)
    assert code == 0, text
    job.check(Path(cluster.here(job.store)))
    assert list(empty.iterdir()) == []
