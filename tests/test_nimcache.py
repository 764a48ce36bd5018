"""Reading a NIMCache: every source of the CRD, its rules, its messages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimpull.core.criteria import Criteria, GpuCriterion
from nimpull.core.names import ModelUri
from nimpull.core.nimcache import HubRepository, NgcModels, expand, parse_nimcache
from nimpull.errors import UsageError

HEAD = """\
apiVersion: apps.nvidia.com/v1alpha1
kind: NIMCache
metadata: {name: tiny, namespace: nim-service}
spec:
"""
STORAGE = "  storage: {pvc: {create: true, storageClass: '', size: 50Gi, volumeAccessMode: ReadWriteMany}}\n"
PULLER = "authSecret: s, modelPuller: nvcr.io/nim/acme/llm:1, pullSecret: p"
NGC = f"  source: {{ngc: {{{PULLER}, model: {{%s}}}}}}\n"
HF = f"  source: {{hf: {{{PULLER}, %s}}}}\n"
DATASTORE = f"  source: {{dataStore: {{{PULLER}, %s}}}}\n"
ACME = "endpoint: https://huggingface.co, namespace: acme"
BARE_NGC = NGC % ""


def parse(body: str, storage: str = STORAGE) -> object:
    return parse_nimcache((HEAD + body + storage).encode())


def refused(body: str, storage: str = STORAGE) -> str:
    with pytest.raises(UsageError) as caught:
        parse(body, storage)
    assert caught.value.hint
    return str(caught.value)


def test_ngc_with_a_model_spec() -> None:
    body = NGC % (
        "engine: tensorrt_llm, precision: fp16, tensorParallelism: '1', qosProfile: throughput, lora: false,"
        " buildable: True, gpus: [{product: l40s, ids: ['26b5', '2330']}]"
    )
    cache = parse_nimcache((HEAD + body + STORAGE).encode())
    assert cache.notes == ()
    assert isinstance(cache.source, NgcModels)
    assert cache.source.endpoint is None
    assert cache.source.criteria == Criteria(
        engine="tensorrt_llm",
        precision="fp16",
        tensor_parallelism="1",
        qos="throughput",
        lora=False,
        buildable=True,
        gpus=(GpuCriterion("l40s", ("26b5", "2330")),),
    )
    assert cache.room == 50 << 30


def test_ngc_with_profiles() -> None:
    cache = parse_nimcache((HEAD + NGC % "profiles: [all]" + STORAGE).encode())
    assert isinstance(cache.source, NgcModels)
    assert cache.source.criteria == Criteria(profiles=("all",), all=True)


@pytest.mark.parametrize("uri", ["ngc://acme/team/tiny:1.0", "hf://acme/Tiny-LM", "s3://bucket/models/tiny"])
def test_ngc_with_a_model_endpoint(uri: str) -> None:
    body = f"  source: {{ngc: {{{PULLER}, modelEndpoint: '{uri}'}}}}\n"
    cache = parse_nimcache((HEAD + body + STORAGE).encode())
    assert isinstance(cache.source, NgcModels)
    assert cache.source.endpoint == ModelUri.parse(uri)


@pytest.mark.parametrize(
    ("body", "uri", "endpoint"),
    [
        (HF % f"{ACME}, modelName: Tiny-LM", "hf://acme/Tiny-LM:main", "https://huggingface.co"),
        (
            HF % f"{ACME}, datasetName: set, revision: refs/pr/7",
            "hf://datasets/acme/set:refs/pr/7",
            "https://huggingface.co",
        ),
        (
            DATASTORE % "endpoint: 'http://ds.nemo.svc:8000/v1/hf', modelName: Tiny-LM",
            "hf://default/Tiny-LM:main",
            "http://ds.nemo.svc:8000/v1/hf",
        ),
        (
            DATASTORE % "endpoint: 'https://ds/v1/hf/', namespace: team-a, datasetName: set",
            "hf://datasets/team-a/set:main",
            "https://ds/v1/hf/",
        ),
    ],
)
def test_hub_sources(body: str, uri: str, endpoint: str) -> None:
    cache = parse_nimcache((HEAD + body + STORAGE).encode())
    assert isinstance(cache.source, HubRepository)
    assert str(cache.source.uri) == uri
    assert cache.source.endpoint.reveal() == endpoint
    assert cache.notes == ()


RULES = [
    (
        "  source: {}\n",
        'spec.source: Invalid value: "object": Exactly one of ngc, dataStore, or hf must be defined',
    ),
    (
        f"  source: {{ngc: {{{PULLER}}}, hf: {{{PULLER}, {ACME}, modelName: x}}}}\n",
        'spec.source: Invalid value: "object": Exactly one of ngc, dataStore, or hf must be defined',
    ),
    (
        HF % ACME,
        'spec.source.hf: Invalid value: "object": Exactly one of modelName or datasetName must be defined',
    ),
    (
        DATASTORE % "endpoint: http://h/v1/hf, modelName: a, datasetName: b",
        'spec.source.dataStore: Invalid value: "object": '
        "Exactly one of modelName or datasetName must be defined",
    ),
    (
        DATASTORE % "endpoint: http://h/v1, modelName: a",
        "spec.source.dataStore.endpoint: Invalid value: "
        "spec.source.dataStore.endpoint in body should match '^https?://.*/v1/hf/?$'",
    ),
    (
        HF % "endpoint: ftp://h, namespace: a, modelName: b",
        "spec.source.hf.endpoint: Invalid value: spec.source.hf.endpoint in body should match '^https?://.*$'",
    ),
    (HF % "namespace: a, modelName: b", "spec.source.hf.endpoint: Required value"),
    (HF % "endpoint: http://h, modelName: b", "spec.source.hf.namespace: Required value"),
    (
        HF % "endpoint: http://h, namespace: '', modelName: b",
        'spec.source.hf.namespace: Invalid value: "": '
        "spec.source.hf.namespace in body should be at least 1 chars long",
    ),
    (
        f"  source: {{ngc: {{{PULLER}, model: {{engine: vllm}}, modelEndpoint: 'hf://a/b'}}}}\n",
        "spec.source.ngc: Invalid value: \"object\": Only one of 'model' or 'modelEndpoint' can be specified",
    ),
    (BARE_NGC + "  env: [{value: x}]\n", "spec.env[0].name: Required value"),
    (
        BARE_NGC + "  env: [x]\n",
        'spec.env[0]: Invalid value: "string": spec.env[0] in body must be of type object: "string"',
    ),
    (
        BARE_NGC + "  userID: root\n",
        'spec.userID: Invalid value: "string": spec.userID in body must be of type integer: "string"',
    ),
    (
        NGC % "lora: maybe",
        'spec.source.ngc.model.lora: Invalid value: "string": '
        'spec.source.ngc.model.lora in body must be of type boolean: "string"',
    ),
    (
        NGC % "profiles: all",
        'spec.source.ngc.model.profiles: Invalid value: "string": '
        'spec.source.ngc.model.profiles in body must be of type array: "string"',
    ),
    (
        NGC % "tensorParallelism: 1",
        'spec.source.ngc.model.tensorParallelism: Invalid value: "integer": '
        'spec.source.ngc.model.tensorParallelism in body must be of type string: "integer"',
    ),
    (HF % f"{ACME}, modelName: x, revison: v1", "spec.source.hf.revison: unknown field"),
    (
        f"  source: {{hf: {{{ACME}, modelName: x, modelPuller: i, pullSecret: p}}}}\n",
        "spec.source.hf.authSecret: Required value",
    ),
]


@pytest.mark.parametrize(("body", "message"), RULES, ids=[message.partition(": ")[0] for _, message in RULES])
def test_rules_of_the_crd_and_its_webhook(body: str, message: str) -> None:
    assert refused(body) == message


WEBHOOK = [
    (NGC % "profiles: [a, all]", "profiles must only have a single entry when it contains 'all'"),
    (NGC % "profiles: [a], engine: vllm", "must be empty when profiles is defined"),
    (NGC % "qosProfile: balanced", "qosProfile must be 'latency', 'throughput', or empty"),
    (BARE_NGC + "  proxy: {httpsProxy: 'proxy:3128'}\n", "spec.proxy.httpsProxy must start with http"),
    (BARE_NGC + "  proxy: {noProxy: 'a,*.b'}\n", 'invalid NO_PROXY token: "*.b"'),
    (BARE_NGC + "  certConfig: {name: x, mountPath: /etc/ssl/certs}\n", "spec.certConfig is deprecated"),
    (BARE_NGC + "  env: [{name: a=b}]\n", "spec.env[0].name is no name of a variable"),
    (DATASTORE % "endpoint: http://h/v1/hf, namespace: '', modelName: a", '"default" is taken'),
]


@pytest.mark.parametrize(("body", "note"), WEBHOOK, ids=[note for _, note in WEBHOOK])
def test_what_not_every_cluster_refuses_is_told(body: str, note: str) -> None:
    """The operator's webhook is not installed everywhere; the CRD takes these."""
    (told,) = parse_nimcache((HEAD + body + STORAGE).encode()).notes
    assert note in told


