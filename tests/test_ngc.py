"""The NGC source against the registry on loopback sockets."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from hashlib import sha256
from threading import Event as Flag
from typing import Any

import pytest

from nimpull.core.digest import Digest
from nimpull.errors import (
    AuthError,
    ForbiddenError,
    LicenseError,
    ListingError,
    NetworkError,
    NimpullError,
    NotFoundError,
    RedirectError,
)
from nimpull.sources.ngc import NgcSource
from nimpull.transport import HttpApi
from tests.clocks import StepClock
from tests.listings import FILES, NAMES_NEVER_TO_WRITE, asked, content_of, listed, ngc_source
from tests.registry import Fault, Registry, faults

URI = "ngc://nim/meta/llama:hf"
MANIFEST = r"/llama/hf/files"
FILE_LIST = r"/versions/hf/files"


@pytest.fixture
def registry(clock: StepClock) -> Iterator[Registry]:
    with Registry(now=clock.time) as running:
        running.add_ngc_model("nim", "meta", "llama", "hf", FILES, checksums=True)
        yield running


@pytest.fixture
def source(api: HttpApi, registry: Registry, clock: StepClock) -> NgcSource:
    return ngc_source(api, registry, clock)


def test_a_version_is_listed_with_sizes_and_both_digests(source: NgcSource, registry: Registry) -> None:
    listing = listed(source, URI)
    assert {a.path: a.size for a in listing.artifacts if a.path != "checksums.blake3"} == {
        path: len(content) for path, content in FILES.items()
    }
    weights = next(a for a in listing.artifacts if a.path == "model.safetensors")
    assert Digest("sha256", sha256(FILES["model.safetensors"]).hexdigest()) in weights.digests
    assert weights.digest and weights.digest.algorithm == "blake3"
    assert str(weights.uri) == f"{URI}?file=model.safetensors"
    assert listing.notes == ()
    assert {r.headers.get("nv-ngc-org") for r in registry.log("ngc", "/v2/")} == {"acme"}


def test_each_file_comes_from_the_cdn_without_the_key(
    source: NgcSource, registry: Registry, api: HttpApi
) -> None:
    for artifact in listed(source, URI, *FILES).artifacts:
        assert content_of(source, artifact) == FILES[artifact.path]
    assert not any(request.authorization for request in registry.log("cdn"))


def test_latest_becomes_the_version_that_it_means(source: NgcSource, registry: Registry) -> None:
    registry.add_ngc_model("nim", "meta", "llama", "0.11.1+ba20956e-tp1.5+", {"a": b"1"})
    listing = listed(source, "ngc://nim/meta/llama")
    assert (listing.uri.revision, listing.requested) == ("0.11.1+ba20956e-tp1.5+", "latest")
    assert [artifact.path for artifact in listing.artifacts] == ["a"]


def test_a_model_without_team(source: NgcSource, registry: Registry) -> None:
    registry.add_ngc_model("nim", "", "solo", "1.0", {"a": b"1"})
    assert [a.size for a in listed(source, "ngc://nim/solo:1.0").artifacts] == [1]


def test_a_guest_reads_public_models(api: HttpApi, registry: Registry, clock: StepClock) -> None:
    registry.add_ngc_model("nvidia", "tao", "net", "1.0", FILES, public=True)
    source = ngc_source(api, registry, clock, key="")
    listing = listed(source, "ngc://nvidia/tao/net:1.0")
    assert len(listing.artifacts) == len(FILES)
    assert content_of(source, listing.artifacts[0]) == FILES[listing.artifacts[0].path]
    assert all("x-ngc-guest-token" in r.headers and not r.authorization for r in registry.log("ngc"))


def test_a_key_of_another_organization_reads_a_public_model(source: NgcSource, registry: Registry) -> None:
    registry.add_ngc_model("nvidia", "tao", "net", "1.0", FILES, public=True, entitled=False)
    assert len(listed(source, "ngc://nvidia/tao/net:1.0").artifacts) == len(FILES)


def test_a_legacy_key_is_changed_for_a_token_and_renewed(
    api: HttpApi, registry: Registry, clock: StepClock
) -> None:
    source = ngc_source(api, registry, clock, key=registry.ngc.legacy_key)
    listed(source, URI)
    assert len(registry.log("ngc", "/token")) == 1
    assert "scope=group/ngc:nim&scope=group/ngc:nim/meta" in registry.log("ngc", "/token")[0].target
    clock.wait(registry.ngc.token_lifetime - 100, Flag())
    listed(source, URI)
    assert len(registry.log("ngc", "/token")) == 2
    registry.ngc.tokens.clear()  # the server has forgotten it before its time
    listed(source, URI)
    assert len(registry.log("ngc", "/token")) == 3


@pytest.mark.parametrize("lasts", [10**400, float("inf"), -1, True])
def test_a_token_of_unbelievable_life_is_used_once(
    api: HttpApi, registry: Registry, clock: StepClock, lasts: float
) -> None:
    registry.faults.append(
        Fault(faults.edit_json(lambda d: {**d, "expires_in": lasts}), path="/token", times=None)
    )
    assert listed(ngc_source(api, registry, clock, key=registry.ngc.legacy_key), URI).artifacts


def test_a_ready_token_is_passed_through(api: HttpApi, registry: Registry, clock: StepClock) -> None:
    token = "eyJhbGciOiJub25lIn0.eyJleHAiOjQ5MDAwMDAwMDB9.c2ln"
    registry.ngc.tokens[token] = clock.time() + 100
    assert listed(ngc_source(api, registry, clock, key=token), URI).artifacts
    assert registry.log("ngc", "/token") == []
    endless = base64.urlsafe_b64encode(json.dumps({"exp": 10**400}).encode()).decode().rstrip("=")
    token = f"eyJhbGciOiJub25lIn0.{endless}.c2ln"
    registry.ngc.tokens[token] = clock.time() + 100
    assert listed(ngc_source(api, registry, clock, key=token), URI).artifacts
    ended = "eyJhbGciOiJub25lIn0.eyJleHAiOjEwMDB9.c2ln"
    with pytest.raises(AuthError, match="expired"):
        listed(ngc_source(api, registry, clock, key=ended), URI)


def test_presigned_urls_are_kept_until_shortly_before_their_end(
    source: NgcSource, registry: Registry, clock: StepClock
) -> None:
    [artifact] = listed(source, URI, "config.json").artifacts
    before = len(registry.log("ngc"))
    first = source.locate(artifact)
    assert first.expires_at == pytest.approx(clock.time() + registry.url_lifetime, abs=2)
    assert source.locate(artifact).url == first.url
    assert len(registry.log("ngc")) == before
    clock.wait(registry.url_lifetime - 30, Flag())
    assert source.locate(artifact).url != first.url
    assert registry.log("ngc")[-1].query["path"] == "config.json"


def test_f19_a_presigned_url_of_the_metadata_service(source: NgcSource, registry: Registry) -> None:
    registry.add_ngc_model("nim", "meta", "bare", "1", FILES)
    inside = faults.edit_json(lambda d: {**d, "urls": ["http://169.254.169.254/x"] * len(d["urls"])})
    registry.faults.append(Fault(inside, path=r"/bare/1/files"))
    with pytest.raises(RedirectError, match="metadata"):
        listed(source, "ngc://nim/meta/bare:1")


def test_a_fresh_location_is_asked_for_by_path(source: NgcSource, registry: Registry, api: HttpApi) -> None:
    [artifact] = listed(source, URI, "sub/with space & +plus.txt").artifacts
    registry.expire_urls()
    assert asked(source.locate(artifact)).status_code == 403
    assert asked(source.locate(artifact, fresh=True)).status_code == 200
    assert registry.log("ngc")[-1].query["path"] == artifact.path


def test_a_refused_manifest_falls_back_to_single_files(
    source: NgcSource, registry: Registry, api: HttpApi
) -> None:
    registry.ngc.models["nim", "meta", "llama"].manifest = False
    listing = listed(source, URI)
    assert len(listing.artifacts) == len(FILES) + 1
    assert "one by one" in listing.notes[0]
    for artifact in listing.artifacts:
        if artifact.path in FILES:
            assert content_of(source, artifact) == FILES[artifact.path]
    assert not any(request.authorization for request in registry.log("cdn"))


def test_names_come_from_the_checksums_when_both_lists_are_refused(
    source: NgcSource, registry: Registry
) -> None:
    registry.ngc.models["nim", "meta", "llama"].manifest = False
    refusal = faults.status(400, b'{"requestStatus":{"statusCode":"INVALID_REQUEST"}}', "application/json")
    registry.faults.append(Fault(refusal, path=FILE_LIST + r"\?"))
    listing = listed(source, URI)
    assert {a.path: a.size for a in listing.artifacts if a.path in FILES} == {
        path: len(content) for path, content in FILES.items()
    }
    assert all(a.digest and a.digest.algorithm == "blake3" for a in listing.artifacts if a.path in FILES)


@pytest.mark.parametrize("base", [0, 1])
def test_f24_pages_counted_from_zero_or_one_are_all_read(
    source: NgcSource, registry: Registry, base: int
) -> None:
    registry.ngc.page_size, registry.ngc.page_base = 2, base
    files = {f"part-{i}": bytes([i]) for i in range(5)}
    registry.add_ngc_model("nim", "meta", "llama", "hf", files)
    assert sorted(a.path for a in listed(source, URI).artifacts) == sorted(files)


@pytest.mark.parametrize("place", [MANIFEST, FILE_LIST])
def test_f24_a_short_listing_is_refused(source: NgcSource, registry: Registry, place: str) -> None:
    def shorten(document: dict[str, Any]) -> None:
        for name in ("urls", "filepath", "sha256_base64", "modelFiles"):
            if name in document:
                document[name] = document[name][1:]

    registry.faults.append(Fault(faults.edit_json(shorten), path=place + r"\?page", times=None))
    with pytest.raises(ListingError, match="lists 4 of the 5 files"):
        listed(source, URI)


def test_f24_a_page_that_comes_again_and_again_ends(source: NgcSource, registry: Registry) -> None:
    def claim(document: dict[str, Any]) -> None:
        document["paginationInfo"] |= {"totalPages": 7, "totalResults": 3500}
        document["filepath"] = ["config.json"]
        document["urls"] = document["sha256_base64"] = [None]

    registry.faults.append(Fault(faults.edit_json(claim), path=MANIFEST + r"\?page", times=None))
    with pytest.raises(ListingError, match="lists 1 of the 3500 files"):
        listed(source, URI)
    assert len(registry.log("ngc", "/llama/hf/files")) == 8


def test_f24_a_million_pages_are_not_asked_for(source: NgcSource, registry: Registry) -> None:
    def claim(document: dict[str, Any]) -> None:
        document["paginationInfo"]["totalPages"] = 1_000_000

    registry.faults.append(Fault(faults.edit_json(claim), path=FILE_LIST, times=None))
    with pytest.raises(ListingError, match="1000000 pages"):
        listed(source, URI)


def test_f24_unknown_sizes_are_asked_by_head_and_missing_digests_stay_missing(
    source: NgcSource, registry: Registry
) -> None:
    registry.add_ngc_model("nim", "meta", "llama", "hf", FILES)
    for name in ("sizeInBytes", "sha256_base64"):
        registry.faults.append(Fault(faults.drop_field(name), server="ngc", times=None))
    artifacts = listed(source, URI).artifacts
    assert {a.path: a.size for a in artifacts} == {path: len(content) for path, content in FILES.items()}
    assert all(a.digest is None for a in artifacts)
    assert {request.method for request in registry.log("cdn")} == {"HEAD"}


def test_f24_urls_that_do_not_pair_with_names_are_refused(source: NgcSource, registry: Registry) -> None:
    registry.faults.append(Fault(faults.edit_json(lambda d: {**d, "urls": d["urls"][1:]}), path=MANIFEST))
    with pytest.raises(ListingError, match="pairs 5 files"):
        listed(source, URI)


def test_f22_a_wrong_key_fails_at_the_first_request(
    api: HttpApi, registry: Registry, clock: StepClock
) -> None:
    for key in ("nvapi-wrong-canary", "d3Jvbmc="):
        registry.requests.clear()
        with pytest.raises(AuthError) as caught:
            listed(ngc_source(api, registry, clock, key=key), URI)
        assert len(registry.requests) == 1
        assert "NGC_API_KEY" in caught.value.hint and "authSecret" in caught.value.hint
        assert key not in caught.value.message + caught.value.hint


def test_f22_no_key_names_the_variable(api: HttpApi, registry: Registry, clock: StepClock) -> None:
    with pytest.raises(AuthError, match="none is set") as caught:
        listed(ngc_source(api, registry, clock, key=""), URI)
    assert "NGC_API_KEY" in caught.value.hint


def test_f22_terms_not_accepted_names_the_page(source: NgcSource, registry: Registry) -> None:
    registry.add_ngc_model("nim", "meta", "eula", "1.0", FILES, license=True)
    with pytest.raises(LicenseError) as caught:
        listed(source, "ngc://nim/meta/eula:1.0")
    assert "catalog.ngc.nvidia.com/orgs/nim/teams/meta/models/eula " in caught.value.hint


def test_f22_not_entitled_is_forbidden(source: NgcSource, registry: Registry) -> None:
    registry.add_ngc_model("nim", "meta", "other", "1.0", FILES, entitled=False)
    with pytest.raises(ForbiddenError, match="not a member"):
        listed(source, "ngc://nim/meta/other:1.0")


@pytest.mark.parametrize(
    ("uri", "said"),
    [("ngc://nim/meta/none:1", "none"), ("ngc://nim/meta/llama:9", "version 9"), (URI + "?file=no", "“no”")],
)
def test_f23_what_is_not_there_is_named(source: NgcSource, uri: str, said: str) -> None:
    with pytest.raises(NotFoundError, match=said):
        listed(source, uri)


@pytest.mark.parametrize(
    ("code", "error"),
    [("FORBIDDEN", ForbiddenError), ("INTERNAL_ERROR", NetworkError), ("INVALID_REQUEST", ListingError)],
)
def test_a_200_that_says_no_is_a_no(
    source: NgcSource, registry: Registry, code: str, error: type[NimpullError]
) -> None:
    body = f'{{"requestStatus":{{"statusCode":"{code}","statusDescription":"because"}}}}'.encode()
    registry.faults.append(
        Fault(faults.status(200, body, "application/json"), path="resolve-labels", times=None)
    )
    with pytest.raises(error, match="because"):
        listed(source, URI)


@pytest.mark.parametrize(
    ("status", "error"), [(429, NetworkError), (503, NetworkError), (451, ForbiddenError)]
)
def test_statuses_beyond_the_retry_budget(
    source: NgcSource, registry: Registry, status: int, error: type[NimpullError]
) -> None:
    registry.faults.append(Fault(faults.status(status), path="resolve-labels", times=None))
    with pytest.raises(error, match=str(status)):
        listed(source, URI)


def test_a_login_page_is_named_as_one(source: NgcSource, registry: Registry) -> None:
    registry.faults.append(Fault(faults.html(), path="resolve-labels"))
    with pytest.raises(NetworkError, match=r"127\.0\.0\.1:\d+ .*text/html"):
        listed(source, URI)


def test_org_context_missing_names_the_key(source: NgcSource, registry: Registry) -> None:
    registry.ngc.org_context = True
    assert listed(source, URI).artifacts
    body = b'{"requestStatus":{"statusCode":"INVALID_REQUEST","statusDescription":"Org contex missing"}}'
    registry.faults.append(Fault(faults.status(400, body, "application/json"), path="resolve-labels"))
    with pytest.raises(AuthError, match="organization"):
        listed(source, URI)


@pytest.mark.parametrize("name", NAMES_NEVER_TO_WRITE)
@pytest.mark.parametrize("place", [MANIFEST, FILE_LIST])
def test_f50_an_unsafe_name_refuses_the_whole_listing(
    source: NgcSource, registry: Registry, place: str, name: str
) -> None:
    def rename(document: dict[str, Any]) -> None:
        if "filepath" in document:
            document["filepath"][0] = name
        else:
            document["modelFiles"][0]["path"] = name

    registry.faults.append(Fault(faults.edit_json(rename), path=place + r"\?page"))
    with pytest.raises(ListingError, match="unsafe file name") as caught:
        listed(source, URI, "model.safetensors")
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sizeInBytes": -1}, "impossible size"),
        ({"sizeInBytes": 1 << 63}, "impossible size"),
        ({"sizeInBytes": True}, "impossible size"),
        ({"path": "config.json/below"}, "as a file and as a directory"),
        ({"path": "CONFIG.JSON"}, "one name"),
        ({"path": "config.json"}, "twice"),
    ],
)
def test_f52_what_no_volume_can_hold_is_refused(
    source: NgcSource, registry: Registry, change: dict[str, Any], said: str
) -> None:
    def spoil(document: dict[str, Any]) -> None:
        document["modelFiles"].append({**document["modelFiles"][1], **change})
        document["paginationInfo"]["totalResults"] += "path" in change

    registry.faults.append(Fault(faults.edit_json(spoil), path=FILE_LIST + r"\?page"))
    with pytest.raises(ListingError, match=said):
        listed(source, URI)


def test_f57_words_of_the_server_are_shown_escaped_cut_and_without_the_key(
    source: NgcSource, registry: Registry
) -> None:
    words = f"\x1b[31m\u202e\n{registry.ngc.key} " + "x" * 5000
    refusal = faults.edit_json(
        lambda d: {"requestStatus": {"statusCode": "FORBIDDEN", "statusDescription": words}}
    )
    registry.faults.append(Fault(refusal, path="resolve-labels", times=None))
    with pytest.raises(ForbiddenError) as caught:
        listed(source, URI)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 512
    assert registry.ngc.key not in caught.value.message


def test_damaged_checksums_are_not_believed(source: NgcSource, registry: Registry) -> None:
    registry.faults.append(Fault(faults.corrupt(3), server="cdn", path="checksums"))
    listing = listed(source, URI, "config.json")
    assert [a.digest and a.digest.algorithm for a in listing.artifacts] == ["sha256"]
    assert "not what is listed" in listing.notes[0]


def test_locating_needs_no_listing_before(
    api: HttpApi, registry: Registry, clock: StepClock, source: NgcSource
) -> None:
    [artifact] = listed(source, URI, "config.json").artifacts
    other = ngc_source(api, registry, clock)
    assert content_of(other, artifact) == FILES["config.json"]
    del registry.ngc.models["nim", "meta", "llama"].versions["hf"]["config.json"]
    with pytest.raises(NotFoundError, match=r"config\.json"):
        source.locate(artifact, fresh=True)
