"""Selection: by name, all, by criteria, or the one best fit; and what is said when nothing is."""

from __future__ import annotations

import pytest

from nimpull.core.criteria import Criteria, GpuCriterion, equal_fold, parse_tags_selector, re2_matches
from nimpull.core.manifest import Manifest, Profile
from nimpull.core.preference import profile_name
from nimpull.core.selection import named, select
from nimpull.errors import ManifestError, NoProfileError, UsageError
from tests.gpus import TABLE, example, node

V1, V2 = example("v1"), example("v2")


def chosen(manifest: Manifest, gpus: str, criteria: Criteria | None = None) -> list[str]:
    selection = select(manifest, criteria or Criteria(), node(gpus), TABLE)
    assert [profile for profile, _ in selection.verdicts] == list(manifest.profiles)
    return [profile_name(profile) for profile in selection.chosen]


def profiles(*tags: dict[str, str]) -> Manifest:
    return Manifest("v2", tuple(Profile(f"{n:x}" * 8, each) for n, each in enumerate(tags, start=10)))


@pytest.mark.parametrize(
    ("gpus", "name"),
    [
        ("H100:2", "tensorrt_llm-h100-fp8-tp2-latency"),
        ("H100", "tensorrt_llm-h100-fp8-tp1-throughput"),
        ("H100_NVL", "tensorrt_llm-h100_nvl-fp8-tp1-throughput"),
        ("A100", "tensorrt_llm-a100-bf16-tp1-throughput"),
        ("A30", "tensorrt_llm-trtllm_buildable-bf16-tp1"),
        ("L40", "tensorrt_llm-trtllm_buildable-bf16-tp1"),
    ],
)
def test_nothing_asked_takes_the_one_best_fit(gpus: str, name: str) -> None:
    assert chosen(V2, gpus) == [name]


def test_a_card_that_no_profile_was_made_for_takes_what_is_named_only() -> None:
    with pytest.raises(NoProfileError, match=r"fp8 needs compute capability 8\.9, Tesla T4 has 7\.5"):
        select(
            Manifest("v2", tuple(p for p in V2.profiles if p.tags.get("precision") == "fp8")),
            Criteria(),
            node("T4"),
            TABLE,
        )
    named = Criteria(profiles=("vllm-fp8-tp1",))
    assert [profile_name(each) for each in select(V2, named, node("T4"), TABLE).chosen] == ["vllm-fp8-tp1"]


H100 = {"gpu": "H100"}


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        ({"llm_engine": "tensorrt_llm"}, H100 | {"llm_engine": "vllm"}),
        ({"llm_engine": "vllm"}, {"llm_engine": "tensorrt_llm"}),
        ({"llm_engine": "sglang"}, {"llm_engine": "vllm"}),
        ({"llm_engine": "other"}, {"llm_engine": "sglang"}),
        ({"precision": "fp8"}, {"precision": "mxfp4"}),
        ({"precision": "bf16"}, {"precision": "FP16"}),
        ({"precision": "nvfp4"}, {"precision": "int8wo"}),
        ({"precision": "odd"}, {"precision": "int4_awq"}),
        ({"profile": "throughput"}, {"profile": "latency"}),
        ({"tp": "2"}, {"tp": "4"}),
        ({"tp": "8"}, {"tp": "4"}),
        (H100, H100 | {"gpu_device": "2330:10de"}),
        ({"feat_lora": "True", "llm_engine": "tensorrt_llm"}, {"llm_engine": "vllm"}),
    ],
)
def test_preference_is_nims_order(worse: dict[str, str], better: dict[str, str]) -> None:
    manifest = profiles(worse, better)
    selection = select(manifest, Criteria(), node("H100:4"), TABLE)
    assert selection.chosen == (manifest.profiles[1],)
    assert selection.rule == "best fit"


def test_equal_profiles_are_taken_in_manifest_order() -> None:
    manifest = profiles({"precision": "fp8"}, {"precision": "FP8"})
    assert select(manifest, Criteria(), node("H100"), TABLE).chosen == manifest.profiles[:1]


def test_all_and_all_by_name() -> None:
    assert len(chosen(V2, "", Criteria(all=True))) == len(V2.profiles)
    assert len(chosen(V2, "", Criteria(profiles=("all",)))) == len(V2.profiles)


def test_criteria_take_all_that_the_operator_takes() -> None:
    asked = Criteria(engine="tensorrt_llm", gpus=(GpuCriterion("l40s"),), buildable=False)
    assert chosen(V1, "", asked) == [
        "tensorrt_llm-l40s-fp8-tp2-latency",
        "tensorrt_llm-l40s-fp8-tp1-throughput",
    ]
    # v1 without gpus: discovered labels decide for TensorRT engines
    assert chosen(V1, "A100", Criteria(engine="tensorrt_llm")) == ["tensorrt_llm-a100-fp16-tp2-latency"]