@pytest.mark.parametrize(
    ("pvc", "note"),
    [
        ("size: 50GB", "spec.storage.pvc.size “50GB” is not a quantity"),
        ("subPath: /abs", "spec.storage.pvc.subPath leads out of the volume"),
        ("subPath: a/../../b", "spec.storage.pvc.subPath leads out of the volume"),
        ("create: false", "spec.storage.pvc.name must be defined when create is false"),
    ],
)
def test_what_the_crd_takes_and_no_volume_has(pvc: str, note: str) -> None:
    cache = parse_nimcache((HEAD + BARE_NGC + f"  storage: {{pvc: {{{pvc}}}}}\n").encode())
    assert note in cache.notes[0]
    assert cache.room is None


def test_storage_env_proxy_and_ids() -> None:
    body = BARE_NGC + (
        "  userID: 1234\n  groupID: 5678\n"
        "  env:\n"
        "  - {name: HTTPS_PROXY, value: 'http://other:1'}\n"
        "  - {name: 'NO', value: 'no'}\n"
        "  - {name: EXTRA, valueFrom: {secretKeyRef: {name: extra, key: token}}}\n"
        "  proxy: {httpsProxy: 'http://u:CANARY@proxy:3128', noProxy: '10.0.0.0/8,.svc,[::1]',"
        " certConfigMap: ca}\n"
    )
    cache = parse_nimcache(
        (HEAD + body + "  storage: {pvc: {name: shared, size: 1.5Ti, subPath: a/b}}\n").encode()
    )
    assert cache.room == 3 << 39
    assert cache.environment() == {
        "NO": "no",
        "NIM_SDK_USE_NATIVE_TLS": "1",
        "HTTPS_PROXY": "http://u:CANARY@proxy:3128",
        "https_proxy": "http://u:CANARY@proxy:3128",
        "HTTP_PROXY": "",
        "http_proxy": "",
        "NO_PROXY": "10.0.0.0/8,.svc,[::1]",
        "no_proxy": "10.0.0.0/8,.svc,[::1]",
    }
    assert cache.notes == (
        "EXTRA comes from secret extra, key token in the cluster; here, set it in the environment",
    )


