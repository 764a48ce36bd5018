"""The Hub source against the registry on loopback sockets, on the Hub's paths and under ``/v1/hf``."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from threading import Event as Flag
from typing import Any

import pytest

from nimpull.core.artifacts import Wanted
from nimpull.core.digest import Digest
from nimpull.core.names import ModelUri, Url
from nimpull.core.reply import Reply
from nimpull.errors import (
    AuthError,
    ForbiddenError,
    GatedError,
    ListingError,
    NetworkError,
    NimpullError,
    NotFoundError,
    RedirectError,
)
from nimpull.sources.answers import expiry
from nimpull.sources.huggingface import HubSource
from nimpull.transport import HttpApi
from tests.clocks import StepClock
from tests.listings import FILES, NAMES_NEVER_TO_WRITE, asked, content_of, hub_source, listed
from tests.registry import Blob, Fault, Registry, faults

URI = "hf://ns/name"
TREE = "/tree/"


@pytest.fixture
def registry(clock: StepClock) -> Iterator[Registry]:
    with Registry(now=clock.time) as running:
        running.add_hub_repo("ns/name", FILES)
        yield running


@pytest.fixture
def source(api: HttpApi, registry: Registry, clock: StepClock) -> HubSource:
    return hub_source(api, registry, clock)


def _sizes(files: dict[str, bytes]) -> dict[str, int]:
    return {path: len(content) for path, content in files.items()}


@pytest.mark.parametrize("base", ["", "/", "/v1/hf", "/v1/hf/"])
@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_repository_is_listed_and_every_file_fetched(
    api: HttpApi, registry: Registry, clock: StepClock, base: str, kind: str
) -> None:
    registry.hub.page_size = 2
    commit = registry.add_hub_repo("ns/other", FILES, repo_type=kind, private=True)
    token = registry.hub.token
    source = hub_source(api, registry, clock, token, registry.hub_url + base)
    listing = listed(source, f"hf://{'datasets/' if kind == 'dataset' else ''}ns/other")
    assert (listing.uri.revision, listing.requested) == (commit, "main")
    assert {a.path: a.size for a in listing.artifacts} == _sizes(FILES)
    for artifact in listing.artifacts:
        assert content_of(source, artifact) == FILES[artifact.path]
    assert all(r.authorization == f"Bearer {token}" for r in registry.log("hub"))
    assert registry.log("cdn") and not any(r.authorization for r in registry.log("cdn"))


def test_large_files_have_sha256_and_small_ones_their_git_id(source: HubSource) -> None:
    artifacts = {str(artifact.path): artifact for artifact in listed(source, URI).artifacts}
    weights, config = artifacts["model.safetensors"], artifacts["config.json"]
    assert weights.digests == (Digest("sha256", sha256(FILES["model.safetensors"]).hexdigest()),)
    assert config.digests == (Digest("git", Blob(FILES["config.json"]).digest("git")),)
    assert (weights.etag, config.etag) == (weights.digests[0].hex, config.digests[0].hex)


@pytest.mark.parametrize(
    ("wanted", "paths"),
    [
        (Wanted(include=("*.json",)), {"config.json"}),
        (Wanted(include=("sub/",)), {"sub/with space & +plus.txt"}),
        (Wanted(exclude=("*.txt", "model*")), {"config.json"}),
        (Wanted(paths=frozenset({"config.json", "empty.txt"}), exclude=("empty*",)), {"config.json"}),
    ],
)
def test_globs_choose_as_in_the_hubs_own_client(source: HubSource, wanted: Wanted, paths: set[str]) -> None:
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

    artifacts = source.list(ModelUri.parse(URI), wanted).artifacts
    assert {str(artifact.path) for artifact in artifacts} == paths
    theirs = filter_repo_objects(
        wanted.paths or FILES,
        allow_patterns=list(wanted.include) or None,
        ignore_patterns=list(wanted.exclude) or None,
    )
    assert set(theirs) == paths


@pytest.mark.parametrize("revision", ["v1.0", "refs/pr/1", "1234567890123456789012345678901234567890"])
def test_revisions_of_every_form(source: HubSource, registry: Registry, revision: str) -> None:
    commit = revision if len(revision) == 40 else "a" * 40
    registry.add_hub_repo("ns/name", {"a": b"1"}, commit=commit, branches=(revision,))
    listing = listed(source, f"{URI}@{revision}")
    assert (listing.uri.revision, listing.requested) == (commit, revision)


def test_f25_main_moves_after_the_listing(source: HubSource, registry: Registry, api: HttpApi) -> None:
    before = listed(source, URI)
    moved = registry.add_hub_repo("ns/name", {path: content + b"new" for path, content in FILES.items()})
    assert before.uri.revision != moved
    for artifact in before.artifacts:
        assert content_of(source, artifact) == FILES[artifact.path]


def test_f25_main_moves_while_it_is_listed(source: HubSource, registry: Registry) -> None:
    def move(_request: Any, answer: Any) -> Any:
        registry.add_hub_repo("ns/name", {"other": b"1"})
        return answer

    registry.faults.append(Fault(move, path="/revision/"))
    assert {a.path: a.size for a in listed(source, URI).artifacts} == _sizes(FILES)


def test_a_large_file_is_located_once(
    api: HttpApi, registry: Registry, clock: StepClock, source: HubSource
) -> None:
    registry.add_hub_repo("ns/large", {"weights": bytes(17 << 20)})
    [artifact] = listed(source, "hf://ns/large").artifacts
    registry.requests.clear()
    first = source.locate(artifact)
    assert first.url.reveal().startswith(registry.cdn_url) and not first.headers
    assert source.locate(artifact).url == first.url
    assert len(registry.requests) == 1
    registry.expire_urls()
    assert asked(first, 0, 10).status_code == 403
    second = source.locate(artifact, fresh=True)
    assert asked(second, 0, 10).status_code == 206
    assert source.locate(artifact).url == second.url
    clock.wait(registry.url_lifetime - 30, Flag())
    assert source.locate(artifact).url != second.url


def test_a_place_that_does_not_say_its_end_is_not_kept(source: HubSource, registry: Registry) -> None:
    registry.add_hub_repo("ns/large", {"weights": bytes(17 << 20)})
    [artifact] = listed(source, "hf://ns/large").artifacts
    registry.faults.append(Fault(faults.header(location=f"{registry.cdn_url}/x"), method="HEAD"))
    assert source.locate(artifact).url.reveal().startswith(registry.hub_url)


@pytest.mark.parametrize("host", ["169.254.169.254", "0xa9fea9fe", "[::ffff:169.254.169.254]"])
def test_f19_a_hub_that_leads_to_the_metadata_service(
    source: HubSource, registry: Registry, host: str
) -> None:
    registry.add_hub_repo("ns/large", {"weights": bytes(17 << 20)})
    [artifact] = listed(source, "hf://ns/large").artifacts
    registry.faults.append(
        Fault(faults.header(location=f"http://{host}/x?Expires=1999999999"), method="HEAD")
    )
    with pytest.raises(RedirectError, match="metadata"):
        source.locate(artifact)


@pytest.mark.parametrize(
    ("query", "ends"),
    [
        ("Expires=1750502818&Signature=x", 1_750_502_818.0),
        ("X-Amz-Date=20260101T000000Z&X-Amz-Expires=3600", 1_767_229_200.0),
        ("Expires=soon", None),
        pytest.param("Expires=" + "9" * 400, None, id="400-digits"),
        pytest.param("Expires=" + "9" * 5000, None, id="5000-digits"),
        pytest.param("X-Amz-Date=20260101T000000Z&X-Amz-Expires=" + "9" * 400, None, id="amz-400-digits"),
        ("", None),
    ],
)
def test_the_end_of_a_presigned_url(query: str, ends: float | None) -> None:
    assert expiry(Url(f"https://cdn.example/x?{query}")) == ends


def test_small_files_behind_a_relative_redirect(source: HubSource, registry: Registry, api: HttpApi) -> None:
    registry.hub.resolve_cache = True
    for artifact in listed(source, URI).artifacts:
        assert content_of(source, artifact) == FILES[artifact.path]


def test_a_server_that_redirects_the_tree_to_a_slash(source: HubSource, registry: Registry) -> None:
    repo = registry.hub.repos["model", "ns/name"]
    place = f"/api/models/ns/name/tree/{repo.branches['main']}/?recursive=true&expand=false"
    registry.faults.append(Fault(faults.redirect(place, 307), path=TREE))
    assert {a.path: a.size for a in listed(source, URI).artifacts} == _sizes(FILES)


def test_a_server_without_the_tree_lists_by_siblings(source: HubSource, registry: Registry) -> None:
    registry.faults += [
        Fault(faults.status(404), path=TREE, times=None),
        Fault(faults.header(x_linked_etag=None, etag="unquoted"), path="resolve.*config", times=None),
    ]
    artifacts = listed(source, URI).artifacts
    assert {a.path: a.size for a in artifacts} == _sizes(FILES)
    digests = {str(a.path): [d.algorithm for d in a.digests] for a in artifacts}
    assert digests["model.safetensors"] == ["sha256"]
    assert digests["config.json"] == []
    assert {a.etag for a in artifacts if a.path == "config.json"} == {"unquoted"}


def test_made_up_object_ids_are_no_digests(api: HttpApi, registry: Registry, clock: StepClock) -> None:
    """NeMo platform's files service serves the same protocol under ``/v2/hf``."""
    registry.servers[1].respond = lambda request: registry.hub.respond(
        replace(request, target=request.target.removeprefix("/v2/hf"))
    )
    source = hub_source(api, registry, clock, "", registry.hub_url + "/v2/hf")
    artifacts = {str(artifact.path): artifact for artifact in listed(source, URI).artifacts}
    assert artifacts["config.json"].digests == ()
    assert artifacts["model.safetensors"].digests != ()