def test_best_only_takes_one_of_what_the_criteria_take() -> None:
    lora = Criteria(lora=True, best_only=True)
    assert chosen(V2, "H100", lora) == ["tensorrt_llm-h100-bf16-tp1-throughput-lora"]
    assert chosen(V2, "L4:2", lora) == ["vllm-bf16-tp1-lora"]
    assert chosen(V2, "H100:2", Criteria(precision="bf16", best_only=True)) == [
        "tensorrt_llm-h100-bf16-tp1-throughput"
    ]
    with pytest.raises(NoProfileError, match="runs on this hardware"):
        select(V2, lora, node("T4"), TABLE)


def test_tags_selector_filters_before_the_best_fit() -> None:
    asked = Criteria(tags=parse_tags_selector("precision=bf16, tp=1 ,"))
    assert chosen(V2, "H100:2", asked) == ["tensorrt_llm-h100-bf16-tp1-throughput"]
    with pytest.raises(NoProfileError, match="no profile has the tags precision=fp4"):
        chosen(V2, "H100", Criteria(tags=(("precision", "fp4"),)))
    for text in ("precision", "=fp8"):
        with pytest.raises(UsageError, match="is not key=value"):
            parse_tags_selector(text)


# -- names ---------------------------------------------------------------------------------------------

TARGET = V2.profiles[1]


@pytest.mark.parametrize(
    "name",
    [
        TARGET.id,
        TARGET.id[:8],
        TARGET.id[:8].upper(),
        f"  {TARGET.id} ",
        f"{TARGET.id} (tensorrt_llm-h100-fp8-tp2-pp1-latency-2330:10de-8.0)",
        f"{TARGET.id} (cut off",
        "tensorrt_llm-h100-fp8-tp2-latency",
        "TensorRT_LLM-H100-fp8-tp2-latency",
        "tensorrt_llm-h100-fp8-tp2-pp1-latency",
        "tensorrt_llm-h100-fp8-tp2-pp1-latency-2330:10de-8.0",
    ],
)
def test_a_profile_by_any_of_its_names(name: str) -> None:
    assert named(V2, [name]) == (TARGET,)


def test_named_keeps_the_order_and_takes_each_once() -> None:
    first, second = V2.profiles[0], V2.profiles[3]
    assert named(V2, [second.id, first.id, profile_name(second)]) == (second, first)


@pytest.mark.parametrize("name", ["default", "", "abc", "deadbeef" * 8])
def test_f59_unknown_profile_names_the_nearest(name: str) -> None:
    with pytest.raises(NoProfileError) as caught:
        named(V2, [name])
    assert f"no profile “{name}” in the manifest" in caught.value.message
    assert caught.value.hint.startswith("Nearest: ")


def test_f59_a_misspelt_name_finds_its_neighbour() -> None:
    with pytest.raises(NoProfileError) as caught:
        named(V2, ["tensorrt_llm-h100-fp8-tp2-latancy"])
    assert caught.value.hint.startswith("Nearest: tensorrt_llm-h100-fp8-tp2-latency,")


def test_f59_names_and_prefixes_that_mean_several() -> None:
    twins = Manifest(
        "v2", (Profile("abcd1" + "0" * 59, {"tp": "1"}), Profile("abcd2" + "0" * 59, {"tp": "1"}))
    )
    for name in ("tp1", "abcd"):
        with pytest.raises(NoProfileError, match=f"“{name}” means 2 profiles: abcd1"):
            named(twins, [name])


def test_f59_duplicate_ids() -> None:
    same, other = Profile("a" * 64, {"tp": "1"}), Profile("a" * 64, {"tp": "2"})
    assert named(Manifest("v2", (same, same)), ["a" * 64]) == (same,)
    with pytest.raises(NoProfileError, match="means 2 profiles"):
        named(Manifest("v2", (same, other)), ["a" * 64])


# -- nothing matches -----------------------------------------------------------------------------------


def test_f59_nothing_fits_lists_three_nearest_and_their_change() -> None:
    manifest = profiles(
        {"gpu": "B200", "llm_engine": "tensorrt_llm"},
        {"gpu": "H100", "tp": "8", "llm_engine": "tensorrt_llm"},
        {"gpu": "H100", "tp": "2", "llm_engine": "tensorrt_llm"},
        {"llm_engine": "vllm", "min_vram_per_device_gb": "141"},
        {"llm_engine": "vllm", "tp": "x"},
    )
    with pytest.raises(NoProfileError) as caught:
        select(manifest, Criteria(), node("H100"), TABLE)
    lines = caught.value.message.splitlines()
    assert len(lines) == 4
    assert "needs 141 GB on each GPU, H100 80GB HBM3 has 85.5 GB" in lines[1]
    assert "tensorrt_llm-h100-tp2 (cccccccc): needs 2x H100 80GB HBM3, found 1x" in lines[2]
    assert "needs 8x" in lines[3]


def test_f59_only_lora_profiles_fit() -> None:
    with pytest.raises(NoProfileError, match="ask for it with --lora"):
        select(profiles({"feat_lora": "true"}), Criteria(), node("H100"), TABLE)


