"""The report in its three sizes: schema, shape of NIMCache.status, limits, no secrets."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimpull import errors
from nimpull.core.artifacts import Action
from nimpull.core.manifest import Profile
from nimpull.core.report.contents import Failure, ProgressSummary, Report, State, TransferSummary
from nimpull.core.report.document import to_bytes
from nimpull.core.report.sentences import closing_line
from nimpull.core.report.termination import termination_message
from nimpull.core.units import parse_quantity, show_bytes, show_seconds
from tests.reports import CANARIES, a_report, an_outcome, to_json
from tests.running import check


def test_the_file_has_an_artifact_on_each_line() -> None:
    report = a_report(artifacts=(an_outcome("a"), an_outcome("b\u00e9")), notes=("two\nlines", "{}"))
    text = to_bytes(report).decode()
    assert to_json(report)["notes"] == ["two\\nlines", "{}"]
    (first, second) = (line for line in text.splitlines() if '"digest"' in line)
    assert first.startswith('    {"path": "a", ')
    assert second.startswith('    {"path": "b\u00e9", ')
    assert to_json(a_report(artifacts=()))["artifacts"] == []


def failed(error: BaseException, **changes: Any) -> Report:
    return a_report(state=State.FAILED, error=Failure.of(error), **changes)


ALL_ERRORS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.NimpullError) and "reference" in vars(kind)
]


def test_ready_has_the_shape_of_nimcache_status() -> None:
    document = to_json(a_report())
    check(document)
    assert document["schemaVersion"] == "nimpull/v1"
    assert document["status"] == {
        "state": "Ready",
        "profiles": [
            {
                "name": "031d3a7e",
                "model": "meta/llama3-8b-instruct",
                "release": "1.0.0",
                "config": {"tp": "1", "llm_engine": "vllm"},
            }
        ],
        "conditions": [
            {
                "type": "NIM_CACHE_JOB_COMPLETED",
                "status": "True",
                "reason": "JobCompleted",
                "message": "1 profile, 1 file, 3.0 GiB in /model-store, verified by blake3; "
                "fetched 3.0 GiB in 1m00s (50.8 MiB/s), 2 retries",
                "lastTransitionTime": "2026-11-18T11:07:41Z",
            }
        ],
    }
    assert document["source"]["revision"] == "hf"
    assert document["selection"]["criteria"] == {"engine": "vllm", "lora": "false"}
    assert [tuple(verdict.values()) for verdict in document["selection"]["verdicts"]] == [
        ("031d3a7e", "vllm-tp1", True, "generic", "names no GPU", ""),
        ("other", "vllm-tp1", False, "no-gpu", "needs 2x H100, found 1x", "one more H100"),
    ]
    assert document["source"]["requested"] == "latest"
    assert document["timeline"]["secondsByPhase"] == {"list": 0.5, "fetch": 1.5, "hash": 0.25}


def test_failed_publishes_the_error_and_no_profiles() -> None:
    report = failed(errors.NoSpaceError("/model-store: needs 3.0 GiB, has 1.0 GiB", hint="Enlarge the PVC."))
    document = to_json(report)
    check(document)
    assert document["error"] == {
        "reference": "no-space",
        "message": "/model-store: needs 3.0 GiB, has 1.0 GiB",
        "hint": "Enlarge the PVC.",
        "retryable": True,
        "exitCode": 40,
    }
    assert document["status"]["profiles"] == []
    assert document["status"]["conditions"][0]["reason"] == "JobFailed"
    assert report.exit_code == 40


def test_in_progress_says_how_far() -> None:
    moving = ProgressSummary("fetching", 1 << 30, 4 << 30, float(64 << 20), 48.0, 1, 4)
    report = a_report(state=State.IN_PROGRESS, progress=moving, artifacts=())
    document = to_json(report)
    check(document)
    assert document["progress"]["bytesTotal"] == 4 << 30
    assert document["status"]["conditions"][0]["type"] == "NIM_CACHE_JOB_PENDING"
    assert closing_line(report) == (
        "nimpull: InProgress: fetching: 1.0 GiB of 4.0 GiB (25%), 64.0 MiB/s, eta 48s, 1/4 files"
    )
    with pytest.raises(ValueError, match="not over"):
        _ = report.exit_code


@pytest.mark.parametrize("kind", ALL_ERRORS, ids=lambda kind: str(kind.reference))
def test_every_error_has_its_place_in_the_schema(kind: type[errors.NimpullError]) -> None:
    report = failed(kind("what", hint="next"))
    check(to_json(report))
    assert report.exit_code == kind.exit_code


def test_a_bug_is_an_internal_error() -> None:
    report = failed(KeyError("x"))
    check(to_json(report))
    assert report.error is not None
    assert (report.error.reference, report.exit_code) == ("internal-error", 70)


def test_an_error_and_ready_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="if and only if"):
        a_report(error=Failure.of(errors.UsageError("x")))
    with pytest.raises(ValueError, match="if and only if"):
        a_report(state=State.FAILED)


def test_termination_message_is_the_report_without_lists() -> None:
    text = termination_message(a_report())
    document = json.loads(text)
    check(document)
    assert "artifacts" not in document
    assert "timeline" not in document
    assert "truncated" not in document
    assert document["hardware"] == {"origin": "nvml", "gpus": {"NVIDIA H100 80GB HBM3": 1}}


def test_termination_message_drops_profile_tags_before_profiles() -> None:
    many = tuple(Profile(f"{number:064x}", {"tag": "x" * 90}) for number in range(30))
    document = json.loads(termination_message(a_report(profiles=many)))
    check(document)
    assert document["truncated"] is True
    assert [profile["name"] for profile in document["status"]["profiles"]] == [p.id for p in many]
    assert document["transfer"]["bytes"] == 3 << 30


def test_termination_message_keeps_the_reference_of_a_huge_error() -> None:
    error = errors.NoProfileError("no profile fits: " + "é" * 5000, hint="h" * 5000)
    text = termination_message(failed(error, profiles=()))
    document = json.loads(text)
    check(document)
    assert 4000 < len(text) <= 4096
    assert document["error"]["exitCode"] == 11
    assert document["error"]["message"].startswith("no profile fits: ééé")


@given(st.text(max_size=3000), st.text(max_size=1000), st.integers(256, 5000))
def test_termination_message_always_fits_and_parses(message: str, hint: str, limit: int) -> None:
    text = termination_message(failed(errors.NetworkError(message, hint=hint)), limit)
    assert len(text) <= limit
    check(json.loads(text))


def test_termination_message_refuses_a_limit_that_holds_nothing() -> None:
    with pytest.raises(ValueError, match="256"):
        termination_message(a_report(), 100)


def test_closing_line_of_a_failure_says_what_to_do() -> None:
    line = closing_line(
        failed(errors.AuthError("api.ngc.nvidia.com refused the key\n(401)", hint="Set NGC_API_KEY."))
    )
    assert line == (
        "nimpull: Failed (unauthorized, exit 20, a retry does not help): "
        "api.ngc.nvidia.com refused the key (401) — Set NGC_API_KEY."
    )
    listing = closing_line(
        failed(errors.NoProfileError("nothing runs; nearest:\n  a: too large\n  b: no GPU"))
    )
    assert listing.endswith("nothing runs; nearest: a: too large; b: no GPU")


def test_closing_line_of_a_complete_store() -> None:
    kept = replace(an_outcome(), action=Action.SKIPPED, fetched=0)
    line = closing_line(a_report(artifacts=(kept,), transfer=TransferSummary()))
    assert line == (
        "nimpull: Ready: 1 profile, 1 file, 3.0 GiB in /model-store, verified by blake3; nothing to fetch"
    )


def test_f56_credentials_of_libraries_messages_do_not_reach_any_output() -> None:
    key, token, password, signature = CANARIES
    error = OSError(
        f"Max retries exceeded with url: /x?X-Amz-Signature={signature}&sig={signature} "
        f"via http://u:{password}@proxy:1 "
        f"GET https://xfiles.example/a?Signature={signature} Authorization: Bearer {key} HF_TOKEN={token} "
        f"AWS_SECRET_ACCESS_KEY={password} {{'api_key': '{password}'}}"
    )
    report = failed(error, notes=(f"proxy https://a:{password}@h/?{signature}",))
    outputs = (json.dumps(to_json(report)), termination_message(report).decode(), closing_line(report))
    for output in outputs:
        for canary in (*CANARIES, "CANARY"):
            assert canary not in output
    assert "proxy:1" in outputs[0]
    assert "xfiles.example/a" in outputs[0]


def test_redaction_leaves_own_words_and_file_names_alone() -> None:
    path = "hf_hub_quantizer_config_token=tokenizer.json"
    text = "basic authentication: the bearer token: refused (policy: strict), see ngc://a/b:1?file=hf_config.json"
    report = failed(errors.AuthError(text), artifacts=(an_outcome(path),))
    assert to_json(report)["artifacts"][0]["path"] == path
    assert to_json(report)["error"]["message"] == text


def test_f57_foreign_text_cannot_forge_lines_or_terminal_commands() -> None:
    evil = 'x\nReady: all good\x1b[2J\u202e"},{\r' + "a" * 5000
    report = failed(errors.NetworkError(evil, hint=evil), notes=(evil,))
    line = closing_line(report)
    assert "\n" not in line
    assert "\x1b" not in line
    assert "\u202e" not in line
    assert len(line.encode()) <= 1800
    document = to_json(report)
    assert len(document["notes"][0]) <= 513
    assert not any(bad in json.dumps(document, ensure_ascii=False) for bad in ("\x1b", "\u202e", "\r"))
    assert json.loads(termination_message(report))["error"]["reference"] == "network"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("50Gi", 50 << 30),
        ("1Ti", 1 << 40),
        ("1.5Gi", 3 << 29),
        ("2e3", 2000),
        ("100M", 10**8),
        ("7", 7),
        ("1500m", 2),
    ],
)
def test_quantities(text: str, count: int) -> None:
    assert parse_quantity(text) == count


@pytest.mark.parametrize("text", ["", "Gi", "-1", "50GB", "1e99", "9Ei9", "50 Gi", "0x10", "8Ei", "1" * 50])
def test_quantities_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"quantity|size"):
        parse_quantity(text)


def test_units_read_well() -> None:
    assert [show_bytes(n) for n in (0, 1023, 1024, 1_048_575, 5 << 40)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.0 MiB",
        "5.0 TiB",
    ]
    assert [show_seconds(n) for n in (0.04, 9.96, 59.6, 199, 7500, 273_600)] == [
        "0.0s",
        "10s",
        "1m00s",
        "3m19s",
        "2h05m",
        "3d04h",
    ]


DOCS = Path(__file__).parent.parent / "docs"


def test_the_documented_example_conforms() -> None:
    text = (DOCS / "report.md").read_text()
    check(json.loads(text.partition("```json\n")[2].partition("```")[0]))


def test_every_field_is_documented() -> None:
    text = (DOCS / "report.md").read_text()

    def names(schema: dict[str, Any]) -> set[str]:
        properties = schema.get("properties", {})
        inner = [*properties.values(), *schema.get("oneOf", ())] + [
            schema[key] for key in ("items",) if key in schema
        ]
        return set(properties).union(*map(names, inner))

    schema = json.loads((files("nimpull") / "report.schema.json").read_text())
    assert not {name for name in names(schema) if not re.search(rf"`[^`]*\b{name}\b", text)}


def test_the_table_of_errors_is_the_code_s() -> None:
    text = (DOCS / "errors.md").read_text()
    rows = re.findall(r"^\| `([a-z-]+)` \| (\d+) \| (yes|no) \| .+ \| .+ \|$", text, re.MULTILINE)
    table = [(reference, int(code), again == "yes") for reference, code, again in rows]
    known = {(kind.reference, kind.exit_code, kind.retryable) for kind in ALL_ERRORS}
    assert len(table) == len(set(table))
    assert set(table) == known
    fatal = sorted(code for _, code, again in table if not again)
    assert f"values: {fatal}" in text