def test_f22_a_missing_token_names_the_variable(source: HubSource, registry: Registry) -> None:
    registry.add_hub_repo("ns/private", FILES, private=True)
    with pytest.raises(AuthError, match="no token is set") as caught:
        listed(source, "hf://ns/private")
    assert "HF_TOKEN" in caught.value.hint and "authSecret" in caught.value.hint
    assert len(registry.requests) == 1


def test_f22_a_wrong_token_is_refused_without_showing_it(
    api: HttpApi, registry: Registry, clock: StepClock
) -> None:
    token = "hf_wrongcanary"
    registry.faults.append(
        Fault(faults.edit_json(lambda _: {"error": f"no user has {token}"}), path="/revision/")
    )
    registry.faults.append(Fault(faults.header(x_error_message=None), path="/revision/"))
    with pytest.raises(AuthError, match="refuses the token") as caught:
        listed(hub_source(api, registry, clock, token), URI)
    assert len(registry.requests) == 1
    assert token not in caught.value.message + caught.value.hint


@pytest.mark.parametrize("with_token", [False, True])
def test_f22_a_gated_repository_names_the_page_before_any_fetch(
    api: HttpApi, registry: Registry, clock: StepClock, with_token: bool
) -> None:
    registry.add_hub_repo("ns/gated", FILES, gated=True, granted=False)
    source = hub_source(api, registry, clock, registry.hub.token if with_token else "")
    with pytest.raises(GatedError) as caught:
        listed(source, "hf://ns/gated")
    assert f"{registry.hub_url}/ns/gated" in caught.value.hint
    assert ("HF_TOKEN" in caught.value.hint) is not with_token


