"""The Jobs that the NIM Operator renders, one row for each kind: command, args and env as they are.

Kinds whose Jobs differ in fields of the pod alone (resources, scheduling, OpenShift, a registry that cannot
be asked for its label) run the same container and share a row. Mounts, users and init containers are part
of a row; ``tests/cluster.py`` puts all of it on this machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.calls import FILES, plain

PULL_REQUEST = {"config.json": b'{"pr": 7}'}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ENGINES = {
    name: {"config.json": b'{"engine": 1}', "rank0.engine": name.encode() * 1000}
    for name in ("h100-latency", "h100-throughput", "a100-latency")
}
VERSIONS = {"hf-1": FILES, "fp8-1": {"config.json": b"{}"}, **ENGINES}


def profile_id(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


# -- the manifests that an image may carry -----------------------------------------------------------------

LATENCY, THROUGHPUT, A100, LORA = map(profile_id, ("latency", "throughput", "a100", "lora"))


def _v1_profile(name: str, version: str, gpu: str, device: str, qos: str) -> str:
    return f"""{name}:
  model: meta/tiny
  release: '1.0.0'
  tags: {{feat_lora: 'false', gpu: {gpu}, gpu_device: '{device}', llm_engine: tensorrt_llm, pp: '1',
         precision: fp16, profile: {qos}, tp: '1'}}
  workspace: !workspace
    components:
    - dst: ''
      src:
        repo_id: ngc://nim/meta/tiny:hf-1
        files: [!name 'config.json']
    - dst: trtllm_engine
      src:
        repo_id: ngc://nim/meta/tiny:{version}
        files: [!name 'rank0.engine', !name 'config.json']
"""


V1 = (
    _v1_profile(LATENCY, "h100-latency", "H100", "2330:10de", "latency")
    + _v1_profile(THROUGHPUT, "h100-throughput", "H100", "2330:10de", "throughput")
    + _v1_profile(A100, "a100-latency", "A100", "20b2:10de", "latency")
    + f"""{LORA}:
  model: meta/tiny
  release: '1.0.0'
  tags: {{feat_lora: 'true', llm_engine: vllm, precision: fp16, tp: '1'}}
  workspace: !workspace
    components:
    - dst: ''
      src: {{repo_id: 'ngc://nim/meta/tiny:hf-1', files: [!name 'config.json', !name 'weights/model.bin']}}
"""
)

FIRST, SECOND, BUILDABLE = map(profile_id, ("first", "second", "buildable"))
V2 = f"""schema_version: '2.0'
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
- id: {BUILDABLE}
  tags: {{llm_engine: tensorrt_llm, precision: bf16, tp: '1', trtllm_buildable: 'true', feat_lora: 'true'}}
  workspace:
    files:
      weights/model.bin: {{uri: 'ngc://nim/meta/tiny:hf-1?file=weights/model.bin'}}
"""

EMBEDDING = profile_id("embedding")
NON_LLM = f"""schema_version: '2.0'
profile_selection_criteria: default
profiles:
- id: {EMBEDDING}
  tags: {{model_type: tensorrt, key: H100, product_name_regex: '^NVIDIA-H100.*', precision: fp16}}
  workspace:
    files:
      rank0.engine: {{uri: 'ngc://nim/meta/tiny:h100-throughput?file=rank0.engine'}}
"""

# -- where a reader looks ----------------------------------------------------------------------------------

Check = Callable[[Path], object]


def in_ngc_cache(files: Mapping[str, Mapping[str, bytes]]) -> Check:
    """version -> path -> content, as NIM's own cache has them: blobs, refs, relative links to the blobs."""

    def check(store: Path) -> None:
        model = store / "ngc/hub/models--nim--meta--tiny"
        assert {path.name for path in (model / "snapshots").iterdir()} == set(files)
        for version, content in files.items():
            snapshot = model / "snapshots" / version
            links = [path for path in snapshot.rglob("*") if not path.is_dir()]
            assert {path.relative_to(snapshot).as_posix(): path.read_bytes() for path in links} == content
            for link in links:
                target = link.readlink()
                assert target.parts[0] == ".." and link.resolve().parent == model / "blobs"
            assert (model / "refs" / version).is_file()

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


CONFIG = {"config.json": FILES["config.json"]}
WEIGHTS = {"weights/model.bin": FILES["weights/model.bin"]}
WORKSPACE = {**CONFIG, "engine/model.bin": FILES["weights/model.bin"]}
EMBEDDING_FILES = {"rank0.engine": ENGINES["h100-throughput"]["rank0.engine"]}
FP8 = {"fp8-1": CONFIG}
LATENCY_FILES = {"hf-1": CONFIG, "h100-latency": ENGINES["h100-latency"]}
THROUGHPUT_FILES = {"hf-1": CONFIG, "h100-throughput": ENGINES["h100-throughput"]}
H100_FILES = LATENCY_FILES | THROUGHPUT_FILES
NO_LORA_FILES = {**H100_FILES, "a100-latency": ENGINES["a100-latency"]}
ALL_V1 = NO_LORA_FILES | {"hf-1": FILES}

