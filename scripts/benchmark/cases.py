"""What is measured: the work of each case, and who does it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from scripts.benchmark.content import MIB
from scripts.benchmark.server import Link

CAP = 20 * MIB  # bytes per second of a connection, as CDNs limit them
MOST = 16  # connections that nimpull, aria2c and aria2-next open at most
_TRIP = 0.04  # seconds
_SPLITTING = ("engine", "nimpull", "before", "aria2c", "aria2-next", "ngcsdk")
_KEEPING = ("engine", "nimpull", "before", "curl", "aria2c", "aria2-next", "hf", "ngcsdk")


class Kind(Enum):
    DOWNLOAD = auto()
    RESUME = auto()  # killed at half, and run again
    WARM = auto()  # run again on what is complete
    VERIFY = auto()  # hash what is there


@dataclass(frozen=True, slots=True)
class Case:
    """``files``: sizes in bytes. ``links``: () is straight to the server. ``peers``: keys, () = all.
    ``cap``: bytes per second that could be reached, where the link limits; 0 = not limited."""

    name: str
    title: str
    files: tuple[int, ...]
    kind: Kind = Kind.DOWNLOAD
    tls: bool = False
    links: tuple[Link, ...] = ()
    peers: tuple[str, ...] = ()
    cap: int = 0

    @property
    def size(self) -> int:
        return sum(self.files)

    @property
    def many(self) -> bool:
        """The files are many and small: CPU is told for the run, not per GiB."""
        return self.size < MIB * len(self.files)


def small_files(count: int) -> tuple[int, ...]:
    """Sizes of 4 to 64 KiB, spread evenly."""
    return tuple(4096 + number * 7919 % 61_441 for number in range(count))


def show(size: int) -> str:
    return f"{size / (1 << 30):g} GiB" if size >= 1 << 30 else f"{size / MIB:g} MiB"


def all_cases(unit: int, count: int) -> tuple[Case, ...]:
    """``unit``: MiB; the large file has 64. ``count``: small files. Cases with the same files are next to
    each other."""
    one, half = (64 * unit * MIB,), (8 * unit * MIB,)
    repository = half * 8 + tuple(3000 * (number + 1) for number in range(12))
    large, model = f"one file of {show(one[0])}", f"a repository of 8 x {show(half[0])} and 12 small files"
    few, many = max(20, count // 5), 2 * count
    limited = (Link(rate=CAP),)
    return (
        Case("one", f"{large}, http", one),
        Case("one-https", f"{large}, https", one, tls=True),
        Case(
            "limited",
            f"{large} over connections of {CAP // MIB} MiB/s each",
            one,
            links=limited,
            peers=_SPLITTING,
            cap=MOST * CAP,
        ),
        Case("resume-large", f"{large}, killed at half and run again", one, Kind.RESUME, peers=_KEEPING),
        Case(
            "resume",
            f"one file of {show(half[0])}, killed at half and run again",
            half,
            Kind.RESUME,
            peers=_KEEPING,
        ),
        Case("repo", f"{model}, http", repository),
        Case("repo-https", f"{model}, https", repository, tls=True),
        Case(
            "repo-far",
            f"{model}, at a round trip of 40 ms and of 0 ms",
            repository,
            links=(Link(), Link(delay=_TRIP)),
            peers=("engine", "nimpull", "before", "curl", "hf"),
        ),
        Case("verify", f"hashing {model} again, out of the page cache", repository, Kind.VERIFY),
        Case("small", f"{count:,} files of 4 to 64 KiB", small_files(count)),
        Case(
            "small-far",
            f"{few:,} files of 4 to 64 KiB at a round trip of 40 ms",
            small_files(few),
            links=(Link(delay=_TRIP),),
        ),
        Case(
            "small-far-https",
            f"{few:,} files of 4 to 64 KiB at a round trip of 40 ms, https, HTTP/2 for those that speak it",
            small_files(few),
            tls=True,
            links=(Link(delay=_TRIP),),
        ),
        Case(
            "warm",
            f"{many:,} files that are all there",
            small_files(many),
            Kind.WARM,
            peers=("nimpull", "hf"),
        ),
    )
