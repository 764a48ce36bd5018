"""Manifests: the four forms, and what is refused with its line."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nimpull.core.digest import Digest
from nimpull.core.manifest import parse_manifest
from nimpull.core.yamltext import MAX_BYTES, MAX_NODES, load_yaml
from nimpull.errors import ManifestError, UsageError
from tests.gpus import PROFILES, example

ID = "a" * 64
B3 = "7" * 64


def test_v2_files_have_uri_and_digest() -> None:
    text = f"""schema_version: '2.0'
profile_selection_criteria: auto
profiles:
- id: {ID}
  tags: {{tp: 010, feat_lora: True, gpu_device: 2330:10, x: no}}
  workspace:
    files:
      trtllm_engine/rank0.engine: {{uri: "ngc://nim/a/b:1+2?file=rank0.engine", checksum: "blake3:{B3}"}}
      config.json: {{uri: "hf://a/b:main?file=config.json", checksum: {B3}}}
      odd.json: {{uri: "ngc://nim/a/b:1?file=odd.json", checksum: abc}}
"""
    manifest = parse_manifest(text.encode())
    assert (manifest.schema, manifest.selection_criteria) == ("v2", "auto")
    profile = manifest.profiles[0]
    assert profile.tags == {"tp": "010", "feat_lora": "True", "gpu_device": "2330:10", "x": "no"}
    assert [(str(file.path), file.uri, file.digest) for file in profile.files] == [
        ("trtllm_engine/rank0.engine", "ngc://nim/a/b:1+2?file=rank0.engine", Digest("blake3", B3)),
        ("config.json", "hf://a/b:main?file=config.json", Digest("blake3", B3)),
        ("odd.json", "ngc://nim/a/b:1?file=odd.json", None),
    ]
    assert "1 checksums" in manifest.notes[0]


def test_v1_components_join_directory_and_name() -> None:
    text = f"""{ID}:
  model: m
  workspace: !workspace
    components:
    - dst: ''
      src: {{repo_id: "ngc://nim/a/b:hf", files: [!name 'config.json']}}
    - dst: trtllm_engine
      src: {{repo_id: "nim/a/b:0.1+x", files: [!name 'sub/rank0.engine']}}
