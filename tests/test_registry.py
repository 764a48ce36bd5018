"""The test registry against clients that nobody here wrote."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import requests
import trustme

from tests.registry import Fault, Registry, faults

WEIGHTS = bytes(range(256)) * 1000
FILES = {
    "config.json": b"{}\n",
    "empty.txt": b"",
    "sub/with space & +plus.txt": b"odd name\n",
    "model.safetensors": WEIGHTS,
}


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as running:
        yield running


@pytest.fixture
def quiet_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("base", ["hub_url", "datastore_url"])
@pytest.mark.parametrize("repo_type", ["model", "dataset"])
@pytest.mark.usefixtures("quiet_hub")
def test_the_real_hub_client_fetches_every_file(
    registry: Registry, tmp_path: Path, base: str, repo_type: str
) -> None:
    from huggingface_hub import snapshot_download

    registry.hub.page_size = 2
    commit = registry.add_hub_repo("ns/name", FILES, repo_type=repo_type, private=True)
    snapshot_download(
        "ns/name",
        repo_type=repo_type,
        endpoint=getattr(registry, base),
        token=registry.hub.token,
        local_dir=tmp_path / "model",
        cache_dir=tmp_path / "cache",
    )
    for path, content in FILES.items():
        assert (tmp_path / "model" / path).read_bytes() == content
    assert registry.log("hub", f"/resolve/{commit}/")
    assert registry.log("cdn") and not any(request.authorization for request in registry.log("cdn"))


@pytest.mark.usefixtures("quiet_hub")
def test_the_real_hub_client_reads_the_error_codes(registry: Registry, tmp_path: Path) -> None:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    registry.add_hub_repo("ns/name", FILES)
    registry.add_hub_repo("ns/gated", FILES, gated=True)
    api = HfApi(endpoint=registry.hub_url, token=False)
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("ns/none")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("ns/name", revision="v9")
    fetch = partial(hf_hub_download, endpoint=registry.hub_url, token=False, cache_dir=tmp_path)
    with pytest.raises(GatedRepoError):
        fetch("ns/gated", "config.json")
    with pytest.raises(EntryNotFoundError):
        fetch("ns/name", "none.json")


def _presigned(registry: Registry) -> str:
    registry.add_ngc_model("nim", "meta", "llama", "hf", FILES)
    answer = requests.get(
        f"{registry.ngc_url}/v2/org/nim/team/meta/models/llama/hf/files?path=model.safetensors",
        headers={"Authorization": f"Bearer {registry.ngc.key}"},
        timeout=10,
    ).json()
    assert answer["filepath"] == ["model.safetensors"]
    return str(answer["urls"][0])


def test_the_cdn_serves_ranges_of_a_presigned_url(registry: Registry) -> None:
    url = _presigned(registry)
    with requests.Session() as session:
        part = session.get(url, headers={"Range": "bytes=1000-1999"}, timeout=10)
        assert (part.status_code, part.content) == (206, WEIGHTS[1000:2000])
        assert part.headers["Content-Range"] == f"bytes 1000-1999/{len(WEIGHTS)}"
        assert session.get(url, headers={"Range": f"bytes={len(WEIGHTS)}-"}, timeout=10).status_code == 416
        other = session.get(url, headers={"Range": "bytes=5-9", "If-Range": '"other"'}, timeout=10)
        assert (other.status_code, other.content) == (200, WEIGHTS)
        assert session.get(url, headers={"Authorization": "Bearer x"}, timeout=10).status_code == 400
        registry.expire_urls()
        assert session.get(url, timeout=10).status_code == 403
    assert registry.servers[2].accepted == 1


def test_a_file_on_disk_is_served_without_reading_it_whole(registry: Registry, tmp_path: Path) -> None:
    large = tmp_path / "weights"
    with large.open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"middle")
    registry.add_hub_repo("ns/name", {"weights": large})
    answer = requests.get(
        f"{registry.hub_url}/ns/name/resolve/main/weights",
        headers={"Range": f"bytes={32 << 20}-{(32 << 20) + 5}"},
        timeout=10,
    )
    assert answer.content == b"middle"


def test_scripted_faults_hit_as_often_as_they_say(registry: Registry) -> None:
    url = _presigned(registry)
    registry.faults += [
        Fault(faults.status(503, retry_after="3"), server="cdn", times=2),
        Fault(faults.corrupt(7), server="cdn", skip=2),
        Fault(faults.truncate(10), server="cdn", skip=3),
        Fault(faults.ignore_range, server="cdn", skip=4),
    ]
    assert [requests.get(url, timeout=10).status_code for _ in range(2)] == [503, 503]
    spoiled = requests.get(url, timeout=10).content
    assert [at for at in range(len(WEIGHTS)) if spoiled[at] != WEIGHTS[at]] == [7]
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        requests.get(url, timeout=10)
    whole = requests.get(url, headers={"Range": "bytes=5-9"}, timeout=10)
    assert (whole.status_code, whole.content) == (200, WEIGHTS)


def test_ngc_guests_see_public_models_on_the_guest_path_only(registry: Registry) -> None:
    registry.add_ngc_model("nvidia", "tao", "net", "1.0", FILES, public=True)
    guest = f"{registry.ngc_url}/v2/models/org/nvidia/team/tao/net/1.0/files"
    keyed = f"{registry.ngc_url}/v2/org/nvidia/team/tao/models/net/1.0/files"
    assert requests.get(guest, timeout=10).json()["filepath"] == list(FILES)
    assert requests.get(keyed, timeout=10).status_code == 401


def test_all_of_it_speaks_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with Registry(tls=context) as registry:
        registry.add_hub_repo("ns/name", FILES)
        place = f"{registry.hub_url}/ns/name/resolve/main/model.safetensors"
        assert place.startswith("https://")
        trusting = requests.get(place, verify=str(tmp_path / "ca.pem"), timeout=10)
        assert trusting.content == WEIGHTS
        with pytest.raises(requests.exceptions.SSLError):
            requests.get(place, timeout=10)
    assert len(registry.log("cdn")) == 1