def test_f22_a_gated_repository_opens_to_a_granted_account(
    api: HttpApi, registry: Registry, clock: StepClock
) -> None:
    registry.add_hub_repo("ns/gated", FILES, gated=True)
    source = hub_source(api, registry, clock, registry.hub.token)
    assert len(listed(source, "hf://ns/gated").artifacts) == len(FILES)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("hf://ns/none", "no model ns/none"),
        (f"{URI}@v9", "no revision “v9”"),
        (f"{URI}?file=no.json", r"no file “no\.json”"),
    ],
)
def test_f23_repository_revision_and_file_are_told_apart(
    api: HttpApi, registry: Registry, clock: StepClock, uri: str, said: str
) -> None:
    source = hub_source(api, registry, clock, registry.hub.token)
    with pytest.raises(NotFoundError, match=said):
        listed(source, uri)


def test_f23_a_listed_file_that_is_gone_is_named(source: HubSource, registry: Registry) -> None:
    commit = registry.add_hub_repo("ns/large", {"weights": bytes(17 << 20)})
    [artifact] = listed(source, "hf://ns/large").artifacts
    del registry.hub.repos["model", "ns/large"].commits[commit]["weights"]
    with pytest.raises(NotFoundError, match="“weights”"):
        source.locate(artifact)


