"""The same pulls onto every kind of volume: each cell is right, or is refused with its reason at once.

Of each volume and layout: a pull, the same again without a request, ``verify``, the reader (huggingface_hub,
offline), pulls into other directories, a pull that is killed many times and goes on, two pods at once. What
is compared is the content of every file, byte by byte.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from scripts import guest, network_volumes
from scripts.outage import outages
from scripts.volume_speed import measure
from scripts.volumes import IN_GUEST, OUTAGES, VOLUMES, MissingError
from tests.pulling import noise
from tests.registry import Registry
from tests.running import Run, ended, nimpull, start

NOT_WRITABLE = 41
REPOSITORY = "acme/tiny"
URI = f"hf://{REPOSITORY}"
LAYOUTS = ("cache", "local-dir")
FILES = {
    "config.json": b'{"architectures": ["Tiny"]}\n',
    "model-00001.safetensors": noise((5 << 20) + 77, 1),
    "model-00002.safetensors": noise((3 << 20) + 1, 2),
    "tokenizer/vocab.txt": b"a\nb\n",
    **{f"many/part-{number:02}.txt": noise(700, 10 + number) for number in range(20)},
}
READER = """
import sys
from huggingface_hub import hf_hub_download
repository, cache, directory, *names = sys.argv[1:]
where = {"local_dir": directory} if directory else {"cache_dir": cache}
for name in names:
    print(hf_hub_download(repository, name, local_files_only=True, **where))
