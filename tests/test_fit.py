"""Fit: which rule meets which GPU, and what a miss says."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from nimpull.core.fit import Fitter, Match, MatchRule, Mismatch, Reason, Verdict
from nimpull.core.hardware import (
    DeviceTable,
    Gpu,
    Hardware,
    named_hardware,
    normal_device_id,
    product_label,
)
from nimpull.core.manifest import Profile
from nimpull.errors import UsageError
from tests.gpus import PROFILES, TABLE, node


def judge(hardware: Hardware | str, **tags: str) -> Verdict:
    hardware = node(hardware) if isinstance(hardware, str) else hardware
    return Fitter(hardware, TABLE).verdict(Profile("p", tags))


def how(gpus: str, **tags: str) -> MatchRule | None:
    verdict = judge(gpus, **tags)
    return verdict.how if isinstance(verdict, Match) else None


def miss(hardware: Hardware | str, **tags: str) -> Mismatch:
    verdict = judge(hardware, **tags)
    assert isinstance(verdict, Mismatch)
    return verdict


@pytest.mark.parametrize(
    ("gpus", "precision", "fits"),
    [
        ("T4", "fp8", False),
        ("T4", "bf16", False),
        ("T4", "fp16", True),
        ("A100", "bf16", True),
        ("A100", "FP8", False),
        ("L4", "fp8", True),
        ("H100", "nvfp4", False),
        ("B200", "nvfp4", True),
        ("GB10", "nvfp4", True),
        ("H100", "mxfp4", True),
    ],
)
def test_a_precision_needs_a_gpu_that_was_made_for_it(gpus: str, precision: str, fits: bool) -> None:
    verdict = judge(gpus, precision=precision)
    assert isinstance(verdict, Match) == fits
    if isinstance(verdict, Mismatch):
        assert verdict.reason is Reason.CAPABILITY


def test_what_is_said_of_a_gpu_without_the_precision() -> None:
    found = miss("A100", precision="fp8")
    assert found.detail == "fp8 needs compute capability 8.9, A100-SXM4-80GB has 8.0"
    assert found.change == "a GPU with compute capability 8.9 or later"
    assert how("A100,L4", precision="fp8") is MatchRule.GENERIC, "one of them has it"


@pytest.mark.parametrize("told", ["", "unknown", "9"])
def test_a_gpu_that_does_not_tell_its_capability_is_not_refused(told: str) -> None:
    untold = Hardware((replace(node("T4").gpus[0], compute_capability=told),))
    assert isinstance(judge(untold, precision="fp8"), Match)


def test_a_profile_made_for_a_gpu_knows_better() -> None:
    assert how("A100", precision="fp8", gpu="a100") is MatchRule.FAMILY


@pytest.mark.parametrize(
    ("gpus", "tag", "fits"),
    [
        ("A10", "a10", True),
        ("A100", "a10", False),
        ("A10G", "a10", False),
        ("L4", "l4", True),
        ("L40S", "l4", False),
        ("L40", "l40s", False),
        ("H200", "h20", False),
        ("GH200 480GB", "h200", False),
        ("GB200", "b200", False),
        ("H100", "H100", True),
        ("2331:10de", "h100", True),
        ("2331:10de", "h100-pcie", True),
        ("2331:10de", "h100pcie", True),
        ("H100", "h100_pcie", False),
        ("2321:10de", "h100_nvl", True),
        ("2321:10de", "h100", False),
        ("20b0:10de", "a100_sxm4_40gb", True),
        ("20b0:10de", "a100", False),
        ("20b5:10de", "a100pcie", True),
        ("2bb5:10de", "rtx6000_blackwell_sv", True),
        ("2bb1:10de", "rtx6000_blackwell_sv", False),
        ("GH200 480GB", "gh200_480gb", True),
        ("A16", "a16", True),
        ("A16", "a2", False),
        ("A2", "a2", True),
        ("A2", "a16", False),
        ("B200", "b200", True),
        ("H100", "nvidia-h100-80gb-hbm3", True),
    ],
)
def test_a_family_is_looked_up_not_searched(gpus: str, tag: str, fits: bool) -> None:
    assert (how(gpus, gpu=tag) is MatchRule.FAMILY) is fits


def test_each_rule_in_its_order() -> None:
    assert how("H100", gpu="H100", gpu_device="2330:10DE") is MatchRule.EXACT
    assert how("H100", gpu_device="2330") is MatchRule.EXACT  # Riva leaves the vendor out
    assert how("L40", gpu="L40S", gpu_device="26b5:10de") is MatchRule.EXACT
    assert (
        how("A10", key="NVIDIA-A10G_10.0.1_12", product_name_regex="^NVIDIA-A10(?!0).*") is MatchRule.PATTERN
    )
    assert how("A100", product_name_regex="^NVIDIA-A10(?!0).*") is None
    assert how("H100", product_name_regex="80GB HBM3$") is MatchRule.PATTERN  # the NVML name, with blanks
    assert how("T4", precision="fp16") is MatchRule.GENERIC
    assert how("H100", gpu_device="2e12:10de") is None  # a device id alone is a requirement too


def test_family_match_of_another_card_is_noted() -> None:
    verdict = judge("2331:10de", gpu="h100", gpu_device="2330:10de")
    assert isinstance(verdict, Match)
    assert "made for NVIDIA H100 80GB HBM3 (2330:10de)" in verdict.note


def test_a_card_that_the_table_does_not_know_matches_by_its_own_name() -> None:
    new = Hardware((Gpu(0, product="NVIDIA R100 NVL", device_id="3fff:10de"),))
    assert isinstance(judge(new, gpu="r100_nvl"), Match)
    assert miss(new, gpu="r100").reason is Reason.GPU


def test_count_is_tp_times_pp_of_one_kind() -> None:
    assert isinstance(judge("H100:4", gpu="h100", tp="2", pp="2"), Match)
    short = miss("H100", gpu="h100", tp="2")
    assert (short.reason, short.detail) == (Reason.COUNT, "needs 2x H100 80GB HBM3, found 1x")
    assert short.change == "2x H100 80GB HBM3"
    assert miss("H100,2331:10de", gpu="h100", tp="2").reason is Reason.COUNT  # one family, two kinds
    assert isinstance(judge("L40S,H100:2", tp="2"), Match)
    assert isinstance(judge("H100:2", number_of_gpus="2"), Match)
    assert miss("H100", number_of_gpus="2").reason is Reason.COUNT


@pytest.mark.parametrize("tags", [{"tp": "two"}, {"tp": "-1"}, {"tp": "0"}, {"pp": "99999999"}, {"tp": "٣"}])
def test_unreadable_counts(tags: dict[str, str]) -> None:
    assert miss("H100", **tags).reason is Reason.BAD_TAG


@pytest.mark.parametrize("text", ["much", "-1", "nan", "inf", "1e9"])
def test_unreadable_memory(text: str) -> None:
    assert miss("H100", min_vram_per_device_gb=text).reason is Reason.BAD_TAG


def test_memory_is_decimal_with_slack() -> None:
    assert isinstance(judge("H100", min_vram_per_device_gb="80.0"), Match)
    assert isinstance(judge("L4", min_vram_per_device_gb="24"), Match)
    assert isinstance(judge("A10", min_vram_per_device_gb="24.5"), Match)
    small = miss("L4", min_vram_per_device_gb="33.0")
    assert (small.reason, small.detail) == (Reason.MEMORY, "needs 33 GB on each GPU, L4 has 24.2 GB")
    unknown = judge(
        Hardware((Gpu(0, product="NVIDIA GB10", device_id="2e12:10de"),)), min_vram_per_device_gb="20"
    )
    assert isinstance(unknown, Match)
    assert unknown.note == "the GPU does not tell its memory"
    none = Hardware((Gpu(0, product="NVIDIA L4", device_id="27b8:10de", memory_total=0),))
    assert miss(none, min_vram_per_device_gb="1").reason is Reason.MEMORY


def test_busy_gpus_still_fit_in_total() -> None:
    def busy(used: float, **tags: str) -> bool:
        verdict = judge(node("L4", used=used), **tags)
        assert isinstance(verdict, Match)
        return verdict.busy

    assert [busy(used) for used in (0.0, 0.03, 0.07)] == [False, False, True]
    assert [busy(used, min_vram_per_device_gb="20") for used in (0.07, 0.5)] == [False, True]


def test_mig_slices_take_generic_profiles_of_one_gpu() -> None:
    card = named_hardware("H100", TABLE).gpus[0]
    slices = Hardware(tuple(replace(card, index=n, mig="1g.10gb", memory_total=10 << 30) for n in range(2)))
    assert isinstance(judge(slices, min_vram_per_device_gb="9"), Match)
    assert miss(slices, gpu="h100").reason is Reason.MIG
    assert miss(slices, tp="2").reason is Reason.MIG
    assert miss(slices, min_vram_per_device_gb="20").reason is Reason.MEMORY


def test_vgpu_is_noted() -> None:
    card = replace(named_hardware("H100", TABLE).gpus[0], virtual=True)
    verdict = judge(Hardware((card,)), gpu="h100")
    assert isinstance(verdict, Match)
    assert verdict.note.startswith("a vGPU")


def test_no_gpu_says_what_to_do() -> None:
    nothing = miss("", gpu="H100", tp="2")
    assert (nothing.reason, nothing.detail) == (Reason.NO_GPU, "needs 2x H100, no GPU found")
    assert "--gpu" in nothing.change


EVIL = (r"^(?=N)NVIDIA-(A|AA)+$", r"^(?!X)NVIDIA-(A|A)*[^b]$", r"^(?!X)(.*A){20}[A-Z]$")


def test_f54_catastrophic_patterns_end_soon_and_are_that_profiles_own() -> None:
    long = Hardware((Gpu(0, product="NVIDIA " + "A" * 60 + "b", device_id="3ffe:10de"),))
    fitter = Fitter(long, TABLE)
    before = time.process_time()
    slow = [
        fitter.verdict(Profile(str(n), {"product_name_regex": EVIL[n % 3] + f"(?#{n})"})) for n in range(300)
    ]
    assert time.process_time() - before < 3  # 300 patterns at the time limit each would be 15 s
    assert all(isinstance(each, Mismatch) for each in slow)
    reasons = [each.reason for each in slow if isinstance(each, Mismatch)]
    assert reasons.count(Reason.BAD_PATTERN) > 50
    assert isinstance(fitter.verdict(Profile("fine", {"precision": "fp8"})), Match)


def test_f54_linear_engine_takes_what_it_can() -> None:
    before = time.process_time()
    assert miss("H100", product_name_regex="^(NVIDIA-?)*(.+)+X$").reason is Reason.GPU
    assert time.process_time() - before < 1


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("^NVIDIA-(", "not a regular expression"),
        ("a" * 513, "longer than 512 characters"),
        ("(?!0)((((a|b){999}){999}){999})", "repeats more than 1000 times"),
        ("(?!0)(a{30,40}b){30,}", "repeats more than 1000 times"),
        ("(?!0)(a|(?R))", "a group that is neither plain nor a lookaround"),
        ("(?!0)(?:NVIDIA){e<=3}", "a brace that is not a count"),
    ],
)
def test_f54_unusable_pattern_is_a_mismatch_with_its_reason(pattern: str, why: str) -> None:
    verdict = miss("H100", product_name_regex=pattern)
    assert verdict.reason is Reason.BAD_PATTERN
    assert why in verdict.detail


@pytest.mark.parametrize(
    ("text", "products"),
    [
        ("H100:8", ["NVIDIA H100 80GB HBM3"] * 8),
        ("2330:10de:2", ["NVIDIA H100 80GB HBM3"] * 2),
        ("2330", ["NVIDIA H100 80GB HBM3"]),
        ("b200, a100:2,", ["NVIDIA B200"] + ["NVIDIA A100-SXM4-80GB"] * 2),
        ("NVIDIA-L40S", ["NVIDIA L40S"]),
        ("RTX 5090", ["NVIDIA GeForce RTX 5090"]),
        ("3ffe:10de:2", ["", ""]),
    ],
)
def test_gpu_override(text: str, products: list[str]) -> None:
    gpus = named_hardware(text, TABLE).gpus
    assert [gpu.product for gpu in gpus] == products
    assert [gpu.index for gpu in gpus] == list(range(len(products)))


@pytest.mark.parametrize("text", ["", " , ", "X9000", "H100:0", "H100:2000", "beef", "H100:1000,H100:1000"])
def test_gpu_override_refuses(text: str) -> None:
    with pytest.raises(UsageError):
        named_hardware(text, TABLE)


def test_labels_and_ids() -> None:
    assert product_label("NVIDIA H100 80GB HBM3") == "NVIDIA-H100-80GB-HBM3"
    assert product_label("NVIDIA  A10 (x)") == "NVIDIA-A10-x"
    assert [normal_device_id(each) for each in ("0x2330", "2330:10DE", "23300", "")] == [
        "2330:10de",
        "2330:10de",
        "",
        "",
    ]


def test_every_row_of_the_table_is_found_by_its_names() -> None:
    for device in TABLE.devices:
        gpu = Gpu(
            0,
            product=device.product,
            device_id=device.device_id,
            subsystem_id=TABLE.telling_subsystem(device),
        )
        assert TABLE.device_of(gpu) == device
        assert TABLE.in_family(gpu, device.product)
        assert not device.family or TABLE.in_family(gpu, device.family)
        assert device.label in TABLE.labels(gpu)


def test_table_rows_need_an_id_and_empty_names_match_nothing() -> None:
    header = (PROFILES / "gpus.csv").read_text("utf-8").splitlines()[0]
    with pytest.raises(ValueError, match=r"gpus\.csv: not a device id: 'x'"):
        DeviceTable.parse(f"{header}\nx{',' * header.count(',')}\n")
    assert not TABLE.in_family(node("H100").gpus[0], " - ")
    assert TABLE.find("ffff:10de") is None


def test_f54_a_pattern_that_times_out_is_a_mismatch_and_few_may(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def too_slow(pattern: str, label: str, *, timeout: float) -> None:
        asked.append(pattern)
        raise TimeoutError

    monkeypatch.setattr("nimpull.core.fit.regex.search", too_slow)
    fitter = Fitter(node("H100:1"), TABLE)
    for number in range(20):
        verdict = fitter.verdict(Profile("a", {"product_name_regex": f"^NVIDIA-X{number}(?!0).*"}))
        assert isinstance(verdict, Mismatch)
        assert (verdict.reason, "takes too long" in verdict.detail) == (Reason.BAD_PATTERN, True)
    assert len(asked) == 8, "a manifest of slow patterns costs a bounded time"