def test_f59_criteria_without_a_match_name_the_differences() -> None:
    asked = Criteria(
        engine="vllm",
        precision="fp16",
        tensor_parallelism="4",
        qos="latency",
        lora=True,
        buildable=True,
        gpus=(GpuCriterion("H100", ("2330",)),),
    )
    with pytest.raises(NoProfileError) as caught:
        select(profiles({"llm_engine": "sglang", "gpu": "L40S"}), asked, node(""), TABLE)
    for point in (
        "engine is sglang, asked for vllm",
        "precision is not set, asked for fp16",
        "tp is not set, asked for 4",
        "profile is not set, asked for latency",
        "feat_lora is not set, asked for true",
        "trtllm_buildable is not set, asked for true",
        "gpu is L40S, asked for H100",
        "gpu_device is not set, asked for 2330",
    ):
        assert point in caught.value.message
    with pytest.raises(NoProfileError) as caught:
        select(V2, Criteria(precision="fp8", qos="long-context"), node("H100"), TABLE)
    assert len(caught.value.message.splitlines()) == 4
    with pytest.raises(
        NoProfileError, match="no profile has the precision “fp4”; the manifest has bf16, fp8"
    ):
        select(V2, Criteria(precision="fp4"), node("H100"), TABLE)


def test_f59_criteria_that_only_the_gpus_fail() -> None:
    with pytest.raises(NoProfileError, match="for the GPUs found"):
        select(profiles({"gpu": "L40S", "precision": "fp8"}), Criteria(precision="fp8"), node("H100"), TABLE)


def test_empty_manifest() -> None:
    with pytest.raises(NoProfileError, match="holds no profile"):
        select(Manifest("v1", ()), Criteria(), node("H100"), TABLE)


def test_a_profile_with_untold_files_is_not_chosen() -> None:
    broken = Manifest("v1", (Profile("a" * 64, {"tp": "1"}, problem="it names no files"),))
    for asked in (
        Criteria(),
        Criteria(all=True),
        Criteria(profiles=("tp1",)),
        Criteria(precision="", qos=""),
    ):
        with pytest.raises(
            ManifestError, match=r"profile tp1 \(aaaaaaaaaaaa…?\) cannot be fetched: it names no"
        ):
            select(broken, asked, node("H100"), TABLE)


@pytest.mark.parametrize(
    ("tags", "name"),
    [
        (
            {
                "llm_engine": "tensorrt_llm",
                "gpu": "H100",
                "precision": "fp16",
                "tp": "1",
                "profile": "throughput",
            },
            "tensorrt_llm-h100-fp16-tp1-throughput",
        ),
        (
            {
                "llm_engine": "tensorrt_llm",
                "trtllm_buildable": "true",
                "precision": "bf16",
                "tp": "2",
                "pp": "2",
            },
            "tensorrt_llm-trtllm_buildable-bf16-tp2-pp2",
        ),
        (
            {"llm_engine": "vllm", "precision": "fp16", "tp": "1", "pp": "1", "feat_lora": "true"},
            "vllm-fp16-tp1-lora",
        ),
        (
            {"gpu": "h100", "precision": "fp16", "tp": "1", "profile": "throughput"},
            "h100-fp16-tp1-throughput",
        ),
        ({"model_type": "rmir", "name": "parakeet"}, "parakeet"),
        ({}, "profile"),
    ],
)
def test_profile_name(tags: dict[str, str], name: str) -> None:
    assert profile_name(Profile("p", tags)) == name


def test_criteria_from_a_model_spec() -> None:
    asked = Criteria.from_model_spec(
        {
            "profiles": ["all"],
            "tensorParallelism": 2,
            "lora": "true",
            "buildable": False,
            "gpus": [{"product": "l40s", "ids": ["26b9"]}, {}],
        }
    )
    assert asked == Criteria(
        profiles=("all",),
        all=True,
        tensor_parallelism="2",
        lora=True,
        buildable=False,
        gpus=(GpuCriterion("l40s", ("26b9",)), GpuCriterion()),
    )
    assert not Criteria(profiles=("x",), all=True).restricts


def test_go_text_rules() -> None:
    assert equal_fold("FP8", "fp8")
    assert not equal_fold("ß", "ss")
    assert not equal_fold("a", "ab")
    assert not re2_matches("^NVIDIA-A10(?!0).*", "NVIDIA-A10")
    assert re2_matches("A10$", "NVIDIA-A10")


@pytest.mark.parametrize(
    ("gpu", "said", "unsaid"),
    [
        (GpuCriterion("L40S", ()), "gpu is H100, asked for L40S", "gpu_device is"),
        (GpuCriterion("", ("26b9",)), "gpu_device is 2330:10de, asked for 26b9", "gpu is"),
    ],
)
def test_f59_only_what_differs_is_named(gpu: GpuCriterion, said: str, unsaid: str) -> None:
    manifest = profiles({"llm_engine": "tensorrt_llm", "gpu": "H100", "gpu_device": "2330:10de"})
    with pytest.raises(NoProfileError) as caught:
        select(manifest, Criteria(gpus=(gpu,)), node("H100:1"), TABLE)
    assert said in caught.value.message
    assert unsaid not in caught.value.message
