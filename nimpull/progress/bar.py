"""A bar on a terminal."""

from __future__ import annotations

from threading import RLock
from typing import TYPE_CHECKING, Any

from nimpull.core.events import Event, Note, Phase, Waiting
from nimpull.core.names import display
from nimpull.core.reported import Snapshot
from nimpull.progress.outlet import Outlet
from nimpull.progress.sinks import Backlog, Pace, sentence
from nimpull.progress.tally import Tally

if TYPE_CHECKING:
    from tqdm import tqdm


class Bar:
    """tqdm's bar, moved by the writing thread alone."""

    def __init__(self, outlet: Outlet, now: float, interval: float) -> None:
        self._outlet = outlet
        self._backlog = Backlog()
        self._pace = Pace(now, interval)
        self._bar: tqdm[Any] | None = None

    def tell(self, event: Event, now: float) -> None:
        paused = isinstance(event, Waiting) and self._pace.first(event.reason, now)
        if paused or isinstance(event, (Phase, Note)):
            self._backlog.add(sentence(event))

    def due(self, tally: Tally, now: float, *, last: bool) -> list[str]:
        del tally, now, last
        return self._backlog.take()[0]

    def write(self, lines: list[str], snapshot: Snapshot) -> None:
        for line in lines:
            if self._bar is None:
                self._outlet.write(line + "\n")
            else:
                self._bar.write(line, file=self._outlet)
        if snapshot.total is None:
            return
        bar = self._bar = self._bar or _new_bar(self._outlet, snapshot)
        bar.total = snapshot.total
        bar.n = snapshot.done
        bar.ncols = self._outlet.columns
        bar.set_description_str(display(snapshot.phase, 20), refresh=False)
        bar.set_postfix_str(f"{snapshot.files}/{snapshot.files_total} files", refresh=False)
        bar.refresh()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _new_bar(outlet: Outlet, snapshot: Snapshot) -> tqdm[Any]:
    from tqdm import tqdm

    tqdm.set_lock(RLock())  # the default is a multiprocessing lock, which wants /dev/shm
    tqdm.monitor_interval = 0  # no watching thread: this bar is refreshed by ours
    return tqdm(
        total=snapshot.total,
        initial=snapshot.done,
        unit="iB",
        unit_scale=True,
        unit_divisor=1024,
        file=outlet,
        ncols=outlet.columns,
        mininterval=0,
    )