"""
    profile = parse_manifest(text.encode()).profiles[0]
    assert [(str(file.path), file.uri) for file in profile.files] == [
        ("config.json", "ngc://nim/a/b:hf?file=config.json"),
        ("trtllm_engine/sub/rank0.engine", "ngc://nim/a/b:0.1+x?file=sub/rank0.engine"),
    ]
    assert profile.problem == ""


@pytest.mark.parametrize(
    ("workspace", "problem"),
    [
        ("{components: [{dst: '', src: {files: [a]}}]}", "names no repository"),
        ("{components: [{dst: '', src: {repo_id: r}}]}", "or no files"),
        ("{components: [{dst: '', src: {repo_id: r, files: [{x: 1}]}}]}", "not a name"),
        ("{files: {a: {size: 5}}}", "“a” has no uri"),
    ],
)
def test_a_workspace_that_cannot_be_complete_says_so(workspace: str, problem: str) -> None:
    profile = parse_manifest(f"{ID}:\n  workspace: {workspace}\n".encode()).profiles[0]
    assert problem in profile.problem


def test_legacy_both_wrappings() -> None:
    manifest = example("legacy")
    assert manifest.schema == "legacy"
    assert [profile.model for profile in manifest.profiles] == ["LinnetMol"] * 3
    assert manifest.profiles[1].tags["product_name_regex"] == "^NVIDIA-L40S.*"
    assert len({profile.id for profile in manifest.profiles}) == 3
    with pytest.raises(ManifestError, match="line 2: a legacy profile"):
        parse_manifest(b"manifest:\n- {a: {}, b: {}}\n")


def test_examples_are_whole() -> None:
    for name in ("v1", "v2", "legacy", "nonllm"):
        manifest = example(name)
        assert all(profile.files and not profile.problem for profile in manifest.profiles)
        assert manifest.notes == ()


def refused(data: bytes) -> str:
    before = time.process_time()
    with pytest.raises(ManifestError) as caught:
        parse_manifest(data)
    assert time.process_time() - before < 4  # a loose bound: hostile input must not take long
    return caught.value.message


def bomb(levels: int) -> bytes:
    lines = ["a0: &a0 {x: 1, y: 2}"]
    for level in range(1, levels):
        inner = ",".join([f"*a{level - 1}"] * 9)
        lines.append(f"a{level}: &a{level} {{tags: [{inner}]}}")
    return "\n".join(lines).encode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"x" * (MAX_BYTES + 1), "are more than the limit of 16777216 bytes"),
        (bomb(9), "aliases counted in full"),
        (b"a: &a [*a]", "line 1: anchor “a” contains itself"),
        (b"a: {\n b: *nope}", "line 2: unknown anchor “nope”"),
        (b"[" * 100_000, "nested more than 64 levels deep"),
        (b"a:\n  tags: {x: 1,\n    x: 2}", "line 3: key “x” is already defined at line 2"),
        (b"a: !!python/object/apply:os.system ['id']", "line 1: the tag “tag:yaml.org,2002:python/"),
        (b"a: !!python/name:os.system ''", "is not allowed"),
        (b"a: {? [1, 2] : x}", "line 1: a mapping key must be text"),
        (b"a: {<<: text}", "line 1: “<<” must name a map"),
        (b"a:\n  b: \x00\n", "line 2: control characters are not allowed"),
        (b"a:\n  b: \xff\xfa\n", "line 2: "),
        (b"a: 'x", "line 1: found unexpected end of stream"),
        (b"x: {workspace: {files: {../../etc/passwd: {uri: u}}}}", "line 1: unsafe file name"),
        (b"{" + b"a: {}, " * 10 + b"}", "already defined"),
        (b"\n".join(b"p%d: {}" % n for n in range(MAX_NODES)), f"more than {MAX_NODES} values"),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, bytes) else "",
)
def test_f53_hostile_yaml_is_refused_with_its_line(data: bytes, message: str) -> None:
    assert message in refused(data)


def test_f53_merge_bomb_is_counted() -> None:
    wide = ", ".join(f"k{n}: v" for n in range(2000))
    lines = [f"base: &b {{{wide}}}"] + [f"m{n}: {{<<: *b}}" for n in range(200)]
    assert "aliases counted in full" in refused("\n".join(lines).encode())


def test_f53_text_stays_text_and_encodings_are_read() -> None:
    text = f"\ufeff{ID}:\n  tags: {{a: no, b: 2330:10, c: 1e3, d: 0o7, e: 'é'}}\n"
    expected = {"a": "no", "b": "2330:10", "c": "1e3", "d": "0o7", "e": "é"}
    for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
        assert parse_manifest(text.encode(encoding)).profiles[0].tags == expected


def test_merge_lists_and_aliases() -> None:
    loaded = load_yaml(b"a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc: {<<: [*a, *b], z: 3}\nd: *a\n")
    assert isinstance(loaded, dict)
    assert loaded["c"] == {"x": "1", "y": "1", "z": "3"}
    assert loaded["d"] is loaded["a"]


def test_load_yaml_raises_what_the_caller_asks_for() -> None:
    with pytest.raises(UsageError, match="NIMCache file, line 2: "):
        load_yaml(b"a: 1\na: 2", what="NIMCache file", error=UsageError)


def test_f54_pattern_text_is_bounded() -> None:
    patterns = "\n".join(f"p{n}: {{tags: {{product_name_regex: '{n:03}{'x' * 97}'}}}}" for n in range(165))
    assert "line 164: the product patterns together are over 16384 characters" in refused(patterns.encode())
    same = "\n".join(f"p{n}: {{tags: {{product_name_regex: '{'x' * 100}'}}}}" for n in range(165))
    assert len(parse_manifest(same.encode()).profiles) == 165


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.sampled_from(["v1", "legacy", "nonllm"]),
    edits=st.lists(st.tuples(st.integers(0, 2000), st.binary(max_size=6), st.integers(0, 8)), max_size=4),
)
def test_f53_damaged_manifests_parse_or_are_refused(seed: str, edits: list[tuple[int, bytes, int]]) -> None:
    content = (PROFILES / f"example-{seed}.yaml").read_bytes()
    for at, inserted, removed in edits:
        content = content[:at] + inserted + content[at + removed :]
    try:
        manifest = parse_manifest(content)
    except ManifestError as error:
        assert re.match(r"manifest, line \d+: ", error.message)
    else:
        assert all(isinstance(value, str) for each in manifest.profiles for value in each.tags.values())


def test_a_bare_path_is_a_file_of_this_machine() -> None:
    text = f"{ID}:\n  workspace:\n    files: {{a.json: {{uri: /etc/passwd}}}}\n".encode()
    assert "NIM_MANIFEST_ALLOW_UNSAFE" in parse_manifest(text).profiles[0].problem


def test_a_v2_manifest_may_say_its_version_last() -> None:
    manifest = parse_manifest(b"profiles:\n- id: a\n  tags: {tp: '1'}\nschema_version: '2.0'\n")
    assert (manifest.schema, [profile.id for profile in manifest.profiles]) == ("v2", ["a"])


@pytest.mark.parametrize(
    "uri",
    [
        "file:///etc/passwd",
        "FILE:///etc?file=passwd",
        "local:///etc?file=passwd",
        "http://169.254.169.254/latest/meta-data?file=iam",
        "https://0xa9fea9fe/x?file=y",
        "http://metadata.google.internal/computeMetadata/v1?file=token",
    ],
)
def test_what_only_this_node_may_see_is_for_trusted_manifests(uri: str) -> None:
    listed = f"{ID}:\n  workspace:\n    files: {{a.json: {{uri: '{uri}'}}}}\n".encode()
    component = f"{ID}:\n  workspace:\n    components: [{{src: {{repo_id: '{uri}', files: [a]}}}}]\n".encode()
    for text in (listed, component):
        assert "NIM_MANIFEST_ALLOW_UNSAFE" in parse_manifest(text).profiles[0].problem
        assert parse_manifest(text, unsafe=True).profiles[0].problem == ""


def test_the_log_of_the_operators_probe_is_a_manifest_too() -> None:
    plain = Path("profiles/example-v2.yaml").read_bytes()
    probed = b"NIM_OPERATOR_CAP_A=true\nNIM_OPERATOR_CAP_B=false\n" + plain
    assert parse_manifest(probed) == parse_manifest(plain)
    with pytest.raises(ManifestError, match="line 3"):
        parse_manifest(b"NIM_OPERATOR_CAP_A=true\nNIM_OPERATOR_CAP_B=false\na: b: c\n")
