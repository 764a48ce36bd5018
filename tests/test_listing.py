"""Listings: the container's own grammar for scripts that parse it, and the table for people."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import yaml

from nimpull.core.fit import Fitter
from nimpull.core.hardware import Gpu, Hardware
from nimpull.core.manifest import Manifest, Profile
from nimpull.core.nim_listing import render as render_as_nim
from nimpull.core.profile_table import ProfileList, render
from nimpull.core.selection import named
from tests.gpus import TABLE, example, node

#: Patterns of scripts that are known to read the real tool's output.
SED_NAMED = re.compile(r".*- ([a-f0-9]{40,}) \(([^)]+)\).*")
WITH_MEMORY = re.compile(
    r"^\s*-\s+([a-fA-F0-9]{64})\s+\(([^)]+)\)\s+\[requires\s+>=\s*([0-9.]+)\s+GB/gpu\]", re.MULTILINE
)


def as_nim(manifest: Manifest, hardware: Hardware) -> str:
    fitter = Fitter(hardware, TABLE)
    return render_as_nim(tuple((each, fitter.verdict(each)) for each in manifest.profiles), hardware)


def listing(manifest: Manifest, hardware: Hardware, best: str = "") -> ProfileList:
    fitter = Fitter(hardware, TABLE)
    judged = tuple((each, fitter.verdict(each)) for each in manifest.profiles)
    return ProfileList(manifest, hardware, judged, best)


def headings(text: str) -> list[str]:
    return [line for line in text.splitlines() if re.match(r"(  )?- [A-Z]|[A-Z]", line)]


def test_classic_form_on_free_gpus() -> None:
    text = as_nim(example("v1"), node("L40S:2", used=0.01))
    assert text.startswith(
        "SYSTEM INFO\n"
        "- Free GPUs:\n"
        "  -  [26b9:10de] (0) NVIDIA L40S [current utilization: 0%]\n"
        "  -  [26b9:10de] (1) NVIDIA L40S [current utilization: 0%]\n"
        "MODEL PROFILES\n"
        "- Compatible with system and runnable:\n"
    )
    assert headings(text)[-2:] == ["  - With LoRA support:", "- Incompatible with system:"]
    names = [found[2] for line in text.splitlines() if (found := SED_NAMED.match(line))]
    assert names[:5] == [
        "tensorrt_llm-l40s-fp8-tp2-latency",
        "tensorrt_llm-l40s-fp8-tp1-throughput",
        "vllm-fp16-tp2",
        "vllm-fp16-tp1",
        "vllm-fp16-tp1-lora",
    ]
    assert len(names) == len(example("v1").profiles)
    assert re.search(r"^    - [0-9a-f]{64} \(vllm-fp16-tp1-lora\)$", text, re.MULTILINE)


def test_classic_form_on_a_busy_gpu_has_no_colon_there() -> None:
    text = as_nim(example("v1"), node("A10", used=0.85))
    assert headings(text) == [
        "SYSTEM INFO",
        "- Free GPUs: <None>",
        "- Non-free GPUs:",
        "MODEL PROFILES",
        "- Compatible with system and runnable: <None>",
        "- Compatible with system but not runnable due to low GPU free memory",
        "  - With LoRA support:",
        "- Incompatible with system:",
    ]
    assert "  -  [2236:10de] (0) NVIDIA A10 [current utilization: 84%]" in text


def test_classic_form_with_profiles_to_compile() -> None:
    tags = {"llm_engine": "tensorrt_llm", "precision": "bf16", "tp": "1", "trtllm_buildable": "true"}
    manifest = Manifest("v1", (Profile("a" * 64, tags), Profile("b" * 64, tags | {"feat_lora": "true"})))
    assert as_nim(manifest, node("L4")).endswith(
        "- Compatible with system and runnable: <None>\n"
        "- Compilable to TRT-LLM using just-in-time compilation of HF models to TRTLLM engines:\n"
        f"  - {'a' * 64} (tensorrt_llm-trtllm_buildable-bf16-tp1)\n"
        "  - With LoRA support:\n"
        f"    - {'b' * 64} (tensorrt_llm-trtllm_buildable-bf16-tp1-lora)\n"
        "- Incompatible with system:\n"
    )


def test_modern_form_has_memory_needs_and_every_heading() -> None:
    text = as_nim(example("v2"), node("RTX 5090", used=0.1))
    assert headings(text)[3:] == [
        "MODEL PROFILES",
        "- Compatible with system and runnable:",
        "  - With LoRA support:",
        "- Compatible with system but low memory:",
        "- Compilable to TRT-LLM using just-in-time compilation of HF models to TRTLLM engines:",
        "- Incompatible with system:",
    ]
    rows = WITH_MEMORY.findall(text)
    assert len(rows) == len(example("v2").profiles)
    assert rows[0][1:] == ("vllm-fp8-tp1-pp1-12.0", "12")
    assert re.search(r"^    - \w{64} \(vllm-bf16-tp1-pp1-long-context-63.0\)", text, re.MULTILINE)
    # what is printed can be given back as a name
    for identity, name, _ in rows:
        assert named(example("v2"), [f"{identity} ({name})"])[0].id == identity
        assert named(example("v2"), [name])[0].id == identity


def test_modern_form_without_a_gpu() -> None:
    text = as_nim(example("v2"), node(""))
    assert "- Free GPUs: <None>\nMODEL PROFILES\n- Compatible with system and runnable: <None>\n" in text
    assert "- Compatible with system but low memory: <None>\n" in text
    assert "engines: <None>\n- Incompatible with system:\n    - " in text


def test_form_of_other_nims_shows_tags() -> None:
    text = as_nim(example("nonllm"), node("A10"))
    assert headings(text)[-2:] == ["- Compatible with system:", "- Incompatible with system:"]
    assert re.search(
        r"^    - [0-9a-f]{64} - backend:onnx\|model_type:onnx\|precision:fp16$", text, re.MULTILINE
    )
    assert "- Compatible with system: <None>" in as_nim(
        Manifest("v2", (Profile("a" * 64, {"gpu": "h100"}),)), node("L4")
    )


def test_long_names_of_manifests_with_workspace_hashes() -> None:
    tags = {
        "llm_engine": "tensorrt_llm",
        "gpu": "H100_NVL",
        "gpu_device": "2321:10de",
        "precision": "fp8",
        "tp": "2",
        "pp": "1",
        "profile": "throughput",
        "nim_workspace_hash_v1": "5e20",
        "number_of_gpus": "4",
    }
    text = as_nim(Manifest("v1", (Profile("b" * 64, tags),)), node("H100_NVL:2"))
    assert "(tensorrt_llm-h100_nvl-fp8-tp2-pp1-throughput-2321:10de-5e20-4)" in text


def test_foreign_text_cannot_forge_lines() -> None:
    evil = Profile("c" * 64, {"llm_engine": "vllm)\n- Incompatible", "tp": "1"})
    odd = Hardware((Gpu(0, product="X\x1b[31m\n"),))
    text = as_nim(Manifest("v2", (evil,)), odd)
    assert "\x1b" not in text
    assert "vllm]\\n- Incompatible" in text
    assert "[0000:10de] (0) X\\x1b[31m\\n [current utilization: N/A%]" in text


def test_table_groups_and_marks_the_best() -> None:
    manifest = example("v2")
    best = manifest.profiles[1]
    text = render(listing(manifest, node("H100:2"), best.id))
    assert text.startswith("Hardware: 2x NVIDIA H100 80GB HBM3 (2330:10de, 79.6 GiB each) [override]\n")
    assert f" *  tensorrt_llm-h100-fp8-tp2-latency           {best.id[:12]}  2     8       8\n" in text
    assert [line for line in text.splitlines() if line.endswith(":") and line[0] != " "] == [
        "Runnable here, best first:",
        "Runs here after its engine was compiled on the node:",
        "For other hardware:",
    ]
    assert "19 of 19 profiles (145 files, 39 distinct). * is what" in text
    wide = render(listing(manifest, node("H100:2")), "wide")
    assert best.id in wide
    assert "gpu_device 2330:10de is H100 80GB HBM3; 2 GPUs, 8 GB each" in wide


def test_explain_reads_like_an_answer() -> None:
    text = render(listing(example("v2"), node("H100")), explain=True)
    assert "     no: needs 2x H100 80GB HBM3, found 1x\n     would change it: 2x H100 80GB HBM3\n" in text
    assert "     fits: gpu_device 2330:10de is H100 80GB HBM3; 1 GPU, 12 GB each\n" in text
    busy = render(listing(example("v2"), node("H100", used=0.9)), explain=True)
    assert "fits, but the memory is in use now: gpu_device 2330:10de" in busy
    other = render(listing(example("v2"), node("2331:10de,L4")), explain=True)
    assert "Hardware: 1x NVIDIA H100 PCIe" in other
    assert "note: made for NVIDIA H100 80GB HBM3 (2330:10de); this is another card of the family" in other
    assert "needs 63 GB on each GPU" not in other  # the H100 has it
    broken = Manifest("v2", (Profile("d" * 64, {"tp": "x"}, problem="it names no files"),), notes=("n\n",))
    text = render(listing(broken, node("")), explain=True)
    assert "Hardware: no GPU found\nNote: n\\n\n" in text
    assert "cannot be fetched: it names no files" in text
    assert "1 of 1 profiles (no files)." in text
    assert re.search(r"tpx   d{12} +\? +\? +\?", render(listing(broken, node(""))))


def test_documents_carry_everything() -> None:
    manifest = example("v2")
    shown = listing(manifest, node("H100"), manifest.profiles[0].id)
    document = json.loads(render(shown, "json"))
    assert yaml.safe_load(render(shown, "yaml")) == document
    assert document["best"] == manifest.profiles[0].id
    assert document["hardware"]["gpus"][0]["deviceId"] == "2330:10de"
    first, second = document["profiles"][:2]
    assert first["verdict"]["fits"] is True
    assert first["requires"] == {"gpus": 1, "memoryGb": 12.0}
    assert first["tags"]["gpu_device"] == "2330:10de"
    assert second["verdict"] == {
        "fits": False,
        "reason": "count",
        "detail": "needs 2x H100 80GB HBM3, found 1x",
        "change": "2x H100 80GB HBM3",
    }
    odd = json.loads(render(listing(Manifest("v2", (Profile("e", {"tp": "x"}),)), node("H100")), "json"))
    assert odd["profiles"][0]["requires"] == {"problem": "tag tp is “x”, not a number"}


def test_ids_feed_a_loop_runnable_first() -> None:
    lines = render(listing(example("v2"), node("H100")), "ids").splitlines()
    assert sorted(lines) == sorted(profile.id for profile in example("v2").profiles)
    assert lines[0] == example("v2").profiles[0].id
    assert render(listing(Manifest("v2", ()), node("")), "ids") == ""


@pytest.mark.parametrize("mig", ["1g.10gb", ""])
def test_headline_names_mig_slices(mig: str) -> None:
    card = node("H100").gpus[0]
    hardware = Hardware((replace(card, mig=mig), replace(card, mig=mig, memory_total=None)))
    text = render(listing(example("v2"), hardware))
    assert ("2x NVIDIA H100 80GB HBM3 MIG 1g.10gb" in text) is bool(mig)
