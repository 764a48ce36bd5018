"""A report with something in each of its fields, for the tests of what becomes of reports."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from nimpull.core.artifacts import Action, Artifact, Listing, Outcome
from nimpull.core.criteria import Criteria
from nimpull.core.digest import Digest
from nimpull.core.fit import Match, MatchRule, Mismatch, Reason
from nimpull.core.hardware import Gpu, Hardware, Origin
from nimpull.core.manifest import Profile
from nimpull.core.names import ModelUri, SafePath, Url
from nimpull.core.report.contents import (
    Pause,
    PhaseSpan,
    RateLine,
    Report,
    Repository,
    SelectionSummary,
    State,
    StoreSummary,
    Timeline,
    TransferSummary,
)
from nimpull.core.report.document import to_bytes
from nimpull.core.selection import Selection

URI = ModelUri.parse("ngc://nim/meta/llama3-8b-instruct:hf")
PROFILE = Profile("031d3a7e", {"tp": "1", "llm_engine": "vllm"}, "meta/llama3-8b-instruct", "1.0.0")
MATCH = Match((0, 0, 0, 0, 0, 0), MatchRule.GENERIC, "names no GPU")
MISS = Mismatch(Reason.NO_GPU, "needs 2x H100, found 1x", "one more H100")
CANARIES = ("nvapi-CANARY0123456789", "hf_CANARYabcdefgh", "CANARYpassword", "CANARYsignature")


def to_json(report: Report) -> dict[str, Any]:
    """The report file, read."""
    document: dict[str, Any] = json.loads(to_bytes(report))
    return document


def an_outcome(path: str = "model-00001.safetensors", size: int = 3 << 30) -> Outcome:
    digest = Digest("blake3", "ab" * 32)
    artifact = Artifact(SafePath(path), size, (digest,), URI.with_path(path))
    return Outcome(artifact, Action.FETCHED, size, 1, 60.5, "blake3", size, digest)


def a_report(**changes: Any) -> Report:
    outcome = an_outcome()
    listing = Listing(
        URI,
        "latest",
        (outcome.artifact,),
        Url("https://user:CANARYpassword@api.ngc.nvidia.com/v2?k=CANARYsignature"),
    )
    whole = Report(
        state=State.READY,
        started=1_795_000_000.0,
        updated=1_795_000_061.9,
        version="0.1.0",
        profiles=(PROFILE,),
        sources=(Repository.of(listing),),
        selection=SelectionSummary.of(
            Selection(((PROFILE, MATCH), (replace(PROFILE, id="other"), MISS)), (PROFILE,), "criteria"),
            Criteria(engine="vllm", lora=False),
        ),
        hardware=Hardware(
            (Gpu(0, product="NVIDIA H100 80GB HBM3", device_id="2330:10de"),), origin=Origin.NVML
        ),
        store=StoreSummary("/model-store", "ngc-hub", 3 << 30, 40 << 30),
        transfer=TransferSummary(3 << 30, 60.5, 2, 8),
        artifacts=(outcome,),
        timeline=Timeline(
            1.0,
            (0, 1 << 20),
            (RateLine("files.example", (0, 1 << 20)),),
            1.0,
            (RateLine("files.example", (0, 1 << 20), 0),),
            (Pause(1.0, 30.0, "HTTP 429 from files.example?token=CANARYsignature"),),
            (PhaseSpan("listing", 0.0, 0.5), PhaseSpan("fetching", 0.5, 1.5)),
            {"hash": 0.25},
        ),
    )
    return replace(whole, **changes)
