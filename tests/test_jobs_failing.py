"""The operator's Jobs where they must fail: exit code, last line, termination message, report, no secret.

What the operator sees is the exit code alone; what a person sees is the message that kubelet keeps, or the
end of the log. Both have to say what happened, where, and what to do.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import pytest

from nimpull.core.report.sentences import CLOSING_LINE_LIMIT
from tests.cluster import Cluster
from tests.jobs import JOBS, TO_CACHE, V1, Job
from tests.pods import ROOT, mounted
from tests.registry.hub import HubRepo
from tests.registry.ngc import NgcModel

Prepare = Callable[[Cluster], None]


@dataclass(frozen=True, slots=True)
class Refusal:
    """``message``, ``hint``: patterns. ``prepare`` changes the world, ``env`` and ``change`` the Job."""

    kind: str
    code: int
    message: str
    hint: str
    env: Mapping[str, str] = field(default_factory=dict)
    prepare: Prepare = lambda cluster: None
    change: Callable[[Job], Job] = lambda job: job


def repos(change: Callable[[HubRepo], object]) -> Prepare:
    def prepare(cluster: Cluster) -> None:
        for repo in cluster.registry.hub.repos.values():
            change(repo)

    return prepare


def model(change: Callable[[NgcModel], object]) -> Prepare:
    def prepare(cluster: Cluster) -> None:
        change(cluster.registry.ngc.models["nim", "meta", "tiny"])

    return prepare


def gate(repo: HubRepo) -> None:
    repo.gated, repo.granted = True, False


def not_entitled(model: NgcModel) -> None:
    model.entitled = False


def not_accepted(model: NgcModel) -> None:
    model.license = True


def no_repository(cluster: Cluster) -> None:
    cluster.registry.hub.repos.clear()
    cluster.registry.ngc.models.clear()


def hide(repo: HubRepo) -> None:
    repo.private = True


def carrying(manifest: str) -> Callable[[Job], Job]:
    return lambda job: replace(job, manifest=manifest)


def asking_for(profile: str) -> Callable[[Job], Job]:
    return lambda job: replace(job, command=(TO_CACHE, "--profiles", profile))


def asking(*arguments: str) -> Callable[[Job], Job]:
    return lambda job: replace(job, command=(job.command[0], *arguments))


BAD_NGC_KEY = {"NGC_API_KEY": "nvapi-wrong"}
NGC_KEY = r"Set NGC_API_KEY .*spec\.source\.ngc\.authSecret"
BAD_TOKEN = {"HF_TOKEN": "hf_wrong"}
HF_TOKEN = r"Set HF_TOKEN .*spec\.source\.hf\.authSecret or spec\.source\.dataStore\.authSecret"
NOBODY = "http://127.0.0.1:1"
NO_PROFILES = (ROOT / "image/model_manifest.yaml").read_text()

REFUSALS = {
    # 401
    "ngc-wrong-key": Refusal(
        "ngc-profiles-one", 20, r"refuses the NGC key \(HTTP 401\)", NGC_KEY, BAD_NGC_KEY
    ),
    "ngc-empty-key": Refusal(
        "ngc-profiles-one", 20, "wants an NGC key, and none is set", NGC_KEY, {"NGC_API_KEY": ""}
    ),
    "ngc-all-wrong-key": Refusal("ngc-profiles-all", 20, "refuses the NGC key", NGC_KEY, BAD_NGC_KEY),
    "native-wrong-key": Refusal("ngc-native", 20, "refuses the NGC key", NGC_KEY, BAD_NGC_KEY),
    "universal-wrong-key": Refusal("ngc-universal-ngc", 20, "refuses the NGC key", NGC_KEY, BAD_NGC_KEY),
    "cli-wrong-token": Refusal(
        "hf-model-cli", 20, r"refuses the token for hf://acme/Tiny-LM", HF_TOKEN, BAD_TOKEN
    ),
    "model-free-wrong-token": Refusal("hf-model-modelfree", 20, "refuses the token", HF_TOKEN, BAD_TOKEN),
    "datastore-wrong-token": Refusal("datastore-model-cli", 20, "refuses the token", HF_TOKEN, BAD_TOKEN),
    "datastore-model-free-wrong-token": Refusal(
        "datastore-model-modelfree", 20, "refuses the token", HF_TOKEN, BAD_TOKEN
    ),
    "cli-private-without-token": Refusal(
        "hf-model-cli", 20, "private and no token is set", HF_TOKEN, {"HF_TOKEN": ""}, repos(hide)
    ),
    # 403, and its kin
    "cli-gated": Refusal("hf-model-cli", 24, "is gated", "Ask for access at http", prepare=repos(gate)),
    "model-free-gated": Refusal(
        "hf-model-modelfree", 24, "is gated", "Ask for access at http", prepare=repos(gate)
    ),
    "ngc-license": Refusal(
        "ngc-profiles-one", 25, "terms .* not been accepted", "Accept them at", prepare=model(not_accepted)
    ),
    "ngc-not-entitled": Refusal(
        "ngc-profiles-one", 26, "no access to ngc://nim/meta/tiny", "entitled", prepare=model(not_entitled)
    ),
    # 404
    "ngc-no-version": Refusal(
        "ngc-profiles-one",
        21,
        "has no ngc://nim/meta/tiny:h100-latency",
        "Check the name, the version",
        prepare=model(lambda each: each.versions.pop("h100-latency")),
    ),
    "ngc-no-file": Refusal(
        "ngc-profiles-one",
        21,
        "has no file “rank0.engine”",
        "Check the name",
        prepare=model(lambda each: each.versions["h100-latency"].pop("rank0.engine")),
    ),
    "universal-ngc-no-model": Refusal(
        "ngc-universal-ngc", 21, "has no ngc://nim/meta/tiny:hf-1", "Check the name", prepare=no_repository
    ),
    "universal-hf-no-model": Refusal(
        "ngc-universal-hf", 21, "has no model acme/Tiny-LM", HF_TOKEN, prepare=no_repository
    ),
    "cli-no-model": Refusal("hf-model-cli", 21, "has no model acme/Tiny-LM", HF_TOKEN, prepare=no_repository),
    "cli-no-dataset": Refusal(
        "hf-dataset-cli", 21, "has no dataset acme/tiny-set", HF_TOKEN, prepare=no_repository
    ),
    "cli-no-revision": Refusal(
        "hf-model-revision-cli",
        21,
        "has no revision “refs/pr/7”",
        "a branch, a tag or a commit",
        prepare=repos(lambda repo: repo.branches.pop("refs/pr/7", None)),
    ),
    "model-free-no-model": Refusal(
        "hf-model-modelfree", 21, "has no model acme/Tiny-LM", HF_TOKEN, prepare=no_repository
    ),
    "datastore-no-model": Refusal(
        "datastore-model-cli", 21, "has no model default/Tiny-LM", "HF_ENDPOINT", prepare=no_repository
    ),
    "mirror-no-bucket": Refusal(
        "ngc-mirror-s3",
        21,
        r"s3://other-bucket/ has no checksums\.blake3 of ngc://",
        "NIM_REPOSITORY_OVERRIDE",
        {"NIM_REPOSITORY_OVERRIDE": "s3://other-bucket/"},
    ),
    # no such profile
    "unknown-profile": Refusal(
        "ngc-profiles-one", 11, f"no profile “{'0' * 64}”", "Nearest: ", change=asking_for("0" * 64)
    ),
    "unknown-name": Refusal(
        "ngc-profiles-name",
        11,
        "no profile “tensorrt_llm-h200",
        "Nearest: tensorrt_llm-h100-fp16-tp1-latency",
        change=asking_for("tensorrt_llm-h200-fp16-tp1-latency"),
    ),
    "image-without-profiles": Refusal(
        "ngc-profiles-all", 11, "holds no profile", r"docs/image\.md", change=carrying(NO_PROFILES)
    ),
    "native-nothing-fits": Refusal(
        "ngc-native",
        11,
        r"nearest:.*tensorrt_llm-h100.*: needs 1x H100, found 1x Tesla T4",
        "NIMPULL_GPUS",
        {"NIMPULL_GPUS": "T4:1"},
        change=carrying(V1),
    ),
    # no manifest in the image
    "image-without-manifest": Refusal(
        "ngc-profiles-one", 2, "no model manifest was found at", r"docs/image\.md", change=carrying("")
    ),
    "native-without-manifest": Refusal(
        "ngc-native", 2, "no model manifest was found at", r"docs/image\.md", change=carrying("")
    ),
    "torn-manifest": Refusal(
        "ngc-profiles-one", 10, "manifest, line 2: ", "if it was cut off", change=carrying("{")
    ),
    # an environment that cannot be meant
    "token-of-two-words": Refusal(
        "hf-model-cli", 2, "HF_TOKEN holds blanks", "one line", {"HF_TOKEN": "two words"}
    ),
    "endpoint-of-ftp": Refusal(
        "datastore-model-cli", 2, "HF_ENDPOINT is not", "https://host", {"HF_ENDPOINT": "ftp://datastore"}
    ),
    "no-such-command": Refusal(
        "hf-model-cli",
        2,
        "there is no “whoami” here: .* offers only “download”",
        "--help",
        change=asking("whoami"),
    ),
    "no-such-option": Refusal(
        "hf-model-cli",
        2,
        "there is no option --bogus",
        "download --help",
        change=asking("download", "--bogus"),
    ),
    "jfrog-nowhere": Refusal(
        "ngc-mirror-jfrog",
        2,
        "NIM_REPOSITORY_OVERRIDE=jfrog://… is not a host",
        "nimmodel/REPOSITORY",
        {"NIM_REPOSITORY_OVERRIDE": "jfrog:///", "NGC_API_ENDPOINT": ""},
    ),
    # nobody there
    "ngc-refused": Refusal(
        "ngc-profiles-all", 30, r"127\.0\.0\.1:1: .*refused", "network policies", {"NGC_API_ENDPOINT": NOBODY}
    ),
    "cli-refused": Refusal(
        "hf-model-cli", 30, r"127\.0\.0\.1:1: .*refused", "network policies", {"HF_ENDPOINT": NOBODY}
    ),
    "model-free-no-such-host": Refusal(
        "hf-model-modelfree", 30, r"nosuch\.invalid", "DNS", {"HF_ENDPOINT": "http://nosuch.invalid"}
    ),
    "f28-proxy-down": Refusal(
        "ngc-proxy",
        32,
        r"cannot reach the proxy http://127\.0\.0\.1:1 ",
        r"proxy\.httpsProxy",
        {"http_proxy": "http://job:proxy-canary@127.0.0.1:1"},
    ),
}


def check_told(cluster: Cluster, case: Refusal, code: int, text: str) -> None:
    """The exit code, the termination message and the last line say one thing, and no secret."""
    assert code == case.code, text
    message = cluster.message()
    error = message["error"]
    assert (message["status"]["state"], error["exitCode"]) == ("Failed", code)
    assert re.search(case.message, error["message"], re.DOTALL), error["message"]
    assert re.search(case.hint, error["hint"]), error["hint"]
    last = text.splitlines()[-1]
    assert last.startswith(f"nimpull: Failed ({error['reference']}, exit {code}, ")
    assert re.search(f"{case.message}.* — .*{case.hint}", last), last
    assert len(last.encode()) <= CLOSING_LINE_LIMIT
    for secret in (*cluster.secrets.values(), "nvapi-wrong", "hf_wrong", "two words", "proxy-canary"):
        if "://" not in secret and len(secret) > 4:
            assert secret not in text + json.dumps(message)


@pytest.mark.parametrize("case", REFUSALS.values(), ids=REFUSALS)
def test_the_job_says_why_it_failed(cluster: Cluster, case: Refusal) -> None:
    job = case.change(JOBS[case.kind])
    case.prepare(cluster)
    code, text = cluster.run(job, case.env)
    check_told(cluster, case, code, text)
    # a command line that is not understood does not say where the store is; none is made for a report
    if cluster.store(job).is_dir() and "Usage: " not in text:
        assert cluster.report(job)["status"]["state"] == "Failed"
        assert cluster.report(job)["error"] == cluster.message()["error"]
    assert not list((cluster.root / "pvc").rglob(".nimpull/ready/*"))


# -- the volume --------------------------------------------------------------------------------------------

FAMILIES = ("ngc-profiles-all", "ngc-native", "ngc-universal-ngc", "hf-model-cli", "hf-model-modelfree")


@pytest.mark.parametrize("kind", FAMILIES)
def test_f29_a_full_volume_fails_before_the_first_byte(cluster: Cluster, kind: str) -> None:
    case = Refusal(
        kind, 40, r"needs 1\d\.\d MiB, has \d.* MiB, short by 1\d\.\d MiB", r"spec\.storage\.pvc\.size"
    )
    place = cluster.root / "pvc"
    place.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)):
        code, text = cluster.run(JOBS[kind])
        check_told(cluster, case, code, text)
        assert cluster.report(JOBS[kind])["error"] == cluster.message()["error"]
    assert not cluster.registry.log("cdn")


def foreign(cluster: Cluster) -> AbstractContextManager[None]:
    """Of root and not of the group, as where a file server ignores fsGroup."""
    (cluster.root / "pvc").mkdir()
    return nullcontext()


def read_only(cluster: Cluster) -> AbstractContextManager[None]:
    place = cluster.root / "pvc"
    place.mkdir()
    return mounted("-t", "tmpfs", "-o", "ro,size=2m,mode=2777", "tmpfs", str(place))


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("volume", [foreign, read_only], ids=["foreign", "read-only"])
def test_f31_a_volume_that_cannot_be_written_is_told_before_the_first_request(
    cluster: Cluster, kind: str, volume: Callable[[Cluster], AbstractContextManager[None]]
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to give the volume to someone else")
    case = Refusal(
        kind, 41, r"uid 1000, gid 2000, .*owner 0:0", "fsGroup" if volume is foreign else "readOnly"
    )
    with volume(cluster):
        code, text = cluster.run(JOBS[kind], prepared=True)
        check_told(cluster, case, code, text)
    assert not cluster.registry.requests
