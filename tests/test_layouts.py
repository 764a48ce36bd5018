"""The layouts, by what their real readers make of them."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nimpull.core.abilities import Abilities
from nimpull.core.artifacts import Artifact
from nimpull.core.names import ModelUri, SafePath
from nimpull.errors import NotWritableError, StoreIOError
from nimpull.store.layouts import FoundBy, StoreLayout
from nimpull.store.store import Store
from tests.committing import COMMIT, HUB, NGC, artifact, commit, digest_of, listing, open_store, take, tree_of

CONFIG = b'{"model_type": "llama"}'
WEIGHTS = b"\0\1\2\3" * 1000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(str(tmp_path / "store")) as opened:
        yield opened


def read_offline(program: str, home: Path) -> dict[str, object]:
    """Run ``program`` with the real huggingface_hub, offline; it sets ``answer``."""
    environment = {
        "PATH": os.environ["PATH"],
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HOME": str(home),
    }
    text = f"import json, os, huggingface_hub as hub\n{program}\nprint('ANSWER', json.dumps(answer))"
    done = subprocess.run(
        [sys.executable, "-c", text], check=False, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout.rpartition("ANSWER ")[2])
    return found


def fill_hub(store: Store, layout: StoreLayout, uri: ModelUri = HUB) -> tuple[Artifact, Artifact]:
    config = artifact("config.json", CONFIG, uri, algorithm="git")
    weights = artifact("onnx/model.bin", WEIGHTS, uri)
    commit(store, layout, config, CONFIG)
    commit(store, layout, weights, WEIGHTS, etag="ignored-the-listing-knows")
    layout.finish(listing(config, weights), complete=True)
    return config, weights


@pytest.mark.parametrize("links", [True, False], ids=["links", "no-links"])
def test_huggingface_hub_reads_its_cache_offline(store: Store, tmp_path: Path, links: bool) -> None:
    if not links:
        store.tree.adapt(Abilities(symlinks=False))
    fill_hub(store, store.nim_cache("hub"))
    answer = read_offline(
        "path = hub.snapshot_download('meta/llama', revision='main')\n"
        "file = hub.hf_hub_download('meta/llama', 'onnx/model.bin')\n"
        "scan = hub.scan_cache_dir()\n"
        "repo, = scan.repos\n"
        "tree = hub.get_cached_repo_tree('meta/llama')\n"
        "answer = {'path': path, 'file': file, 'size': os.path.getsize(file), 'tree': len(tree),\n"
        "    'files': repo.nb_files, 'id': repo.repo_id, 'warnings': len(scan.warnings),\n"
        "    'cached': hub.try_to_load_from_cache('meta/llama', 'config.json')}",
        Path(store.root),
    )
    snapshot = f"{store.root}/hub/models--meta--llama/snapshots/{COMMIT}"
    assert answer == {
        "path": snapshot,
        "file": f"{snapshot}/onnx/model.bin",
        "size": len(WEIGHTS),
        "warnings": 0,
        "files": 2,
        "id": "meta/llama",
        "tree": 2,
        "cached": f"{snapshot}/config.json",
    }


def test_an_offline_reader_can_tell_a_partial_snapshot(store: Store) -> None:
    _, weights = fill_hub(store, store.nim_cache("hub"))
    os.unlink(store.tree.absolute(store.nim_cache("hub").path_of(weights)))
    answer = read_offline(
        "try:\n    hub.snapshot_download('meta/llama')\n    answer = {'error': ''}\n"
        "except Exception as error:\n    answer = {'error': type(error).__name__}",
        Path(store.root),
    )
    assert answer == {"error": "IncompleteSnapshotError"}


def test_a_filtered_listing_leaves_no_tree_file(store: Store) -> None:
    config = artifact("config.json", CONFIG, HUB, algorithm="git")
    layout = store.nim_cache("hub")
    commit(store, layout, config, CONFIG)
    layout.finish(listing(config))
    assert tree_of(Path(store.root)) == {
        "hub/CACHEDIR.TAG": "file",
        f"hub/models--meta--llama/blobs/{config.etag}": "file",
        "hub/models--meta--llama/refs/main": "file",
        f"hub/models--meta--llama/snapshots/{COMMIT}/config.json": f"../../blobs/{config.etag}",
    }
    assert Path(store.root, "hub/models--meta--llama/refs/main").read_bytes() == COMMIT.encode()


def test_a_dataset_has_its_own_directory(store: Store) -> None:
    layout = store.nim_cache("hub")
    fill_hub(store, layout, replace(HUB, repo_type="dataset"))
    answer = read_offline(
        "answer = {'path': hub.snapshot_download('meta/llama', repo_type='dataset')}", Path(store.root)
    )
    assert answer == {"path": f"{store.root}/hub/datasets--meta--llama/snapshots/{COMMIT}"}


def test_huggingface_hub_takes_a_local_dir_as_downloaded(store: Store, tmp_path: Path) -> None:
    config, weights = fill_hub(store, store.local_dir())
    answer = read_offline(
        "from pathlib import Path\n"
        "from huggingface_hub._local_folder import read_download_metadata\n"
        f"root = {store.root!r}\n"
        "read = [read_download_metadata(Path(root), name) for name in ('config.json', 'onnx/model.bin')]\n"
        f"file = hub.hf_hub_download('meta/llama', 'onnx/model.bin', revision={COMMIT!r}, local_dir=root)\n"
        "answer = {'path': hub.snapshot_download('meta/llama', local_dir=root), 'file': file,\n"
        "    'commits': [one.commit_hash for one in read], 'etags': [one.etag for one in read]}",
        tmp_path / "home",
    )
    assert answer == {
        "path": store.root,
        "file": f"{store.root}/onnx/model.bin",
        "commits": [COMMIT, COMMIT],
        "etags": [config.etag, weights.etag],
    }
    assert Path(store.root, ".cache/huggingface/.gitignore").read_text() == "*"
    assert Path(store.root, "onnx/model.bin").stat().st_mode & 0o777 == 0o444


def test_metadata_that_a_killed_run_did_not_write_is_written_by_the_next(store: Store) -> None:
    config, weights = fill_hub(store, store.local_dir())
    metadata = Path(store.root, ".cache/huggingface/download/config.json.metadata")
    before = metadata.read_bytes()
    metadata.unlink()
    store.local_dir().finish(listing(config, weights))
    assert metadata.read_bytes() == before
    metadata.write_bytes(b"")
    store.local_dir().finish(listing(config, weights))
    assert metadata.read_bytes() == before


def test_the_ngc_tree_is_that_of_a_nim_container(store: Store) -> None:
    """The shape of two versions of one model that share a file, as ``download-to-cache`` leaves it."""
    layout = store.nim_cache()
    engine_version = "0.11.1+ba20956e-l40sx1-bf16-throughput.1.1.0.17088220"
    engine = artifact("rank0.engine", WEIGHTS, NGC.with_revision(engine_version), algorithm="blake3")
    notice = artifact("NOTICE.txt", b"notice", NGC.with_revision(engine_version), algorithm="blake3")
    same_notice = artifact("NOTICE.txt", b"notice", algorithm="blake3")
    plan = artifact("trt_engines_dir/flux/clip.plan", b"plan", algorithm="blake3")
    commit(store, layout, engine, WEIGHTS, etag="3e710a79e58ddecbe63a8dffa7464658-3091")
    commit(store, layout, notice, b"notice", etag="7e7e0309232a0651ebe8764260b49162")
    commit(store, layout, plan, b"plan", etag='W/"weak/../name')
    assert take(layout, same_notice, FoundBy.ELSEWHERE) is not None
    layout.finish(listing(engine, notice))
    layout.finish(listing(same_notice, plan))
    model = "ngc/hub/models--nim--meta--llama-3_1-8b-instruct"
    clip = digest_of(b"plan", "blake3").hex
    assert tree_of(Path(store.root)) == {
        f"{model}/blobs/3e710a79e58ddecbe63a8dffa7464658-3091": "file",
        f"{model}/blobs/7e7e0309232a0651ebe8764260b49162": "file",
        f"{model}/blobs/{clip}": "file",
        f"{model}/refs/{engine_version}": "file",
        f"{model}/refs/{NGC.revision}": "file",
        f"{model}/snapshots/{engine_version}/rank0.engine": (
            "../../blobs/3e710a79e58ddecbe63a8dffa7464658-3091"
        ),
        f"{model}/snapshots/{engine_version}/NOTICE.txt": "../../blobs/7e7e0309232a0651ebe8764260b49162",
        f"{model}/snapshots/{NGC.revision}/NOTICE.txt": "../../blobs/7e7e0309232a0651ebe8764260b49162",
        f"{model}/snapshots/{NGC.revision}/trt_engines_dir/flux/clip.plan": f"../../../../blobs/{clip}",
    }
    assert Path(store.root, "ngc/hub/tmp").is_dir()


def test_buckets_and_mirrors_stand_apart_and_tell_no_password(store: Store) -> None:
    layout = store.nim_cache()
    for text, folder in (
        ("s3://bucket/one", "models--bucket--one"),
        ("s3://bucket/two/", "models--bucket--two"),
        ("https://user:secret@host:8443/a", "models--host:8443--a"),
        ("file:///srv/model", "models--srv--model"),
    ):
        one = artifact("model.bin", text.encode(), ModelUri.parse(text))
        commit(store, layout, one, text.encode())
        layout.finish(listing(one))
        assert layout.path_of(one) == f"ngc/hub/{folder}/snapshots/latest/model.bin"
        assert Path(store.root, layout.path_of(one)).read_bytes() == text.encode()
        assert layout.committed(one) is not None
    assert not [path for path in tree_of(Path(store.root)) if "secret" in path]


def test_one_etag_for_two_contents_keeps_both(store: Store) -> None:
    layout = store.nim_cache()
    one, other = artifact("a", b"one"), artifact("b", b"other")
    commit(store, layout, one, b"one", etag="same")
    commit(store, layout, other, b"other", etag="same")
    assert Path(store.root, layout.path_of(one)).read_bytes() == b"one"
    assert Path(store.root, layout.path_of(other)).read_bytes() == b"other"


def test_hugging_face_content_is_shared_between_revisions_and_hubs(store: Store) -> None:
    layout = store.nim_cache()
    first = artifact("model.bin", WEIGHTS, HUB)
    commit(store, layout, first, WEIGHTS)
    second = artifact("model.bin", WEIGHTS, HUB.with_revision("0" * 40))
    from_ngc = artifact("weights/model.bin", WEIGHTS)
    for one in (second, from_ngc):
        assert layout.committed(one) is None
        assert take(layout, one, FoundBy.HASH) is None
        assert take(layout, one, FoundBy.ELSEWHERE) is not None
        assert layout.committed(one) is not None
    inodes = {os.stat(Path(store.root, layout.path_of(one))).st_ino for one in (first, second, from_ngc)}
    assert len(inodes) == 1


def test_a_workspace_has_the_paths_that_were_chosen(store: Store) -> None:
    engine = artifact("rank0.engine", WEIGHTS)
    config = artifact("config.json", CONFIG)
    layout = store.workspace({engine.identity: SafePath("trtllm_engine/rank0.engine")})
    commit(store, layout, engine, WEIGHTS)
    commit(store, layout, config, CONFIG)
    layout.finish(listing(engine, config))
    assert tree_of(Path(store.root)) == {"trtllm_engine/rank0.engine": "file", "config.json": "file"}


def test_place_names_each_directory_that_must_be_synced(store: Store) -> None:
    changed = commit(store, store.local_dir(), artifact("a/b/c.bin", b"c", HUB), b"c")
    for directory in ("", "a", "a/b", ".cache/huggingface/download/a/b"):
        assert directory in changed


def prepare(path: Path, kind: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "same":
        path.write_bytes(WEIGHTS)
    elif kind == "different":
        path.write_bytes(b"other")
    elif kind == "zeros":
        path.write_bytes(b"")
        os.truncate(path, len(WEIGHTS))
    elif kind == "directory":
        (path / "inside").mkdir(parents=True)
    elif kind == "link":
        path.symlink_to("/etc/hostname")
    elif kind == "fifo":
        os.mkfifo(path)


@pytest.mark.parametrize("kind", ["same", "different", "zeros", "directory", "link", "fifo"])
@pytest.mark.parametrize("name", ["nim_cache", "local_dir", "workspace"])
def test_f35_f34_what_stands_at_the_destination(store: Store, kind: str, name: str) -> None:
    layout: StoreLayout = getattr(store, name)()
    weights = artifact("onnx/model.bin", WEIGHTS, HUB)
    path = Path(store.root, layout.path_of(weights))
    prepare(path, kind)
    before = stat.S_IFMT(path.lstat().st_mode)
    assert layout.committed(weights) is None, "never believed without our own record"
    found = take(layout, weights, FoundBy.HASH)
    assert (found is not None) == (kind == "same")
    if found:
        assert layout.committed(weights) == found
    if kind in ("directory", "link", "fifo"):
        with pytest.raises(NotWritableError, match=r"model\.bin"):
            commit(store, layout, weights, WEIGHTS)
        assert stat.S_IFMT(path.lstat().st_mode) == before
        return
    commit(store, layout, weights, WEIGHTS)
    assert path.read_bytes() == WEIGHTS
    assert layout.committed(weights) is not None


def test_f49_a_reader_keeps_the_old_file_while_it_is_replaced(store: Store) -> None:
    layout = store.workspace()
    old, new = artifact("model.bin", b"old"), artifact("model.bin", b"newer", NGC.with_revision("2"))
    commit(store, layout, old, b"old")
    with open(Path(store.root, "model.bin"), "rb") as reader:
        commit(store, layout, new, b"newer")
        assert reader.read() == b"old"
    assert Path(store.root, "model.bin").read_bytes() == b"newer"
    assert layout.committed(old) is None


@pytest.mark.parametrize("name", ["local_dir", "workspace"])
def test_f46_what_another_models_run_has_just_put_there_stays(store: Store, name: str) -> None:
    mine, theirs = artifact("config.json", CONFIG, HUB), artifact("config.json", b"other", NGC)
    update = artifact("config.json", b"newer", NGC.with_revision(NGC.revision))
    layout: StoreLayout = getattr(store, name)()
    assert layout.find(mine) is None, "it has looked"
    with open_store(store.root) as other:
        commit(other, getattr(other, name)(), theirs, b"other")
    with pytest.raises(NotWritableError, match="belong to ngc://"):
        commit(store, layout, mine, CONFIG)
    assert Path(store.root, "config.json").read_bytes() == b"other"
    commit(store, layout, update, b"newer")


@pytest.mark.parametrize("name", ["nim_cache", "local_dir", "workspace"])
def test_f37_names_of_255_bytes(store: Store, name: str) -> None:
    layout: StoreLayout = getattr(store, name)()
    long = "n" * 251 + ".bin"
    one, beside = artifact(f"dir/{long}", WEIGHTS, HUB), artifact("dir/config.json", CONFIG, HUB)
    commit(store, layout, one, WEIGHTS)
    commit(store, layout, beside, CONFIG)
    layout.finish(listing(one, beside))
    assert layout.committed(one) is not None
    assert Path(store.root, layout.path_of(one)).read_bytes() == WEIGHTS


@pytest.mark.parametrize("etag", ["v1", ""], ids=["one-etag", "no-etag"])
def test_equal_files_without_a_listed_digest_share_a_blob(store: Store, etag: str) -> None:
    """A mirror may name no digest, and give two files one ETag: S3's is often the MD5 of the content."""
    layout = store.nim_cache()
    uris = NGC.with_path("config.json"), NGC.with_revision("other").with_path("config.json")
    same = [Artifact(SafePath("config.json"), len(CONFIG), (), uri) for uri in uris]
    different = Artifact(SafePath("model.bin"), len(WEIGHTS), (), NGC.with_path("model.bin"))
    for one, content in ((different, WEIGHTS), (same[0], CONFIG), (same[1], CONFIG)):
        commit(store, layout, one, content, etag=etag)
    store.record.news()
    blobs = {os.path.realpath(store.tree.absolute(layout.path_of(each))) for each in same}
    assert len(blobs) == 1
    assert all(layout.committed(each) for each in (different, *same))
    assert len(store.files_of(layout, (different, *same))) == 3


