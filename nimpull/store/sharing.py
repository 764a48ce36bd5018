"""The files of one pull, taken unit by unit by every pod that wants them.

No pod has a fixed part: each takes the next unit that nobody has, so that a slow or dead one does not hold
up the end. Once none is free, a pod waits for what others have claimed, and takes over what stops being
renewed.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from nimpull.core.artifacts import Artifact, Outcome
from nimpull.core.events import Finished, Note
from nimpull.core.names import display
from nimpull.core.ports import Cancel, Clock, Emit
from nimpull.core.units import show_bytes, show_count
from nimpull.core.work import LARGE, WorkUnit, from_place, units_of
from nimpull.errors import Cancelled, LeaseHeldError
from nimpull.store.claims import Claims
from nimpull.store.presence import EXPIRY, RENEWAL, Run

ENOUGH: Final = 2  # large files that keep a link busy; what is claimed beyond these, others could have begun
POLL: Final = 1.0  # seconds between two looks at what others have, where they are many
_POLLS: Final = 20  # looks a second that all runs together may cost the volume
_LOOKS: Final = 16  # claims that one look reads: a hundred pods that wait must not keep the volume busy
_GLANCE: Final = 0.1  # seconds between two looks whether a file of this run is done
_RETELL: Final = 60.0  # seconds after which a pod says again whom it waits for

#: Whether the first ones can be worked on beside the others, which are: see ``ScratchRoom.fits``.
Fits = Callable[[Sequence[Artifact], Sequence[Artifact]], bool]
#: What the store has of an artifact by now: an outcome that needs no byte, or None. Under a claim it may
#: read.
Look = Callable[[Artifact], Outcome | None]


class SharedWork:
    """Implements :class:`nimpull.core.ports.Supply`, and the fence that an ingest area asks. Thread-safe.

    ``artifacts``: what the store lacks; ``news``: identities of what other runs committed since that was
    looked at, or since ``news`` was last asked; ``look``: see :data:`Look`; ``elsewhere``: what other pods
    brought meanwhile; ``patience``: seconds without anybody's progress; ``fits``: see :data:`Fits`, None =
    everything does.
    """

    def __init__(
        self,
        artifacts: Iterable[Artifact],
        claims: Claims,
        look: Look,
        news: Callable[[], Iterable[str]],
        *,
        pod: str,
        index: int | None,
        clock: Clock,
        cancel: Cancel,
        emit: Emit,
        patience: float,
        fits: Fits | None = None,
    ) -> None:
        units = from_place(units_of(artifacts), pod, index)
        self.elsewhere: list[Outcome] = []
        self.owner, self.presence = claims.owner, claims.presence
        self.token = self.presence.token  # in the names of this run's ingests: no two write into one file
        self._claims = claims
        self._look = look
        self._fits = fits
        self._news = news
        self._clock = clock
        self._cancel = cancel
        self._emit = emit
        self._patience = max(patience, 3 * EXPIRY)  # a dead one must have expired by then
        self._lock = threading.Lock()
        self._open = {unit.name: unit for unit in units}  # not known to be in the store
        self._unit_of = {each.identity: unit.name for unit in units for each in unit.artifacts}
        self._handed: dict[str, set[str]] = {}  # by unit: identities that are being fetched here
        self._gone: set[str] = set()  # of these: units whose claim was lost
        self.files = self.bytes = 0  # that this run brought
        self.waiting = ""  # for which files, and whom
        self.works = False  # whether it has had anything to do itself
        self._accompanied = False  # by a run that may have committed something
        self._turn = 0
        self._large = 0, 0.0  # how many are under way, and since when
        self._others = 0, -math.inf  # how many other runs there are, and when that was looked at
        self._told: tuple[frozenset[str], float] = (frozenset(), 0.0)

    # -- what a fetch takes ------------------------------------------------------------------------------

    def take(self) -> tuple[Artifact, ...]:
        """See ``core.ports.Supply``. () also while what was taken is under way: ``unfinished`` says whether
        it came back. Raises LeaseHeldError, Cancelled, StoreError.
        """
        progressed = self._clock.monotonic()
        while True:
            if self._cancel.is_set():
                raise Cancelled("stopped while waiting for other pods", hint="Run again to continue.")
            if self._note_news():
                progressed = self._clock.monotonic()
            if self._has_enough():
                self._clock.wait(_GLANCE, self._cancel)
                continue
            with self._claims.tree.holding():
                found, holders = self._claim_next()
            if not (found or holders) and self._fits and self.unfinished:
                self._clock.wait(_GLANCE, self._cancel)  # until what is under way makes room
                continue
            if found or not holders:
                self.waiting, self.works = "", self.works or bool(found)
                return found
            if any(run.age < 2 * POLL for run in holders.values()):
                progressed = self._clock.monotonic()
            elif self._clock.monotonic() - progressed > self._patience:
                raise LeaseHeldError(
                    f"nothing has come for {self._patience:.0f} s from {self._describe(holders)}",
                    hint="Look at the logs of these pods. What is there is kept: run again to continue.",
                )
            self._tell(holders)
            self._clock.wait(min(POLL, (self._count_others() + 1) / _POLLS), self._cancel)

    def _has_enough(self) -> bool:
        """Only beside other runs, and not for ever: nobody says that a file has become slow."""
        with self._lock:
            large = sum(self._open[name].size >= LARGE for name in self._handed)
        now = self._clock.monotonic()
        if large < ENOUGH or large != self._large[0]:
            self._large = large, now
        if large < ENOUGH or now - self._large[1] > EXPIRY:
            return False
        return self._count_others() > 0

    def _count_others(self) -> int:
        """Runs beside this one; looked at now and then."""
        now = self._clock.monotonic()
        if now - self._others[1] > RENEWAL:
            self._others = len(self.presence.others()), now
        return self._others[0]

    def _claim_next(self) -> tuple[tuple[Artifact, ...], Mapping[str, Run]]:
        """The next unit that could be claimed; else who has those that are left."""
        standing = self._claims.standing()
        left = self._fitting()
        claimed = [unit for unit in left if unit.name in standing]
        start, self._turn = self._turn % (len(claimed) or 1), self._turn + _LOOKS
        holders: dict[str, Run] = {}
        for unit in (
            *(unit for unit in left if unit.name not in standing),
            *(*claimed[start:], *claimed[:start])[:_LOOKS],
        ):
            if run := self._claims.take(unit.name):
                holders[unit.name] = run
            elif found := self._begin(unit):
                return found, {}
        return (), holders

    def _fitting(self) -> list[WorkUnit]:
        """What is not known to be there, nor under way here, and can be begun now."""
        left, fits = self._left(), self._fits
        if fits is None:
            return left
        with self._lock:
            under_way = [each for name in self._handed for each in self._open[name].artifacts]
        fitting = [unit for unit in left if fits(unit.artifacts, under_way)]
        return fitting if fitting or under_way else left

    def _left(self) -> list[WorkUnit]:
        with self._lock:
            return [unit for name, unit in self._open.items() if name not in self._handed]

    def _begin(self, unit: WorkUnit) -> tuple[Artifact, ...]:
        """What the store lacks of a unit that was just claimed; () if that is nothing.

        While no other run is here or left a line in the record, that is what it lacked before.
        """
        self._note_news()
        if not self._accompanied:
            self._accompanied = bool(self.presence.others())
        missing = []
        for artifact in unit.artifacts:
            if self._accompanied and (outcome := self._look(artifact)):
                self._note_brought(outcome)
            else:
                missing.append(artifact)
        with self._lock:
            if missing:
                self._gone.discard(unit.name)
                self._handed[unit.name] = {each.identity for each in missing}
                return tuple(missing)
            self._open.pop(unit.name, None)
        self._claims.drop(unit.name)
        return ()

    def _note_news(self) -> bool:
        """Strike out what others committed; whether there was any."""
        news = {self._unit_of[identity] for identity in self._news() if identity in self._unit_of}
        self._accompanied = self._accompanied or bool(news)
        with self._lock:
            units = [self._open[name] for name in news if name in self._open and name not in self._handed]
        for unit in units:
            with self._claims.tree.holding():
                outcomes = [self._look(artifact) for artifact in unit.artifacts]
            brought = [each for each in outcomes if each]
            if len(brought) == len(outcomes):
                for outcome in brought:
                    self._note_brought(outcome)
                with self._lock:
                    self._open.pop(unit.name, None)
        return bool(news)

    def _note_brought(self, outcome: Outcome) -> None:
        if outcome.artifact.identity in self._unit_of:
            del self._unit_of[outcome.artifact.identity]
            self.elsewhere.append(outcome)
            self._emit(Finished(outcome))

    def give_up(self, artifact: Artifact) -> None:
        """Its registry does not have it: others may ask for themselves, and are not waited for."""
        with self._lock:
            name = self._finish(artifact)
            self._unit_of.pop(artifact.identity, None)
            self._open.pop(name, None)
        if name:
            self._claims.drop(name)

    @property
    def unfinished(self) -> bool:
        """Whether a unit came back, because its claim was lost, after the supply had ended."""
        return bool(self._left())

    # -- what an ingest area asks ------------------------------------------------------------------------

    def holds(self, artifact: Artifact) -> bool:
        """Whether it is this run's to fetch: its claim was not taken over. Raises StoreError."""
        name = self._unit_of.get(artifact.identity, "")
        return name not in self._gone and not self._claims.lost((name,))

    def lost(self, artifacts: Sequence[Artifact]) -> frozenset[str]:
        """Identities of those whose claim another run took over: theirs to commit. Raises StoreError."""
        units = {self._unit_of.get(each.identity, "") for each in artifacts}
        gone = (units & self._gone) | self._claims.lost(units - self._gone)
        lost = [each for each in artifacts if self._unit_of.get(each.identity, "") in gone]
        with self._lock:
            self._gone |= gone
            for artifact in lost:
                self._finish(artifact)
        return frozenset(each.identity for each in lost)

    def _finish(self, artifact: Artifact) -> str:
        """Nothing of it is under way any more; the name of its unit if that holds for the whole. Locked.

        Only then may the unit be taken again: one run must not fetch a file twice at a time either.
        """
        name = self._unit_of.get(artifact.identity, "")
        left = self._handed.get(name, set())
        left.discard(artifact.identity)
        if left or name not in self._handed:
            return ""
        del self._handed[name]
        return name

    def committed(self, artifacts: Sequence[Artifact]) -> None:
        """Drops the claim of each unit that is whole now."""
        done = []
        with self._lock:
            for artifact in artifacts:
                name = self._finish(artifact)
                self.files, self.bytes = self.files + 1, self.bytes + (artifact.size or 0)
                self._unit_of.pop(artifact.identity, None)
                if name and name not in self._gone:
                    self._open.pop(name, None)
                    done.append(name)
                self._gone.discard(name)
        with self._claims.tree.holding():
            for name in done:
                self._claims.drop(name)

    # -- what is told ------------------------------------------------------------------------------------

    def _tell(self, holders: Mapping[str, Run]) -> None:
        self.waiting = self._describe(holders)
        names, now = frozenset(run.owner for run in holders.values()), self._clock.monotonic()
        told, at = self._told
        if names - told or now - at > _RETELL:
            self._told = names | told, now
            self._emit(Note(f"waiting for {self.waiting}"))

    def _describe(self, holders: Mapping[str, Run]) -> str:
        left = self._left()
        files = [each for unit in left for each in unit.artifacts]
        size = show_bytes(sum(unit.size for unit in left))
        first = f"{display(files[0].path, 200)}" if files else ""
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        owners = sorted({run.owner for run in holders.values()})
        others = f" and {len(owners) - 3} other pods" if len(owners) > 3 else ""
        return f"{', '.join(owners[:3])}{others}: {show_count(len(files), 'file')}, {size} ({first}{more})"