# -- the Jobs ----------------------------------------------------------------------------------------------

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
TO_CACHE = "download-to-cache"
LOCAL = ("--local-dir", "/model-store", "--repo-type")
RUNTIME = ("--manifest-file", "/model-store/model_manifest.json")
INIT_SETUP = ("sh", "-c", "mkdir -p /model-store/pre && ls -la /model-store")
STORE = {"/model-store": ""}
OPERATOR = (1000, 2000)


@dataclass(frozen=True, slots=True)
class Job:
    """``check``: the layout, given where ``store`` is; the report is there too.

    ``manifest``: what the image carries, "" = none. ``profiles``: ids that the report names. ``mounts``:
    mount path -> subPath of the one volume. ``init``: the user's init container. ``secrets``: the names of
    the variables that ``envFrom`` brings. ``public``: the model at NGC is.
    """

    command: tuple[str, ...]
    env: Mapping[str, str]
    check: Check
    manifest: str = ""
    profiles: tuple[str, ...] = ()
    store: str = "/model-store"
    mounts: Mapping[str, str] = field(default_factory=lambda: STORE)
    user: tuple[int, int] = OPERATOR
    init: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ("NGC_API_KEY", "HF_TOKEN")
    public: bool = False


def _cached(*profiles: str, files: Mapping[str, Mapping[str, bytes]], manifest: str = V1) -> Job:
    return Job((TO_CACHE, "--profiles", *profiles), NGC, in_ngc_cache(files), manifest, profiles)


def _model_free(name: str, hub: str, env: Mapping[str, str] = HUB) -> Job:
    return Job((TO_CACHE, "--model-uri", f"hf://{name}", *RUNTIME), env, in_hub_cache(hub))


def _hub(
    name: str,
    *more: str,
    kind: str = "model",
    env: Mapping[str, str] = HUB,
    files: Mapping[str, bytes] = FILES,
) -> Job:
    return Job(("huggingface-cli", "download", name, *LOCAL, kind, *more), env, plain_tree(files), V2)


def _universal(repository: str) -> Job:
    command = ("create-model-store", "--model-repo", repository, "--model-store", "/model-store")
    return Job(command, NGC, plain_tree(FILES), V2)


def _native(name: str, sub_path: str = "", **env: str) -> Job:
    """No command: the image's own. Both mounts are the same place of the one volume."""
    variables = {"NIM_ENGINE_MODEL_DOWNLOAD_ONLY": "1", "NIM_ENGINE_MODEL_PATH": f"/model/{name}", **env}
    mounts = {"/model": sub_path, "/opt/cache": sub_path}
    return Job((), variables, plain_tree(WORKSPACE), V2, (FIRST,), store=f"/model/{name}", mounts=mounts)


def _with(job: Job, env: Mapping[str, str]) -> Job:
    return replace(job, env={**env, **job.env})


ALL = Job((TO_CACHE, "--all"), NGC, in_ngc_cache(ALL_V1), V1, (LATENCY, THROUGHPUT, A100, LORA))
ONE = _cached(LATENCY, files=LATENCY_FILES)
TWO = _cached(LATENCY, THROUGHPUT, files=H100_FILES)
USER_ENV = {
    "NGC_HOME": "/scratch/ngc",
    "NIM_CACHE_PATH": "/model-store/sub",
    "NIM_LOG_LEVEL": "DEBUG",
    "EXTRA_TOKEN": "from a secret of the user's",
}
HUB_ENV = {"HF_HOME": "/scratch/hf", "HF_HUB_DOWNLOAD_TIMEOUT": "60"}
S3 = {"NIM_REPOSITORY_OVERRIDE": "s3://nim_bucket/", "AWS_PROFILE": "default", "AWS_REGION": "us-east-1"}
AWS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL")

