"""A bar on a terminal: tqdm's, with the words and units of the log."""

from __future__ import annotations

from threading import RLock
from typing import TYPE_CHECKING, Any, Final

from nimpull.core.events import Finished
from nimpull.core.names import display
from nimpull.core.report import ProgressSummary, progress_text
from nimpull.progress.stream import ASCII, TextStream
from nimpull.progress.updates import Update, View, sentence

if TYPE_CHECKING:
    from tqdm import tqdm

#: Columns left free at the end: the terminal writes ^C there, which must not break the line.
MARGIN: Final = 3
BESIDES: Final = 16  # columns of the percentage, blanks, and a bar that is still one


class Bar(View):
    """Lines for what happens, and below them the bar, drawn with ``#`` where the stream takes only ASCII."""

    def __init__(self, stream: TextStream) -> None:
        self._stream = stream
        self._bar: tqdm[Any] | None = None

    def show(self, update: Update) -> None:
        lines = [sentence(event) for _, event in update.events if not isinstance(event, Finished)]
        # The lines go above the bar, which is drawn anew below them.
        if lines and self._bar is not None:
            self._bar.clear()
        self._stream.write("".join(f"{line}\n" for line in lines if line))
        if update.progress.total is not None:
            self._draw(update.progress, update.progress.total)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _draw(self, progress: ProgressSummary, total: int) -> None:
        columns = self._stream.columns - MARGIN
        text = progress_text(progress, percent=False)
        phase = display(progress.phase, 20)
        while len(phase) + BESIDES + len(text) > columns and ", " in text:
            text = text.rpartition(", ")[0]  # what comes last matters least
        form = f"{phase.replace('{', '{{').replace('}', '}}')} {{percentage:3.0f}}%|{{bar}}| {text}"
        done, total = (progress.done, total) if total else (1, 1)  # nothing to fetch is all of it
        if self._bar is None:
            self._bar = self._new_bar(done, total, columns, form)
            return
        self._bar.n, self._bar.total, self._bar.ncols, self._bar.bar_format = done, total, columns, form
        self._bar.refresh()

    def _new_bar(self, done: int, total: int, columns: int, form: str) -> tqdm[Any]:
        from tqdm import tqdm

        tqdm.set_lock(RLock())  # the default is a multiprocessing lock, which wants /dev/shm
        tqdm.monitor_interval = 0  # no watching thread: this bar is refreshed by ours
        bar = tqdm(
            total=total,
            initial=done,
            ncols=columns,
            bar_format=form,
            file=self._stream,
            ascii=self._stream.encoding == ASCII,
            position=0,
        )
        # tqdm pads to the width of the last line, which wraps once the terminal is narrower
        bar.sp = lambda text: self._stream.write(f"\r{text}\x1b[K")
        return bar
