"""The operator's own decisions, replayed: parsing and criteria must agree with it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from nimpull.core.manifest import Manifest, parse_manifest
from nimpull.core.selection import match_model_spec
from nimpull.errors import ManifestError

VECTORS = Path(__file__).parent / "vectors"


def read_lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (VECTORS / name).read_text("utf-8").splitlines()]


@cache
def manifest(name: str) -> Manifest:
    return parse_manifest((VECTORS / name).read_bytes())


def as_read(profiles: list[dict[str, Any]]) -> set[str]:
    return {
        json.dumps([each["id"], each["model"], each["release"], each["tags"] or {}], sort_keys=True)
        for each in profiles
    }


def as_parsed(parsed: Manifest) -> set[str]:
    return {
        json.dumps([each.id, each.model, each.release, dict(each.tags)], sort_keys=True)
        for each in parsed.profiles
    }


@pytest.mark.parametrize("case", read_lines("parse-cases.jsonl"), ids=lambda case: str(case["name"]))
def test_parse_agrees_with_the_operator(case: dict[str, Any]) -> None:
    text = case["manifest"].encode()
    if case["error"]:
        with pytest.raises(ManifestError, match=r"line \d+: "):
            parse_manifest(text)
        return
    parsed = parse_manifest(text)
    assert parsed.schema == case["parser"]
    assert as_parsed(parsed) == as_read(case["profiles"])


@pytest.mark.parametrize(
    "case", read_lines("profiles-public.jsonl"), ids=lambda case: Path(case["manifest_file"]).stem
)
def test_profiles_of_every_manifest(case: dict[str, Any]) -> None:
    ids_twice = case["manifest_file"].endswith("v2-08-yaml.yaml")  # recorded by id there, so one row is lost
    parsed, expected = as_parsed(manifest(case["manifest_file"])), as_read(case["profiles"])
    assert parsed >= expected if ids_twice else parsed == expected


def test_model_spec_selects_what_the_operator_selects() -> None:
    cases = read_lines("vectors-public.jsonl")
    assert len(cases) == 400
    wrong = {
        case["id"]: sorted(set(chosen) ^ set(case["expected"]))
        for case in cases
        if set(
            chosen := match_model_spec(
                manifest(case["manifest_file"]), case["model_spec"], case["discovered_gpus"]
            )
        )
        != set(case["expected"])
    }
    assert wrong == {}