"""


@dataclass(slots=True)
class Cell:
    """One volume and layout."""

    registry: Registry
    root: Path
    scratch: Path
    layout: str
    complaints: list[str] = field(default_factory=list)

    def start(self, store: Path) -> subprocess.Popen[str]:
        arguments = ("download", URI, "--store", str(store), "--layout", self.layout)
        scratch = str(self.scratch)
        return start(self.registry, store, *arguments, NIMPULL_SCRATCH=scratch, NIMPULL_RETRY_SECONDS="20")

    def pull(self, store: Path) -> Run:
        return ended(self.start(store), store)

    def expect(self, what: str, right: bool, text: str = "") -> None:
        if not right:
            self.complaints.append(f"{what}: {' '.join(text.split())[-400:]}")

    def check_content(self, what: str, store: Path) -> None:
        wrong = []
        for name, content in FILES.items():
            found = list(store.glob(f"huggingface/hub/models--*/snapshots/*/{name}"))
            path = found[0] if self.layout == "cache" and found else store / name
            if not path.is_file() or path.read_bytes() != content:
                wrong.append(name)
        self.expect(what, not wrong, f"wrong or missing: {', '.join(wrong)}")


def fresh_and_again(cell: Cell) -> Run:
    store = cell.root / f"first-{cell.layout}"
    run = cell.pull(store)
    if run.code == NOT_WRITABLE:
        return run
    cell.expect("pull", run.code == 0, run.text)
    cell.check_content("pull", store)
    asked = len(cell.registry.log())
    again = cell.pull(store)
    cell.expect("again", again.code == 0, again.text)
    cell.expect("again without a request", len(cell.registry.log()) == asked)
    verified = nimpull(cell.registry, store, "verify", "--store", str(store))
    cell.expect("verify", verified.code == 0, verified.text)
    if run.report["store"]["mode"] == "sequential" and cell.layout == "local-dir":
        return run  # huggingface_hub locks and stamps the directory, which it cannot there
    read = subprocess.run(
        [
            *(sys.executable, "-c", READER, REPOSITORY, store / "huggingface" / "hub"),
            *("" if cell.layout == "cache" else store, *FILES),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    paths = read.stdout.split()
    right = len(paths) == len(FILES) and all(
        Path(path).read_bytes() == FILES[name] for path, name in zip(paths, FILES, strict=True)
    )
    cell.expect("huggingface_hub", right, read.stderr)
    return run


def afresh(cell: Cell, times: int) -> None:
    """A pull that is right once may not be so each time: servers set times late, and not always."""
    for number in range(times):
        store = cell.root / f"fresh-{number}-{cell.layout}"
        run = cell.pull(store)
        cell.expect(f"pull {number + 2}", run.code == 0, run.text)
        cell.check_content(f"pull {number + 2}", store)


def killed(cell: Cell, times: int, dice: random.Random, seconds: float) -> None:
    """``seconds``: that a whole pull takes. Killed anywhere in it, again and again."""
    store = cell.root / f"killed-{cell.layout}"
    for _ in range(times):
        process = cell.start(store)
        time.sleep(dice.uniform(0.1, 0.9) * seconds)
        process.kill()
        ended(process, store)
    run = cell.pull(store)
    cell.expect(f"after {times} kills", run.code == 0, run.text)
    cell.check_content("after kills", store)


def shared(cell: Cell) -> None:
    store = cell.root / f"shared-{cell.layout}"
    pods = [cell.start(store) for _ in range(2)]
    for number, pod in enumerate(pods):
        run = ended(pod, store)
        cell.expect(f"pod {number} of two", run.code == 0, run.text)
    cell.check_content("two pods", store)


def check(registry: Registry, name: str, root: Path, kills: int) -> list[str]:
    """Complaints about one volume. Prints a line a layout."""
    complaints: list[str] = []
    for layout in LAYOUTS:
        with tempfile.TemporaryDirectory(prefix="nimpull-scratch-") as scratch:
            cell = Cell(registry, root, Path(scratch), layout)
            begun = time.monotonic()
            run = fresh_and_again(cell)
            seconds = (time.monotonic() - begun) / 2
            if run.code == NOT_WRITABLE:
                print(f"{name:20} {layout:10} refused: {run.text.splitlines()[-1][:160]}", flush=True)
                continue
            afresh(cell, min(4, kills - 1))
            killed(cell, kills, random.Random(name + layout), min(seconds, 3.0))
            shared(cell)
            store = run.report.get("store", {})
            mode, lacks = store.get("mode", "?"), ", ".join(store.get("lacks", ()))
            verdict = "right" if not cell.complaints else f"{len(cell.complaints)} COMPLAINTS"
            why = f" ({lacks})" if lacks else ""
            print(f"{name:20} {layout:10} {verdict:14} {mode}{why}", flush=True)
            complaints += [f"{name}, {layout}: {each}" for each in cell.complaints]
    return complaints


def away(registry: Registry, name: str, root: Path) -> list[str]:
    """The server goes away in the middle of a pull. Prints a line."""
    found = outages(registry, root, soft=name.endswith("soft"), moments=2)
    print(f"{name:20} {'outage':10} {'right' if not found else f'{len(found)} COMPLAINTS'}", flush=True)
    return [f"{name}: {each}" for each in found]


def in_guest(name: str, kills: int, *, speed: bool) -> list[str]:
    """The same under another kernel, which has the servers. Raises MissingError."""
    if reason := guest.missing() or network_volumes.missing(name.partition("-")[0].rstrip("34")):
        raise MissingError(reason)
    command = (sys.executable, "-m", "scripts.volumes_test", "--only", name, "--kills", str(kills))
    code = guest.run((*command, "--speed") if speed else command)
    return [f"{name}: exit code {code} in the guest, see above"] if code else []


@contextmanager
def given(directory: Path) -> Iterator[Path]:
    root = directory / f"nimpull-test-{random.randrange(1 << 32):08x}"
    root.mkdir()
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="three kills a volume, of the local kinds")
    parser.add_argument("--only", help=f"of {', '.join((*VOLUMES, *IN_GUEST, *OUTAGES))}")
    parser.add_argument("--speed", action="store_true", help="only measure, beside writing the same files")
    parser.add_argument("--kills", type=int, help="a volume and layout [20; 3 with --quick]")
    parser.add_argument("--directory", type=Path, help="a volume that is mounted already")
    options = parser.parse_args(arguments)
    quick = ("ext4", "vfat", "tmpfs", *(name for name in VOLUMES if name.startswith("refusing")))
    names = (
        options.only.split(",")
        if options.only
        else quick
        if options.quick
        else (*VOLUMES, *IN_GUEST, *OUTAGES)
    )
    kills = options.kills or (3 if options.quick else 20)
    complaints: list[str] = []
    made = 0
    with Registry() as registry:
        registry.add_hub_repo(REPOSITORY, FILES)
        if options.directory:
            with given(options.directory) as root:
                complaints = check(registry, str(options.directory), root, kills)
                names, made = (), 1
        for name in names:
            if name in {**IN_GUEST, **OUTAGES} and not guest.is_guest():
                try:
                    complaints += in_guest(name, kills, speed=options.speed)
                    made += 1
                except MissingError as missing:
                    print(f"{name:20} left out: {missing}", flush=True)
                continue
            with tempfile.TemporaryDirectory(prefix="nimpull-volume-", ignore_cleanup_errors=True) as work:
                try:
                    with {**VOLUMES, **IN_GUEST, **OUTAGES}[name](Path(work)) as root:
                        if options.speed:
                            print(f"{name:20} {measure(root)}", flush=True)
                        elif name in OUTAGES:
                            complaints += away(registry, name, root)
                        else:
                            complaints += check(registry, name, root, kills)
                        made += 1
                except MissingError as missing:
                    print(f"{name:20} left out: {missing}", flush=True)
    for each in complaints:
        print(each)
    if not guest.is_guest():
        print(f"{made} kinds of volume, {len(complaints)} complaints")
    return 1 if complaints else 0 if made else 77


if __name__ == "__main__":
    raise SystemExit(main())
