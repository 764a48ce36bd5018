"""``nimpull status`` and ``--watch``: a pull that runs elsewhere, as another process or pod sees it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from nimpull.cli.watching import watch
from nimpull.clock import SystemClock
from nimpull.errors import Cancelled
from nimpull.store.presence import EXPIRY, RUNS, Presence, Watcher, announced
from nimpull.store.tree import Tree
from tests.clocks import HandClock
from tests.registry import Registry
from tests.running import FILES, nimpull

PROGRESS = {"phase": "fetching", "bytesDone": 3 << 30, "bytesTotal": 4 << 30, "bytesPerSecond": 1 << 20}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    (tmp_path / ".nimpull").mkdir()
    return Tree(str(tmp_path))


def report(tree: Tree, state: str, **more: Any) -> None:
    message = more.pop("message", "")
    document = {"status": {"state": state, "conditions": [{"message": message}]}, **more}
    Path(tree.root, ".nimpull/report.json").write_text(json.dumps(document))


def steps(*each: Callable[[], object]) -> Callable[[float], None]:
    """In place of the pauses between two looks; one more look than there are steps fails."""
    left = list(each)

    def sleep(_: float) -> None:
        left.pop(0)()

    return sleep


def a_run(tree: Tree, owner: str = "pod-a (pid 7)") -> Presence:
    return Presence(tree, owner=owner, clock=SystemClock())


# -- following -----------------------------------------------------------------------------------------


def test_a_pull_is_followed_to_its_end(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    with ExitStack() as running:
        running.enter_context(a_run(tree))
        report(tree, "InProgress", progress=PROGRESS)

        def end() -> None:
            report(tree, "Ready", message="14 files")
            running.close()

        assert watch(tree.root, sleep=steps(lambda: None, end)) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown == [
        "fetching: 3.0 GiB of 4.0 GiB (75%), 1.0 MiB/s",
        "nimpull: Ready: 14 files",
    ]


def test_the_exit_code_is_that_of_the_pull(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    report(tree, "Failed", error={"exitCode": 40}, message="no-space: short by 4 GiB")
    assert watch(tree.root, sleep=steps()) == 40
    assert capsys.readouterr().out == "nimpull: Failed: no-space: short by 4 GiB\n"


def test_a_report_of_an_earlier_run_does_not_end_it(tree: Tree) -> None:
    report(tree, "Failed", error={"exitCode": 40})
    with ExitStack() as running:
        running.enter_context(a_run(tree))
        assert watch(tree.root, sleep=steps(lambda: report(tree, "Ready"), running.close)) == 0


def test_a_run_that_was_killed_left_no_report(tree: Tree) -> None:
    with ExitStack() as running:
        running.enter_context(a_run(tree))
        report(tree, "InProgress", progress=PROGRESS)
        with pytest.raises(Cancelled, match="it was killed"):
            watch(tree.root, sleep=steps(running.close))


@pytest.mark.parametrize(
    "planted",
    [
        b"",
        b"[" * 100_000,
        b"[]",
        b'{"status": 7, "progress": [], "error": 1}',
        b'{"status": {"state": "Ready", "conditions": [{"message": {}}]}, "error": {"exitCode": 1e400}}',
        b'{"status": {"state": "InProgress"}, "progress": {"bytesTotal": 1%s, "bytesDone": -4}}'
        % (b"0" * 400),
        b'{"status": {"state": "InProgress"}, "progress": {"bytesTotal": 0, "phase": "\\u001b[2J"}}',
    ],
)
def test_what_was_planted_as_a_report_is_no_traceback(
    tree: Tree, capsys: pytest.CaptureFixture[str], planted: bytes
) -> None:
    Path(tree.root, ".nimpull/report.json").write_bytes(planted)
    with ExitStack() as running:
        running.enter_context(a_run(tree, owner="\x1b[31mpod"))
        with suppress(Cancelled):
            assert watch(tree.root, sleep=steps(running.close)) == 0
    assert "\x1b" not in capsys.readouterr().out


# -- who lives -----------------------------------------------------------------------------------------


def test_a_run_elsewhere_lives_while_its_file_moves(tree: Tree) -> None:
    clock = HandClock()
    path = Path(tree.root, RUNS, "a" * 32)
    path.parent.mkdir()
    path.write_text(json.dumps({"token": "a" * 32, "owner": "pod-b", "process": "another-boot:1:2:3"}))
    watcher = Watcher(tree, clock.monotonic)
    assert [run.owner for run in watcher.living()] == ["pod-b"]
    clock.now += EXPIRY - 1
    path.touch()
    assert watcher.living()
    clock.now += EXPIRY - 1
    assert watcher.living()
    clock.now += 2
    assert watcher.living() == ()
    assert announced(tree), "a clock that stands still tells nothing"


def test_status_tells_what_is_half_done_and_who_writes(registry: Registry, tmp_path: Path) -> None:
    store = tmp_path / "store"
    registry.add_hub_repo("acme/tiny", FILES)
    assert nimpull(registry, store, "download", "hf://acme/tiny").code == 0
    with a_run(Tree(str(store))):
        report(Tree(str(store)), "InProgress", progress=PROGRESS)
        assert "  fetching: 3.0 GiB of 4.0 GiB (75%), 1.0 MiB/s" in nimpull(registry, store, "status").out
        told = json.loads(nimpull(registry, store, "status", "-o", "json").out)["progress"]
        assert (told["phase"], told["bytesDone"], told["bytesTotal"]) == ("fetching", 3 << 30, 4 << 30)
        assert "  writing now: pod-a (pid 7)\n" in nimpull(registry, store, "status").out
        assert json.loads(nimpull(registry, store, "status", "-o", "json").out)["writing"] == [
            "pod-a (pid 7)"
        ]
    after = nimpull(registry, store, "status").out
    assert "writing" not in after and "fetching" not in after, "nobody is there any more"
