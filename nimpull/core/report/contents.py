"""What a report holds; times of its time line are seconds since the run began."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from nimpull.core.artifacts import Listing, Outcome
from nimpull.core.hardware import Hardware
from nimpull.core.manifest import Profile
from nimpull.core.mirror_objects import MirrorAction, MirrorObject
from nimpull.core.preference import profile_name
from nimpull.errors import INTERNAL_ERROR_EXIT_CODE, INTERNAL_ERROR_REFERENCE, NimpullError

if TYPE_CHECKING:
    from nimpull.core.criteria import Criteria
    from nimpull.core.fit import Verdict
    from nimpull.core.selection import Selection


#: Of a phase as it is told, the word for it in ``secondsByPhase``; others have their own first word.
_PHASES: Final = {"listing": "list", "checking": "check", "fetching": "fetch", "waiting": "wait"}


class State(StrEnum):
    """The states of ``NIMCache.status.state`` that a puller can be in."""

    IN_PROGRESS = "InProgress"
    READY = "Ready"
    FAILED = "Failed"


@dataclass(frozen=True, slots=True)
class Repository:
    """One source as it was resolved. ``uri`` names the immutable revision; ``bytes`` None = not listed."""

    uri: str
    endpoint: str = ""
    requested: str = ""
    revision: str = ""
    files: int = 0
    bytes: int | None = None

    @classmethod
    def of(cls, listing: Listing) -> Repository:
        sizes = [artifact.size for artifact in listing.artifacts]
        known = [size for size in sizes if size is not None]
        return cls(
            uri=str(listing.uri),
            endpoint=str(listing.endpoint),
            requested=listing.requested,
            revision=listing.uri.revision,
            files=len(sizes),
            # A sum of some would be taken for the whole.
            bytes=sum(known) if len(known) == len(sizes) else None,
        )


@dataclass(frozen=True, slots=True)
class ProfileVerdict:
    """``reason``: the rule that matched or what failed; ``change``: what would have to differ."""

    profile: str
    name: str
    matches: bool
    reason: str
    detail: str = ""
    change: str = ""

    @classmethod
    def of(cls, profile: Profile, verdict: Verdict) -> ProfileVerdict:
        from nimpull.core.fit import Match  # its pattern engines are slow to import

        name = profile_name(profile)
        if isinstance(verdict, Match):
            detail = "; ".join(part for part in (verdict.detail, verdict.note) if part)
            return cls(profile.id, name, True, verdict.how.value, detail)
        reason = verdict.reason.name.lower().replace("_", "-")
        return cls(profile.id, name, False, reason, verdict.detail, verdict.change)


@dataclass(frozen=True, slots=True)
class SelectionSummary:
    """``rule``: how ``chosen`` (profile ids) came about; ``criteria``: what was asked for, as text."""

    rule: str
    criteria: Mapping[str, str] = field(default_factory=dict)
    chosen: tuple[str, ...] = ()
    verdicts: tuple[ProfileVerdict, ...] = ()

    @classmethod
    def of(cls, selection: Selection, criteria: Criteria) -> SelectionSummary:
        """The verdicts in manifest order."""
        return cls(
            selection.rule,
            _criteria(criteria),
            tuple(profile.id for profile in selection.chosen),
            tuple(ProfileVerdict.of(profile, verdict) for profile, verdict in selection.verdicts),
        )


def _criteria(criteria: Criteria) -> dict[str, str]:
    """What was given, under the names of the NIMCache's ModelSpec."""
    gpus = ", ".join(" ".join((gpu.product, *gpu.ids)).strip() for gpu in criteria.gpus)
    given = {
        "profiles": ", ".join(criteria.profiles),
        "engine": criteria.engine,
        "precision": criteria.precision,
        "tensorParallelism": criteria.tensor_parallelism,
        "qosProfile": criteria.qos,
        "lora": "" if criteria.lora is None else str(criteria.lora).lower(),
        "buildable": "" if criteria.buildable is None else str(criteria.buildable).lower(),
        "gpus": gpus,
        "tags": ",".join(f"{key}={value}" for key, value in criteria.tags),
    }
    return {name: value for name, value in given.items() if value}


@dataclass(frozen=True, slots=True)
class StoreSummary:
    """``path``: the store's root; ``bytes``: what this selection occupies; ``free``: None = unknown.

    ``mode``: how the store writes there, see :class:`nimpull.core.abilities.WriteMode`; ``lacks``: why.
    """

    path: str
    layout: str
    bytes: int = 0
    free: int | None = None
    mode: str = "direct"
    lacks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TransferSummary:
    """``bytes`` over the network; ``seconds`` of wall time; ``connections``: the most at one time."""

    bytes: int = 0
    seconds: float = 0.0
    retries: int = 0
    connections: int = 0


@dataclass(frozen=True, slots=True)
class RateLine:
    """Bytes per second, one for each interval. ``connection``: None = all of that host."""

    host: str
    rates: tuple[int, ...]
    connection: int | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """From ``at`` on, for ``seconds`` (0 = tried again at once); ``times``: so often in that interval."""

    at: float
    seconds: float
    reason: str
    times: int = 1


