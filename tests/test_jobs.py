"""The operator's Jobs as they are: they end well, leave what a reader looks for, and do nothing twice."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from tests.calls import FILES
from tests.cluster import Cluster, check_ready
from tests.jobs import JOBS, plain_tree
from tests.registry import Fault, faults


def check_access(volume: Path, group: int) -> None:
    """Other pods of the group read every file, and may make directories of their own beside it."""
    for path in (volume, *volume.rglob("*")):
        status = path.lstat()
        if path.name == "pre":  # of the init container
            continue
        assert status.st_gid == group, path
        if stat.S_ISDIR(status.st_mode):
            assert status.st_mode & 0o070 == 0o070, path
        elif stat.S_ISREG(status.st_mode):
            assert status.st_mode & 0o040, path


@pytest.mark.parametrize("kind", JOBS)
def test_the_job_ends_ready_and_again_without_network_or_secrets(cluster: Cluster, kind: str) -> None:
    job = JOBS[kind]
    code, text = cluster.run(job)
    assert code == 0, text
    job.check(cluster.store(job))
    check_ready(cluster, job)
    assert {artifact["action"] for artifact in cluster.report(job)["artifacts"]} <= {"fetched", "linked"}
    if os.geteuid() == 0:
        check_access(cluster.root / "pvc", job.user[1])

    cluster.world.close()
    left = cluster.inventory()
    place = tuple(name for name in job.secrets if name == "AWS_ENDPOINT_URL")  # no secret, but which bucket
    code, text = cluster.run(replace(job, secrets=place))
    assert code == 0, text
    check_ready(cluster, job)
    assert {artifact["action"] for artifact in cluster.report(job)["artifacts"]} == {"skipped"}
    assert cluster.inventory() == left


def test_a_pod_with_another_uid_goes_on_where_the_group_may_write(cluster: Cluster) -> None:
    """As after a change of spec.userID, or where two NIMCaches share a volume."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to be two users")
    large = {"config.json": b"{}", "model.safetensors": os.urandom(24 << 20)}
    cluster.registry.add_hub_repo("acme/Tiny-LM", large)
    cluster.registry.faults.append(Fault(faults.status(503), server="cdn", times=None, skip=2))
    job = replace(JOBS["hf-model-cli"], check=plain_tree(large))
    assert cluster.run(job)[0] == 30
    assert list((cluster.root / "pvc/.nimpull/ingest").iterdir()), "nothing was left half done"
    cluster.registry.faults.clear()
    code, text = cluster.run(replace(job, user=(1234, 2000)))
    assert code == 0, text
    job.check(cluster.store(job))
    check_access(cluster.root / "pvc", 2000)


def test_what_is_in_the_way_in_the_root_is_replaced_or_told_and_the_rest_stays(cluster: Cluster) -> None:
    job = JOBS["hf-model-modelfree"]
    store = cluster.store(job)
    (store / "local_cache").mkdir(parents=True)
    (store / "config.json").write_bytes(b"of another model")
    (store / "weights").symlink_to(cluster.root)
    (store / "local_cache/kernel").write_bytes(b"compiled")
    code, text = cluster.run(job)
    assert code == 0, text
    assert f"to be replaced, for nimpull did not write it: config.json in {store}" in text
    assert (store / "config.json").read_bytes() == FILES["config.json"]
    assert "weights/model.bin is only in the hub cache" in text
    assert not (cluster.root / "model.bin").exists()
    assert (store / "local_cache/kernel").read_bytes() == b"compiled"


def test_the_kernels_beside_a_native_model_stay(cluster: Cluster) -> None:
    """/model and /opt/cache are one place: other NIMs keep their kernels there."""
    job = JOBS["ngc-native-subpath-env"]
    volume = cluster.store(job).parent
    (volume / "kernels").mkdir(parents=True)
    (volume / "kernels/a.cubin").write_bytes(b"compiled")
    assert cluster.run(job)[0] == 0
    assert {path.name for path in volume.iterdir()} == {"kernels", "retriever2"}
    assert (volume / "kernels/a.cubin").read_bytes() == b"compiled"


#: Any write by an absolute path outside the mounts ends the process, and nobody has a name or a home.
LOCKED_DOWN = """
import os, pwd, sys
def nobody(uid): raise KeyError(uid)
pwd.getpwuid = nobody
def watch(event, arguments):
    if event == "open":
        path, flags = arguments[0], arguments[2]
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    else:
        path, writes = arguments[0] if arguments else "", event in ("os.mkdir", "os.rename", "os.link")
    if writes and isinstance(path, str) and path.startswith("/") and not path.startswith(ALLOWED):
        sys.stderr.write(f"writes to {path}\\n")
        os._exit(99)
sys.addaudithook(watch)
"""


@pytest.mark.parametrize("kind", ["ngc-profiles-one", "hf-model-cli", "hf-model-modelfree", "ngc-native"])
def test_f38_only_the_mounts_are_written_without_home_or_passwd_entry(cluster: Cluster, kind: str) -> None:
    job = JOBS[kind]
    allowed = (str(cluster.store(job)), str(cluster.root / "termination-log"), "/dev/null")
    hooks = cluster.root / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(f"ALLOWED = {allowed!r}{LOCKED_DOWN}")
    code, text = cluster.run(job, {"PYTHONPATH": str(hooks), "PYTHONDONTWRITEBYTECODE": "1"})
    assert code == 0, text
    job.check(cluster.store(job))
    assert list((cluster.root / "workdir").iterdir()) == []


def test_f38_a_write_elsewhere_would_be_noticed(cluster: Cluster) -> None:
    hooks = cluster.root / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(f"ALLOWED = ('/nowhere',){LOCKED_DOWN}")
    code, text = cluster.run(JOBS["ngc-profiles-one"], {"PYTHONPATH": str(hooks)})
    assert (code, "writes to " in text) == (99, True), text