def test_f24_pages_that_loop_end(source: HubSource, registry: Registry) -> None:
    registry.hub.page_size = 2
    commit = registry.hub.repos["model", "ns/name"].branches["main"]
    loop = f'<{registry.hub_url}/api/models/ns/name/tree/{commit}?cursor=2>; rel="next"'
    registry.faults.append(Fault(faults.header(link=loop), path=TREE, times=None))
    with pytest.raises(ListingError, match="do not end"):
        listed(source, URI)
    assert len(registry.log("hub", TREE)) == 2


def test_f24_a_next_page_on_another_host_does_not_get_the_token(
    api: HttpApi, registry: Registry, clock: StepClock
) -> None:
    registry.faults.append(Fault(faults.header(link='<http://other.example/x>; rel="next"'), path=TREE))
    with pytest.raises(ListingError, match=r"other\.example"):
        listed(hub_source(api, registry, clock, registry.hub.token), URI)


def test_f24_a_next_page_with_the_scheme_of_the_inside_is_asked_for_outside(
    source: HubSource, registry: Registry
) -> None:
    registry.hub.page_size = 3
    commit = registry.hub.repos["model", "ns/name"].branches["main"]
    inside = f"<https://127.0.0.1:1/api/models/ns/name/tree/{commit}?recursive=true&cursor=3>; rel=next"
    registry.faults.append(Fault(faults.header(link=inside), path=TREE))
    assert {a.path: a.size for a in listed(source, URI).artifacts} == _sizes(FILES)


def test_f24_a_page_that_comes_twice_changes_nothing(source: HubSource, registry: Registry) -> None:
    registry.faults.append(Fault(faults.edit_json(lambda rows: rows + rows), path=TREE))
    assert {a.path: a.size for a in listed(source, URI).artifacts} == _sizes(FILES)


def test_f24_missing_sizes_are_asked_by_head(source: HubSource, registry: Registry) -> None:
    for name in ("size", "oid"):
        registry.faults.append(Fault(faults.drop_field(name), path=TREE, times=None))
    artifacts = listed(source, URI).artifacts
    assert {a.path: a.size for a in artifacts} == _sizes(FILES)
    assert all(a.digest is None for a in artifacts)


def test_f24_a_file_without_a_digest_is_told(source: HubSource, registry: Registry) -> None:
    def lose(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**row, "lfs": {**row["lfs"], "oid": None}} if "lfs" in row else row for row in rows]

    registry.faults.append(Fault(faults.edit_json(lose), path=TREE))
    assert "“model.safetensors” has no checksum" in listed(source, URI).notes[0]


def test_f24_a_large_listing_takes_little_memory(clock: StepClock) -> None:
    """Of 200,000 files less than 150 MiB, with what Python itself takes."""

    class Rows:
        def request(self, method: str, url: Url, **_: object) -> Reply:
            rows: object = {"sha": "a" * 40}
            if "/tree/" in url.reveal():
                rows = [
                    {
                        "type": "file",
                        "path": f"data/part-{number // 1000:05}/sample-{number:07}.json",
                        "size": number,
                        "lfs": {"oid": f"{number:064}", "size": number},
                    }
                    for number in range(10_000)
                ]
            return Reply(200, {}, json.dumps(rows).encode(), url)

    source = HubSource(Rows(), endpoint=Url("https://hub.example"), token="", clock=clock)
    tracemalloc.start()
    try:
        listing = listed(source, URI)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(listing.artifacts) == 10_000
    assert held / 10_000 < 550  # bytes


