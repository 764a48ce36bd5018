"""Cut the power at any moment of a pull, as a disk would see it, and look at what is left.

A pull runs on a file system whose disk records every write and every flush (scripts/recorded_disk.py). From
the record the disk is made as it may be after a power cut at each moment: with what was flushed, and of the
rest nothing or a part by chance. Each such disk is mounted, which replays its journal. Then no file under a
final name may be torn and no ready marker stand before its files; from some of them the pull goes on.

The second part is about what a power cut costs: a slow pull, cut at moments on its way, and how much of its
progress is lost.

What this cannot show: a disk that lies about its flushes, and a file system on other machines (NFS, Ceph).
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from nimpull.store.journal import parse_journal
from scripts.recorded_disk import Event, read_events, recording, write_image
from tests.crashing import LARGE, Case, complaints, model_files, recover, serving
from tests.registry import Registry
from tests.small_steps import FLUSH
from tests.volume_faults import COMPILER, faulty, read_log

T = TypeVar("T")
SLACK = 1.0  # seconds, beside FLUSH, for a machine that is busy
SLOW = 128 << 10  # bytes per second of a connection in the second part


class MountError(Exception):
    """A disk that cannot be mounted."""


@dataclass(frozen=True, slots=True)
class FileSystem:
    """``size``: of its disk, bytes. By the long commit interval only what the program syncs is durable."""

    name: str
    make: tuple[str, ...]
    size: int
    options: str


FILE_SYSTEMS = {
    "ext4": FileSystem("ext4", ("mkfs.ext4", "-q", "-F"), 32 << 20, "loop,nodiscard,commit=60"),
    "ext4-writeback": FileSystem(
        "ext4", ("mkfs.ext4", "-q", "-F"), 32 << 20, "loop,nodiscard,commit=60,data=writeback"
    ),
    "xfs": FileSystem("xfs", ("mkfs.xfs", "-q", "-f"), 320 << 20, "loop,nodiscard"),
}


def why_not() -> str:
    """What is missing here, or ""."""
    if os.geteuid():
        return "root is needed to mount"
    if not Path("/dev/fuse").exists():
        return "there is no /dev/fuse here"
    if missing := [name for name in ("mkfs.ext4", "mount", "losetup") if not shutil.which(name)]:
        return f"{missing[0]} is not installed"
    if COMPILER is None:
        return "there is no C compiler here"
    try:
        import mfusepy  # noqa: F401
    except OSError as error:
        return f"libfuse is not installed: {error}"
    free = subprocess.run(["losetup", "--find"], capture_output=True, text=True, check=False)
    return f"no loop device: {free.stderr.strip()}" if free.returncode else ""


@contextmanager
def mounted(kind: FileSystem, disk: Path, target: Path) -> Iterator[None]:
    target.mkdir(exist_ok=True)
    command = ("mount", "-t", kind.name, "-o", kind.options, str(disk), str(target))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MountError(done.stderr)
    try:
        yield
    finally:
        subprocess.run(["umount", target], check=True)


@dataclass(frozen=True, slots=True)
class Recorded:
    """A pull and what its disk saw. ``base``: the disk before; ``log``: calls of the process."""

    kind: FileSystem
    case: Case
    scratch: Path
    base: Path
    events: Sequence[Event]

    @property
    def store(self) -> Path:
        return self.scratch / "mnt" / "store"

    @contextmanager
    def cut_after(self, count: int, dice: random.Random | None) -> Iterator[Path]:
        """The store after a power cut that follows event number ``count``."""
        image = self.scratch / "image"
        write_image(image, self.base, self.events[:count], dice)
        with mounted(self.kind, image, self.store.parent):
            yield self.store


@contextmanager
def recorded(kind: FileSystem, case: Case, registry: Registry) -> Iterator[Recorded]:
    with tempfile.TemporaryDirectory(prefix="nimpull-power-") as made:
        scratch = Path(made)
        base, log = scratch / "base", scratch / "log"
        with base.open("wb") as file:
            file.truncate(kind.size)
        subprocess.run([*kind.make, base], check=True)
        one = Recorded(kind, case, scratch, base, ())
        with recording(base, log, scratch / "fuse") as disk, mounted(kind, disk, one.store.parent):
            run = case.pull(registry, one.store, **faulty(log=scratch / "calls"))
        if run.code:
            raise RuntimeError(run.text)
        yield replace(one, events=read_events(log))


# -- torn files --------------------------------------------------------------------------------------------


def look_for_torn_files(name: str, one: Recorded, registry: Registry, quick: bool) -> int:
    """Cut at every event (``quick``: at some); returns how many states went wrong."""
    flushes = sum(event.block is None for event in one.events)
    print(f"{name}: the disk saw {len(one.events) - flushes} writes and {flushes} flushes", flush=True)
    counts = range(1, len(one.events) + 1)
    states: list[tuple[int, int]] = [(count, seed) for count in counts for seed in range(3)]
    states = spread(states, 45) if quick else states
    resumed = set(spread(states, 4 if quick else 40))
    wrong = unreadable = 0
    for done, (count, seed) in enumerate(states, 1):
        dice = random.Random(f"{count} {seed}") if seed else None
        try:
            with one.cut_after(count, dice) as store:
                found = complaints(store, one.case)
                if (count, seed) in resumed and not found:
                    # what a power cut costs is the other part's matter
                    again = recover(one.case, registry, store).wrong
                    found = [each for each in again if not each.endswith("fetched again")]
        except (MountError, OSError) as error:
            if isinstance(error, OSError) and error.errno != errno.EUCLEAN:
                raise
            unreadable += 1
            continue
        if any(os.strerror(errno.EUCLEAN) in each for each in found):  # told to the pull that went on
            unreadable += 1
            continue
        wrong += bool(found)
        for each in found:
            print(f"{name}: after event {count}, throw {seed}: {each}", flush=True)
        if done % 100 == 0:
            print(f"{name}: {done} of {len(states)} states", flush=True)
    print(f"{name}: {len(states)} states after a power cut, {wrong} of them went wrong.")
    if unreadable:
        print(f"{name}: {unreadable} more say nothing: the file system itself did not come back from them")
    print(
        f"{name}: in the others no file under a final name was torn and no marker came before its files;\n"
        f"  from {len(resumed)} of them the pull went on, and made all {len(one.case.files)} files whole.",
        flush=True,
    )
    return wrong


def spread(items: Sequence[T], count: int) -> list[T]:
    """``count`` of them, from the first to the last."""
    if len(items) <= count:
        return list(items)
    return [items[index * (len(items) - 1) // (count - 1)] for index in range(count)]


# -- lost progress -----------------------------------------------------------------------------------------


def measure_loss(name: str, one: Recorded, registry: Registry, quick: bool) -> int:
    """Cut a slow pull at moments on its way; returns how often more was lost than may be."""
    lines = [call.time for call in read_log(one.scratch / "calls") if is_journal_line(call.name, call.path)]
    on_the_way = [count for count, event in enumerate(one.events, 1) if lines[2] < event.time < lines[-1]]
    lost, costs, wrong = [], [], 0
    moments = spread(on_the_way, 6 if quick else 30)
    for number, count in enumerate(moments):
        moment = one.events[count - 1].time
        with one.cut_after(count, None) as store:
            kept = claimed(store)
            written = [each for each in lines if each < moment]
            survived = lines[min(kept, len(written)) - 1] if kept else lines[0]
            if any(file.exists() and file.read_bytes() == LARGE for _, file in model_files(store)):
                survived = moment  # committed, without a journal any more
            lost.append(moment - survived)
            if number % 3 == 0:
                recovery = recover(one.case, registry, store)
                costs.append(recovery.again)
        if lost[-1] > FLUSH + SLACK:
            wrong += 1
            print(f"{name}: a cut at {moment - lines[0]:.1f} s cost {lost[-1]:.1f} s of progress", flush=True)
    print(
        f"{name}: a pull of {len(LARGE)} bytes in {lines[-1] - lines[0]:.1f} s, flushed every {FLUSH} s,\n"
        f"  was cut at {len(moments)} moments; that cost {min(lost):.2f} to {max(lost):.2f} s of progress,\n"
        f"  and up to {max(costs)} bytes that the disk had were fetched again.",
        flush=True,
    )
    return wrong


def is_journal_line(name: str, path: str) -> bool:
    return name == "write" and path.endswith("/journal")


def claimed(store: Path) -> int:
    """Lines of the journal that survived, and the empty one that begins it."""
    journals = list(store.glob(".nimpull/ingest/*/journal"))
    return sum(
        len(parse_journal(each.read_bytes(), len(LARGE))) + 1 for each in journals if each.stat().st_size
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="ext4 and one layout, at some moments")
    parser.add_argument("--file-system", choices=FILE_SYSTEMS, help="this one alone")
    parser.add_argument("--layout", choices=("ngc", "hub", "local-dir"), help="this one alone")
    options = parser.parse_args()
    if reason := why_not():
        print(f"power-cut-test: skipped: {reason}", file=sys.stderr)
        sys.exit(77)
    kinds = {options.file_system: FILE_SYSTEMS[options.file_system]} if options.file_system else FILE_SYSTEMS
    if options.quick and not options.file_system:
        kinds = {"ext4": FILE_SYSTEMS["ext4"]}
    wrong = 0
    with serving() as (registry, cases):
        layouts = [options.layout] if options.layout else ["hub"] if options.quick else list(cases)
        for label, kind in kinds.items():
            if not shutil.which(kind.make[0]):
                print(f"{label}: left out: {kind.make[0]} is not installed")
                continue
            wrong += cut(label, kind, {name: cases[name] for name in layouts}, registry, options.quick)
    if wrong:
        sys.exit(f"power-cut-test: {wrong} power cuts went wrong")


def cut(label: str, kind: FileSystem, cases: Mapping[str, Case], registry: Registry, quick: bool) -> int:
    wrong = 0
    for name, case in cases.items():
        with recorded(kind, case, registry) as one:
            wrong += look_for_torn_files(f"{label}, {name}", one, registry, quick)
    registry.rate = SLOW
    with recorded(kind, next(iter(cases.values())), registry) as one:
        registry.rate = 0
        wrong += measure_loss(f"{label}, slow", one, registry, quick)
    return wrong


if __name__ == "__main__":
    main()
