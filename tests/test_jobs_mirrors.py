"""Jobs with a mirror over TLS, and S3 whose credentials boto3 has to ask for: a role, by web identity."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import pytest
import trustme

from tests.buckets import model_bucket
from tests.calls import FILES
from tests.certificates import served
from tests.cluster import Cluster, buckets, check_ready, mirror_of_ngc
from tests.jobs import JOBS
from tests.pods import ca_certs, mounting
from tests.servers import Peer, ScriptedServer, Seen

CREDENTIALS = (
    "<AccessKeyId>ASIACANARY</AccessKeyId><SecretAccessKey>aws-canary</SecretAccessKey>"
    "<SessionToken>session-canary</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration>"
)
ROLE = "AssumeRoleWithWebIdentity"
GRANTED = (
    f"<{ROLE}Response><{ROLE}Result><Credentials>{CREDENTIALS}</Credentials></{ROLE}Result></{ROLE}Response>"
)
DENIED = (
    "<ErrorResponse><Error><Code>AccessDenied</Code><Message>Not authorized</Message></Error></ErrorResponse>"
)


@dataclass(slots=True)
class Cloud:
    """A mirror and a token service, certified by a private CA. ``granting``: the role may be taken."""

    cluster: Cluster
    authority: trustme.CA
    mirror: ScriptedServer
    tokens: ScriptedServer
    granting: bool = True
    variables: dict[str, str] = field(default_factory=dict)


@pytest.fixture
def cloud(cluster: Cluster) -> Iterator[Cloud]:
    authority = trustme.CA()
    token, bundle = cluster.root / "token", cluster.root / "corp.pem"
    token.write_text("web-identity-canary")
    authority.cert_pem.write_to_path(bundle)
    tls = served(authority, "127.0.0.1")
    objects = buckets(mirror_of_ngc(), model_bucket(FILES))

    def answer(seen: Seen, peer: Peer) -> None:
        status, body = (200, GRANTED) if made.granting else (403, DENIED)
        peer.reply(status, body.encode(), {"Content-Type": "text/xml"})

    with ScriptedServer(objects, tls=tls) as mirror, ScriptedServer(answer, tls=tls) as tokens:
        made = Cloud(cluster, authority, mirror, tokens)
        made.variables = {
            "AWS_ENDPOINT_URL": mirror.url("").reveal(),
            "AWS_ENDPOINT_URL_STS": tokens.url().reveal(),
            "AWS_ROLE_ARN": "arn:aws:iam::1:role/puller",
            "AWS_WEB_IDENTITY_TOKEN_FILE": str(token),
            "AWS_MAX_ATTEMPTS": "1",
            "AWS_REGION": "us-east-1",
            "SSL_CERT_FILE": str(bundle),
        }
        yield made


@pytest.mark.parametrize("kind", ["ngc-mirror-s3", "ngc-universal-s3-subpath"])
def test_f27_a_role_is_taken_and_s3_is_read_over_tls_of_a_private_ca(cloud: Cloud, kind: str) -> None:
    job = replace(JOBS[kind], secrets=())
    code, text = cloud.cluster.run(job, cloud.variables)
    assert code == 0, text
    job.check(cloud.cluster.store(job))
    check_ready(cloud.cluster, job)
    assert b"web-identity-canary" in cloud.tokens.seen[0].body
    assert all("X-Amz-Security-Token=session-canary" in seen.target for seen in cloud.mirror.seen)
    assert "canary" not in text + json.dumps([cloud.cluster.report(job), cloud.cluster.message()])


def test_f27_the_mounted_system_store_is_enough_for_both(cloud: Cloud) -> None:
    init = cloud.cluster.root / "init"
    init.mkdir()
    under = mounting({ca_certs(init, cloud.authority.cert_pem.bytes()): "/etc/ssl"})
    job = replace(JOBS["ngc-mirror-s3"], secrets=())
    code, text = cloud.cluster.run(job, {**cloud.variables, "SSL_CERT_FILE": ""}, under=under)
    assert code == 0, text


def test_f27_a_mirror_on_a_web_server_over_tls(cloud: Cloud) -> None:
    job = JOBS["ngc-mirror-https"]
    override = {"NIM_REPOSITORY_OVERRIDE": cloud.mirror.url("/nim_bucket/").reveal()}
    code, text = cloud.cluster.run(job, override)
    assert (code, cloud.cluster.message()["error"]["reference"]) == (31, "tls-untrusted"), text
    assert cloud.mirror.seen == []
    code, text = cloud.cluster.run(job, {**override, "SSL_CERT_FILE": cloud.variables["SSL_CERT_FILE"]})
    assert code == 0, text
    job.check(cloud.cluster.store(job))


@dataclass(frozen=True, slots=True)
class Refused:
    variables: Mapping[str, str]
    reference: str
    message: str
    hint: str
    granting: bool = True


REFUSED = {
    "untrusted": Refused({"SSL_CERT_FILE": ""}, "tls-untrusted", "is not trusted", "AWS_CA_BUNDLE"),
    "denied": Refused({}, "unauthorized", "Not authorized", "AWS_ROLE_ARN", granting=False),
    "no-token": Refused(
        {"AWS_WEB_IDENTITY_TOKEN_FILE": "/nonexistent"}, "unauthorized", "/nonexistent", "AWS_WEB_IDENTITY"
    ),
    "down": Refused(
        {"AWS_ENDPOINT_URL_STS": "https://127.0.0.1:1"}, "network", "does not answer", "AWS_ENDPOINT_URL_STS"
    ),
    "proxy-down": Refused(
        {"HTTPS_PROXY": "http://job:proxy-canary@127.0.0.1:1"},
        "proxy-failed",
        "cannot reach the proxy http://127.0.0.1:1",
        "HTTPS_PROXY",
    ),
    "no-region": Refused({"AWS_REGION": "two words"}, "bad-usage", "region", "AWS_REGION"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_credentials_that_cannot_be_had_are_no_bug(cloud: Cloud, case: Refused) -> None:
    cloud.granting = case.granting
    job = replace(JOBS["ngc-mirror-s3"], secrets=())
    code, text = cloud.cluster.run(job, {**cloud.variables, **case.variables})
    error = cloud.cluster.message()["error"]
    assert (error["reference"], error["exitCode"]) == (case.reference, code), text
    assert case.message in error["message"] and case.hint in error["hint"]
    assert "canary" not in text
    assert cloud.mirror.seen == []