def test_f39_a_blob_that_no_record_and_no_link_names_is_found_by_its_content(tmp_path: Path) -> None:
    """As a kill between the two leaves it: NGC does not list the ETags that name its blobs."""
    one, other = artifact("model.bin", b"content"), artifact("other.bin", b"another")
    with open_store(str(tmp_path)) as store:
        for each, content in ((one, b"content"), (other, b"another")):
            commit(store, store.nim_cache(), each, content, etag=f"opaque-{each.path}")
        (tmp_path / store.nim_cache().path_of(one)).unlink()
    shutil.rmtree(tmp_path / ".nimpull" / "record")
    with open_store(str(tmp_path)) as store:
        layout = store.nim_cache()
        found = take(layout, one, FoundBy.ELSEWHERE)
        assert found is not None
        assert found.path.endswith("/blobs/opaque-model.bin")
        assert (tmp_path / layout.path_of(one)).read_bytes() == b"content"
        assert take(layout, artifact("model.bin", b"CONTENT"), FoundBy.ELSEWHERE) is None


def test_f49_a_finished_file_that_a_cleaner_took_away_is_a_fault_that_is_tried_again(store: Store) -> None:
    one = artifact("config.json", b"{}")
    with pytest.raises(StoreIOError, match="No such file"):
        store.workspace().place(one, ".nimpull/ingest/gone.whole", digest=digest_of(b"{}"), etag="")