def test_f56_values_of_the_environment_and_proxy_credentials_are_not_in_its_repr() -> None:
    body = BARE_NGC + (
        "  env: [{name: AWS_SECRET_ACCESS_KEY, value: CANARY}]\n  proxy: {httpProxy: 'http://u:CANARY@p:1'}\n"
    )
    cache = parse_nimcache((HEAD + body + STORAGE).encode())
    assert "CANARY" not in repr(cache)
    assert "CANARY" not in refused(HF % "endpoint: 'ftp://u:CANARY@h', namespace: a, modelName: b")
    body = BARE_NGC + "  proxy: {httpProxy: 'socks://u:CANARY@p:1'}\n"
    assert "CANARY" not in repr(parse_nimcache((HEAD + body + STORAGE).encode()))


LAX = f"  source: {{hf: {{{ACME}, modelName: a, revison: b}}}}\n"


def test_what_a_pull_can_do_without_is_pardoned_where_it_is_asked() -> None:
    assert refused(LAX, "").startswith("spec.source.hf.revison: unknown field (and 4 more: ")
    with pytest.raises(UsageError) as caught:
        parse(LAX, "")
    assert "Did you mean revision?" in caught.value.hint and "--lenient" in caught.value.hint
    cache = parse_nimcache((HEAD.replace("name: tiny, ", "") + LAX).encode(), lenient=True)
    assert cache.notes == (
        "spec.source.hf.revison: unknown field. It has no effect. Did you mean revision?",
        "spec.storage: Required value",
        "spec.source.hf.authSecret: Required value. "
        "Older operators want a secret also for public models, later ones do not",
        "spec.source.hf.modelPuller: Required value",
        "spec.source.hf.pullSecret: Required value",
        "metadata.name: Required value",
        "the operator's webhook would refuse this NIMCache: spec.storage must not be empty",
    )