JOBS = {
    "ngc-profiles-one": ONE,
    "ngc-profiles-two": TWO,
    "ngc-profiles-name": replace(ONE, command=(TO_CACHE, "--profiles", "tensorrt_llm-h100-fp16-tp1-latency")),
    "ngc-profiles-all": ALL,
    "ngc-auto-v1-gpus": _cached(THROUGHPUT, files=THROUGHPUT_FILES),
    "ngc-auto-nomodel-v1": _cached(A100, THROUGHPUT, LATENCY, files=NO_LORA_FILES),
    "ngc-auto-v2-h100": _cached(FIRST, BUILDABLE, files={"hf-1": FILES}, manifest=V2),
    "ngc-auto-v2-lora": _cached(BUILDABLE, files={"hf-1": WEIGHTS}, manifest=V2),
    "ngc-auto-nonllm-v2": _cached(EMBEDDING, files={"h100-throughput": EMBEDDING_FILES}, manifest=NON_LLM),
    "multi-node": _cached(FIRST, SECOND, BUILDABLE, files={"hf-1": FILES, **FP8}, manifest=V2),
    "ngc-env": replace(ONE, env=USER_ENV, store="/model-store/sub"),
    "ngc-no-secrets": replace(ALL, secrets=(), public=True),
    "ngc-user-group": replace(ALL, user=(1234, 5678)),
    "ngc-subpath": replace(ALL, mounts={"/model-store": "team-a/llm"}),
    "ngc-initcontainers": replace(ALL, init=INIT_SETUP),
    "ngc-proxy": _with(ALL, PROXY),
    "ngc-mirror-https": _with(TWO, {"NIM_REPOSITORY_OVERRIDE": "https://<server-name>:<port>/"}),
    "ngc-mirror-jfrog": _with(TWO, {"NIM_REPOSITORY_OVERRIDE": "jfrog://<server-name>:<port>/"}),
    "ngc-mirror-s3": replace(_with(TWO, S3), secrets=AWS),
    "ngc-universal-ngc": _universal("ngc://nim/meta/tiny:hf-1"),
    "ngc-universal-hf": _universal("hf://acme/Tiny-LM"),
    "ngc-universal-https-nomanifest": replace(
        _universal("https://api.ngc.nvidia.com/v2/models/acme/tiny/versions/1.0"), manifest=""
    ),
    "ngc-universal-s3-subpath": replace(
        _universal("s3://bucket/models/tiny"),
        mounts={"/model-store": "u/s3"},
        secrets=(*AWS, "AWS_REGION"),
    ),
    "ngc-native": _native("retriever-native"),
    "ngc-native-subpath-env": _native("retriever2", "native", FOO="1"),
    "ngc-native-profiles": _native("retriever3"),
    "hf-model-cli": _hub("acme/Tiny-LM"),
    "hf-model-revision-cli": _hub("acme/Tiny-LM", "--revision", "refs/pr/7", files=PULL_REQUEST),
    "hf-model-subpath-init-cli": replace(
        _hub("acme/Tiny-LM"), mounts={"/model-store": "hf/tiny"}, init=INIT_SETUP
    ),
    "hf-dataset-cli": _hub("acme/tiny-set", kind="dataset"),
    "hf-model-modelfree": _model_free("acme/Tiny-LM", "huggingface/hub/hub"),
    "hf-model-subpath-init-modelfree": replace(
        _model_free("acme/Tiny-LM", "huggingface/hub/hub"),
        mounts={"/model-store": "hf/tiny"},
        init=INIT_SETUP,
    ),
    "datastore-model-cli": _hub("default/Tiny-LM", env=DATASTORE),
    "datastore-model-revision-cli": _hub("team-a/Tiny-LM", "--revision", "main", env=DATASTORE),
    "datastore-dataset-revision-cli": _hub(
        "default/tiny-set", "--revision", COMMIT, kind="dataset", env=DATASTORE
    ),
    "datastore-model-modelfree": _model_free("default/Tiny-LM", "huggingface/hub/hub", DATASTORE),
    "datastore-model-revision-modelfree": _model_free("team-a/Tiny-LM", "huggingface/hub/hub", DATASTORE),
}

#: With ``proxy`` in the NIMCache: over TLS, through the proxy, trusting what the CA init container made.
TLS_JOBS = {
    "ngc-proxy-ca": _with(ALL, PROXY),
    "ngc-proxy-ca-env": replace(
        ALL, env={**PROXY, "SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt", **NGC}
    ),
    "ngc-initcontainers-proxy-ca": replace(_with(ALL, {**PROXY, "FOO": "bar"}), init=INIT_SETUP),
    "ngc-universal-proxy-ca": _with(_universal("ngc://nim/meta/tiny:hf-1"), PROXY),
    "ngc-native-proxy-ca": _with(_native("retriever4"), PROXY),
    "hf-model-env-proxy-ca-cli": _hub("acme/Tiny-LM", env={**PROXY, **HUB, **HUB_ENV}),
    "hf-model-env-proxy-ca-modelfree": _model_free(
        "acme/Tiny-LM", "huggingface/hub/hub", {**PROXY, **HUB, **HUB_ENV}
    ),
}
