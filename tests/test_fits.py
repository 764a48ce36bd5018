"""``nimpull fits``: what the metadata service says, as one name and as a list, and what it leaves out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nimpull.core.fits_table import FitTable, Machine, render_json
from nimpull.core.hardware import named_hardware
from nimpull.core.published_profiles import parse_metadata, parse_resource
from nimpull.errors import ListingError, UsageError
from tests.calls import call
from tests.gpus import TABLE
from tests.registry import Fault, Registry, faults

NIM = ("nim/meta/llama-3.3-70b-instruct", "1.8.5")
NAME = ":".join(NIM)
H100 = {
    "profile_id": "a" * 64,
    "inference_backend": "tensorrt_llm",
    "precision": "fp8",
    "gpu": "h100",
    "gpu_device": "2330:10de",
    "tensor_parallel_size": 4,
    "pipeline_parallel_size": 1,
    "min_vram_per_device_gb": 80.0,
    "latency": "throughput",
    "feat_lora": False,
}
GENERIC = {
    "profile_id": "b" * 64,
    "inference_backend": "vllm",
    "precision": "bf16",
    "tensor_parallel_size": 2,
    "min_vram_per_device_gb": 40,
    "tested_gpu_devices": [],
}


def without(profile: dict[str, Any], *fields: str, **changed: object) -> dict[str, Any]:
    return {name: value for name, value in {**profile, **changed}.items() if name not in fields}


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as started:
        yield started


def asked(registry: Registry, tmp_path: Path, *options: str) -> tuple[int, str]:
    return call(registry, tmp_path, "nimpull", "fits", NAME, *options, NGC_API_KEY="", NIMPULL_GPUS="")


def verdicts(profile: dict[str, Any], *gpus: str) -> list[bool | None]:
    machines = [Machine(each, named_hardware(each, TABLE)) for each in gpus]
    table = FitTable.of(NAME, machines, parse_metadata({"profiles": [profile]}), TABLE)
    return [verdict["fits"] for verdict in json.loads(render_json(table))["profiles"][0]["verdicts"]]


def test_a_column_for_each_machine(registry: Registry, tmp_path: Path) -> None:
    registry.ngc.metadata[NIM] = {"profiles": [H100, GENERIC], "release_details": {"version": "1.8.5"}}
    code, text = asked(registry, tmp_path, "--gpu", "H100:4", "--gpu", "L40S:2", "--gpu", "A10:1")
    assert code == 0, text
    rows = {line.split()[1]: line.split()[2:] for line in text.splitlines() if "tp" in line}
    assert rows == {
        "tensorrt_llm-h100-fp8-tp4-throughput": ["a" * 12, "4", "80", "yes", "no", "no"],
        "vllm-bf16-tp2": ["b" * 12, "2", "40", "yes", "yes", "no"],
    }
    assert "H100:4: 2 of 2 profiles fit." in text
    [request] = registry.log("ngc")
    assert not request.authorization and request.query == {"resourceId": NIM[0], "tag": NIM[1]}


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        (H100, [True, False]),
        (without(H100, gpu=["h200", "h100"], gpu_device=["2335:10de", "2330:10de"]), [True, False]),
        (without(H100, "gpu_device", gpu=["h100", "l40s"]), [True, False]),
        (without(H100, "gpu", gpu_device=["2330:10de", "26b9:10de"], tensor_parallel_size=2), [True, False]),
        (without(H100, "gpu", "gpu_device", min_vram_per_device_gb=40), [True, False]),
        (without(GENERIC), [True, True]),
        # what is not said is unknown, and no "no"
        (without(H100, "tensor_parallel_size"), [None, False]),
        (without(H100, "min_vram_per_device_gb"), [None, False]),
        (without(H100, "pipeline_parallel_size"), [True, False]),
        (without(GENERIC, "tensor_parallel_size", "min_vram_per_device_gb"), [None, None]),
        (without(GENERIC, "min_vram_per_device_gb"), [None, None]),
        ({"profile_id": "c"}, [None, None]),
        ({}, [None, None]),
        (without(H100, tensor_parallel_size="many"), [None, None]),
        (without(H100, "gpu_device", gpu="a card of tomorrow"), [None, None]),
        # what is said may say no, whatever else is missing
        (without(GENERIC, "min_vram_per_device_gb", tensor_parallel_size=8), [False, False]),
        (without(GENERIC, min_vram_per_device_gb=70), [True, False]),
    ],
)
def test_what_is_not_said_is_unknown(profile: dict[str, Any], expected: list[bool | None]) -> None:
    assert verdicts(profile, "H100:4", "L40S:2") == expected


@pytest.mark.parametrize("document", [None, {}, {"features": {"context": 1}}, {"profiles": []}])
def test_a_nim_that_is_not_known_is_unknown(
    registry: Registry, tmp_path: Path, document: dict[str, Any] | None
) -> None:
    registry.ngc.metadata[NIM] = document
    code, text = asked(registry, tmp_path, "--gpu", "H100:8")
    assert (code, f"{NAME}: unknown." in text) == (0, True), text
    code, text = asked(registry, tmp_path, "--gpu", "H100:8", "-o", "json")
    assert (json.loads(text)["known"], json.loads(text)["profiles"]) == (document is not None, [])


def test_the_reasons_on_request(registry: Registry, tmp_path: Path) -> None:
    registry.ngc.metadata[NIM] = {"profiles": [H100, without(H100, "tensor_parallel_size")]}
    _, text = asked(registry, tmp_path, "--gpu", "H100:2", "--explain")
    assert "H100:2: no: needs 4x H100" in text
    assert "H100:2: ?: a GPU that it may run on; how many GPUs it needs is not said" in text


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (faults.status(200, b'{"profiles": {"a": 1}}', "application/json"), 22),
        (faults.status(200, b'["x"]', "application/json"), 22),
        (faults.html(200), 30),
        (faults.status(500), 30),
    ],
)
def test_an_answer_that_is_none_is_an_error(
    registry: Registry, tmp_path: Path, answer: faults.Edit, code: int
) -> None:
    registry.faults.append(Fault(answer, path="/v2/nim/metadata", times=None))
    assert asked(registry, tmp_path, "--gpu", "H100:8")[0] == code


@pytest.mark.parametrize(
    "text",
    [
        NAME,
        f"nvcr.io/{NAME}",
        f"ngc://{NAME}",
        f"localhost:5000/{NAME}",
        f"docker://nvcr.io/{NAME}@sha256:{'0' * 64}",
    ],
)
def test_an_image_is_its_resource(text: str) -> None:
    assert parse_resource(text) == NIM


@pytest.mark.parametrize("text", ["llama:1", "nim/meta/llama", "nvcr.io/nim//llama:1", "", "nim/meta/a:"])
def test_what_is_no_resource(text: str) -> None:
    with pytest.raises(UsageError, match="tag"):
        parse_resource(text)


def test_hostile_text_is_escaped_and_cut() -> None:
    [published] = parse_metadata(
        {"profiles": [{"profile_id": "\x1b[2J" * 100, "gpu": [None, {"a": 1}, True]}]}
    )
    assert published.profile.id.isprintable() and len(published.profile.id) <= 129
    with pytest.raises(ListingError):
        parse_metadata({"profiles": [1]})


def test_as_a_page(registry: Registry, tmp_path: Path) -> None:
    registry.ngc.metadata[NIM] = {"profiles": [H100, without(GENERIC, "tensor_parallel_size")]}
    page = tmp_path / "page.html"
    code, text = asked(registry, tmp_path, "--gpu", "H100:4", "--gpu", "A10:1", "--html", str(page))
    assert (code, text) == (0, "")
    signs = re.findall(r'class="sign s-(\w+)" role="img" title="([^"]*)"', page.read_text())
    assert [state for state, _ in signs] == ["fits", "no", "unknown", "near"]
    assert signs[2][1].endswith("how many GPUs it needs is not said")
    assert page.read_text().count("best fit<") == 1


def test_a_page_of_what_is_unknown_says_so(registry: Registry, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    code, text = asked(registry, tmp_path, "--gpu", "H100:4", "--html", str(page))
    assert (code, text) == (0, "")
    assert "It is unknown. The metadata service does not have it" in page.read_text()