@pytest.mark.parametrize("name", NAMES_NEVER_TO_WRITE)
def test_f50_an_unsafe_name_refuses_the_whole_listing(
    source: HubSource, registry: Registry, name: str
) -> None:
    registry.faults.append(
        Fault(faults.edit_json(lambda rows: [*rows, {"type": "file", "path": name, "size": 1}]), path=TREE)
    )
    with pytest.raises(ListingError, match="unsafe file name") as caught:
        listed(source, URI, "config.json")
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"path": "x", "size": -1}, "impossible size"),
        ({"path": "x", "size": 1 << 63}, "impossible size"),
        ({"path": "x", "size": 1.5}, "impossible size"),
        ({"path": "config.json/x", "size": 1}, "as a file and as a directory"),
        ({"path": "Config.json", "size": 1}, "one name"),
        ({"path": "config.json", "size": 4}, "twice: as 3 bytes and as 4 bytes"),
        ({"path": "config.json", "size": 3, "oid": "0" * 40}, "twice: as git"),
        ({"size": 1}, "no name"),
        ({"path": "x", "size": 1, "lfs": {"oid": "sha256:" + "0" * 63, "size": 1}}, "no SHA-256"),
        ({"path": "x", "size": 1, "lfs": {"oid": "../" + "0" * 61, "size": 1}}, "no SHA-256"),
    ],
)
def test_f52_what_no_volume_can_hold_is_refused(
    source: HubSource, registry: Registry, row: dict[str, Any], said: str
) -> None:
    registry.faults.append(Fault(faults.edit_json(lambda rows: [*rows, {"type": "file", **row}]), path=TREE))
    with pytest.raises(ListingError, match=said):
        listed(source, URI)


def test_f52_a_million_files_and_one_are_too_many(
    source: HubSource, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nimpull.sources.listing.MAX_FILES", 50)
    rows = json.dumps([{"type": "file", "path": f"f{i}", "size": 0} for i in range(51)]).encode()
    registry.faults.append(Fault(faults.status(200, rows, "application/json"), path=TREE))
    with pytest.raises(ListingError, match="more than 50 files"):
        listed(source, URI)


def test_f57_words_of_the_server_are_shown_escaped_and_cut(source: HubSource, registry: Registry) -> None:
    words = "\x1b[31m\u202e\n" + "x" * 5000
    refusal = faults.status(403, json.dumps({"error": words}).encode(), "application/json")
    registry.faults.append(Fault(refusal, path="/revision/"))
    with pytest.raises(ForbiddenError) as caught:
        listed(source, URI)
    assert caught.value.message.isprintable() and len(caught.value.message) < 512


def test_f57_a_commit_that_is_none_is_refused(source: HubSource, registry: Registry) -> None:
    registry.faults.append(Fault(faults.edit_json(lambda d: {**d, "sha": "../../x\n"}), path="/revision/"))
    with pytest.raises(ListingError, match="tells no commit") as caught:
        listed(source, URI)
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("status", "error"),
    [(429, NetworkError), (500, NetworkError), (451, ForbiddenError), (400, ListingError)],
)
def test_statuses_beyond_the_retry_budget(
    source: HubSource, registry: Registry, status: int, error: type[NimpullError]
) -> None:
    registry.faults.append(Fault(faults.status(status), path="/revision/", times=None))
    with pytest.raises(error, match=str(status)):
        listed(source, URI)


@pytest.mark.parametrize(("status", "error"), [(200, NetworkError), (403, NetworkError), (401, AuthError)])
def test_a_login_page_is_named_as_one(
    source: HubSource, registry: Registry, status: int, error: type[NimpullError]
) -> None:
    registry.faults.append(Fault(faults.html(status), path="/revision/"))
    with pytest.raises(error, match=r"127\.0\.0\.1:\d+ .*text/html"):
        listed(source, URI)


def test_a_body_that_is_no_json_is_refused(source: HubSource, registry: Registry) -> None:
    registry.faults.append(Fault(faults.status(200, b"[[[" * 10_000), path="/revision/"))
    with pytest.raises(ListingError, match="not JSON"):
        listed(source, URI)