@dataclass(frozen=True, slots=True)
class PhaseSpan:
    phase: str
    at: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """``rates``: bytes per second that came over the network in each ``interval`` (seconds).

    ``connections`` have an interval of their own, a coarser one. ``spent``: seconds of all workers together,
    by their work (``hash``, ``sync``).
    """

    interval: float = 1.0
    rates: tuple[int, ...] = ()
    hosts: tuple[RateLine, ...] = ()
    connection_interval: float = 1.0
    connections: tuple[RateLine, ...] = ()
    pauses: tuple[Pause, ...] = ()
    phases: tuple[PhaseSpan, ...] = ()
    spent: Mapping[str, float] = field(default_factory=dict)
    retries: int = 0


def seconds_by_phase(timeline: Timeline) -> dict[str, float]:
    """``list``, ``check``, ``fetch`` and others are wall time; ``wait``: of ``fetch``, while a pause was on
    and no byte came; ``hash`` and ``sync``: work of all workers during it.
    """
    seconds: dict[str, float] = {}
    for span in timeline.phases:
        first = span.phase.partition(" ")[0]
        name = _PHASES.get(first, first)
        seconds[name] = seconds.get(name, 0.0) + span.seconds
    # Pauses of several connections overlap, and others may bring bytes meanwhile: only intervals without any
    # count.
    paused = {
        number
        for pause in timeline.pauses
        for number in range(
            int(pause.at / timeline.interval), int((pause.at + pause.seconds) / timeline.interval)
        )
        if number < len(timeline.rates) and not timeline.rates[number]
    }
    if paused:
        seconds["wait"] = seconds.get("wait", 0.0) + len(paused) * timeline.interval
    for name, spent in timeline.spent.items():
        seconds[name] = seconds.get(name, 0.0) + spent
    return seconds


@dataclass(frozen=True, slots=True)
class MirrorSummary:
    """``target``: as the user named it; ``objects``: what became of each; ``marks``: the keys of the lists of
    checksums, one for each repository that is whole there; ``manifest``: the key of the manifest.
    """

    target: str
    objects: tuple[MirrorObject, ...] = ()
    marks: tuple[str, ...] = ()
    manifest: str = ""

    def of(self, action: MirrorAction) -> tuple[MirrorObject, ...]:
        return tuple(one for one in self.objects if one.action is action)


@dataclass(frozen=True, slots=True)
class ProgressSummary:
    """How far a run is. Bytes; ``rate`` in bytes per second over the last half minute; ``eta`` in seconds;
    ``stalled``: seconds without a byte while some are missing.

    None = not known (yet): the plan is not made, or nothing moves.
    """

    phase: str = ""
    done: int = 0
    total: int | None = None
    rate: float = 0.0
    eta: float | None = None
    files: int = 0
    files_total: int | None = None
    stalled: float = 0.0


@dataclass(frozen=True, slots=True)
class PodShare:
    """What one pod did of a pull that several may share. ``pod``: its name and process; ``files`` that it
    brought, ``bytes`` of these; ``waiting``: for which files of whom, "" = it works.
    """

    pod: str
    state: State
    files: int = 0
    bytes: int = 0
    waiting: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a run failed, ready for a reader: see :mod:`nimpull.errors`."""

    reference: str
    message: str
    hint: str
    retryable: bool
    exit_code: int

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Anything that is no NimpullError is a bug: ``internal-error``, exit 70."""
        if isinstance(error, NimpullError):
            return cls(error.reference, error.message, error.hint, error.retryable, error.exit_code)
        return cls(
            INTERNAL_ERROR_REFERENCE,
            f"unexpected {type(error).__name__}: {error}",
            "This is a bug in nimpull; the log above holds the traceback. Please report both.",
            False,
            INTERNAL_ERROR_EXIT_CODE,
        )


@dataclass(frozen=True, slots=True)
class Report:
    """One run. ``started`` and ``updated``: seconds since the epoch; ``error`` is set if and only if Failed.

    ``pods``: the one that writes first. ``profiles`` are published in ``status.profiles`` once Ready, as
    the operator does.
    """

    state: State
    started: float
    updated: float
    version: str = ""
    profiles: tuple[Profile, ...] = ()
    sources: tuple[Repository, ...] = ()
    selection: SelectionSummary | None = None
    hardware: Hardware | None = None
    store: StoreSummary | None = None
    transfer: TransferSummary | None = None
    mirror: MirrorSummary | None = None
    progress: ProgressSummary | None = None
    timeline: Timeline | None = None
    artifacts: tuple[Outcome, ...] = ()
    pods: tuple[PodShare, ...] = ()
    error: Failure | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.error is not None) != (self.state is State.FAILED):
            raise ValueError("a report has an error if and only if it is Failed")

    @property
    def exit_code(self) -> int:
        """0 for Ready, the error's own code for Failed. An unfinished run has none: ValueError."""
        if self.state is State.IN_PROGRESS:
            raise ValueError("the run is not over")
        return self.error.exit_code if self.error else 0