@pytest.mark.parametrize("body", ["  source: {}\n", "  source: {hf: {modelName: a}}\n", "  proxy: {}\n"])
def test_without_a_source_there_is_nothing_to_pardon(body: str) -> None:
    with pytest.raises(UsageError):
        parse_nimcache((HEAD + body).encode(), lenient=True)


def test_the_nimcache_is_found_among_other_documents() -> None:
    text = "# first\n---\nkind: Secret\nstringData: {a: |\n  b}\n".replace(
        "{a: |\n  b}", "\n  a: |\n    --- b"
    )
    cache = parse_nimcache((text + "\n---\n" + HEAD + BARE_NGC + STORAGE + "---\n").encode())
    assert isinstance(cache.source, NgcModels)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file holds no NIMCache"),
        (b"kind: NIMService\n", "the file holds no NIMCache"),
        ((HEAD + BARE_NGC + "---\n" + HEAD + BARE_NGC).encode(), "the file holds 2 NIMCaches"),
        (
            b"kind: NIMCache\napiVersion: v1\n",
            "apiVersion: Invalid value: “v1” is not apps.nvidia.com/v1alpha1",
        ),
        (HEAD.encode(), "spec: Required value"),
        (b"#" * (3 << 20), "a NIMCache file of 3145728 bytes is over the limit of 2097152 bytes"),
        (b"---\n" * 300, "more than 200 YAML documents in one file"),
    ],
)
def test_files_that_are_not_one_nimcache(data: bytes, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_nimcache(data)
    assert str(caught.value) == message


def test_f53_a_duplicate_key_is_refused_with_its_line_in_the_whole_file() -> None:
    with pytest.raises(UsageError, match=r"line 9: .*spec"):
        parse_nimcache(b"a: 1\n---\n" + HEAD.encode() + b"  x: 1\n\nspec: {}\n")


@given(st.binary(max_size=400))
def test_f53_no_bytes_make_a_traceback(data: bytes) -> None:
    for content in (data, HEAD.encode() + data):
        with pytest.raises(UsageError):
            parse_nimcache(content)


def test_f57_hostile_names_are_escaped() -> None:
    message = refused(HF % f'{ACME}, modelName: "a\\nReady\\e[2J"')
    assert "\n" not in message
    assert "\x1b" not in message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$(HOST)/v1", "mirror/v1"),
        ("$(HOST)$(HOST)", "mirrormirror"),
        ("$$(HOST)", "$(HOST)"),
        ("$$$(HOST)", "$mirror"),
        ("$(NOBODY)", "$(NOBODY)"),
        ("$()", "$()"),
        ("$(HOST", "$(HOST"),
        ("$HOST ${HOST} $", "$HOST ${HOST} $"),
        ("$(NESTED)", "$(HOST)"),
    ],
)
def test_variables_are_expanded_as_kubernetes_does(text: str, value: str) -> None:
    assert expand(text, {"HOST": "mirror", "NESTED": "$(HOST)"}) == value


REFERRING = """  env:
  - {name: EARLY, value: "$(HOST)"}
  - {name: HOST, value: mirror}
  - {name: PASSWORD, valueFrom: {secretKeyRef: {name: s, key: k}}}
  - {name: NIM_REPOSITORY_OVERRIDE, value: "https://bob:$(PASSWORD)@$(HOST)/ngc"}
  - {name: HOST, value: "other.$(HOST)"}
  - {name: NGC_API_ENDPOINT, value: "$(HOST)"}
"""


def test_an_entry_sees_the_entries_before_it() -> None:
    cache = parse_nimcache((HEAD + BARE_NGC + REFERRING + STORAGE).encode())
    found = cache.environment({"PASSWORD": "secret", "HOST": "of this machine"})
    assert found == {
        "EARLY": "$(HOST)",
        "HOST": "other.mirror",
        "NIM_REPOSITORY_OVERRIDE": "https://bob:secret@mirror/ngc",
        "NGC_API_ENDPOINT": "other.mirror",
    }
    notes = [note for note in cache.notes if "stays as it is" in note]
    assert notes == ["EARLY: $(HOST) stays as it is, no earlier entry of spec.env has that name"]
    assert cache.environment()["NIM_REPOSITORY_OVERRIDE"] == "https://bob:$(PASSWORD)@mirror/ngc"
