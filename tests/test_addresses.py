"""Web addresses of models, as they stand in a browser or in a NIMCache's modelEndpoint."""

from __future__ import annotations

import pytest

from nimpull.core.addresses import as_model
from nimpull.core.names import ModelUri
from nimpull.errors import UsageError

API = "https://api.ngc.nvidia.com/v2"
CATALOG = "https://catalog.ngc.nvidia.com/orgs"
HUB = "https://huggingface.co"


@pytest.mark.parametrize(
    ("address", "model"),
    [
        (f"{API}/models/acme/tiny/versions/1.0", "ngc://acme/tiny:1.0"),
        (f"{API}/models/nim/meta/tiny/versions/hf-1/", "ngc://nim/meta/tiny:hf-1"),
        (f"{API}/models/nim/meta/tiny/versions/hf-1/zip", "ngc://nim/meta/tiny:hf-1"),
        (f"{API}/models/acme/tiny", "ngc://acme/tiny:latest"),
        (f"{API}/models/acme/tiny/versions", "ngc://acme/tiny:latest"),
        (f"{API}/org/nim/team/meta/models/tiny/versions/hf-1", "ngc://nim/meta/tiny:hf-1"),
        (f"{API}/org/nim/models/tiny/versions/hf-1/files", "ngc://nim/tiny:hf-1"),
        (f"{API}/org/nim/models/tiny/hf-1/files", "ngc://nim/tiny:hf-1"),
        (f"{API}/models/org/nim/team/meta/tiny/hf-1/files", "ngc://nim/meta/tiny:hf-1"),
        (f"{API}/org/nim/models/tiny/versions/1/files/a%20b/c", "ngc://nim/tiny:1?file=a%20b/c"),
        (f"{CATALOG}/nim/teams/meta/models/tiny?version=hf-1", "ngc://nim/meta/tiny:hf-1"),
        (f"{CATALOG}/nim/models/tiny", "ngc://nim/tiny:latest"),
        ("http://mirror:8081/artifactory/ngc/v2/models/acme/tiny/versions/1.0", "ngc://acme/tiny:1.0"),
        (f"{HUB}/acme/Tiny-LM", "hf://acme/Tiny-LM:main"),
        (f"{HUB}/acme/Tiny-LM/tree/refs%2Fpr%2F7", "hf://acme/Tiny-LM:refs/pr/7"),
        (f"{HUB}/acme/Tiny-LM/resolve/main/a/b.json", "hf://acme/Tiny-LM:main?file=a/b.json"),
        (f"{HUB}/datasets/acme/tiny-set", "hf://datasets/acme/tiny-set:main"),
        ("https://store.corp/v1/hf/default/tiny", "hf://default/tiny:main"),
    ],
)
def test_an_address_of_a_registry_is_its_model(address: str, model: str) -> None:
    ngc, hubs = ("http://mirror:8081/artifactory/ngc",), ("https://store.corp/v1/hf/",)
    assert str(as_model(ModelUri.parse(address), ngc=ngc, hubs=hubs)) == model


@pytest.mark.parametrize(
    "text",
    [
        "https://example.com/v2/models/acme/tiny/versions/1.0",
        "https://api.ngc.nvidia.com.example.com/v2/models/acme/tiny",
        "s3://api.ngc.nvidia.com/v2/models/acme/tiny",
        "ngc://acme/tiny:1.0",
    ],
)
def test_what_is_no_registry_stays_as_it_is(text: str) -> None:
    uri = ModelUri.parse(text)
    assert as_model(uri) == uri


@pytest.mark.parametrize(
    "address",
    [
        f"{API}/resources/acme/tiny/versions/1.0",
        f"{API}/org/nim/team/meta/resources/tiny/1/files",
        f"{API}/models/a%20b/c/versions/1.0",
        f"{CATALOG}/nim/resources/tiny",
        f"{HUB}/api/models/acme/tiny",
        f"{HUB}/acme",
        f"{HUB}/acme/..%2Fx",
    ],
)
def test_an_address_without_a_model_shows_the_form(address: str) -> None:
    with pytest.raises(UsageError) as caught:
        as_model(ModelUri.parse(address))
    assert "The form is" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "missing"),
    [("s3://", "bucket"), ("s3:///prefix", "bucket"), ("s3://a b/c", "bucket"), ("https:///x", "host")],
)
def test_an_address_names_its_bucket_or_host(text: str, missing: str) -> None:
    with pytest.raises(UsageError, match=f"no {missing} in"):
        ModelUri.parse(text)
