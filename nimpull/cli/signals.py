"""SIGTERM and SIGINT: the first stops a run in order, the second at once.

A Python handler runs between two bytecodes of the main thread: not while that thread is in an fsync that
hangs, or looks up a name. So none is relied on: the interpreter writes each signal into a pipe from its C
handler (``signal.set_wakeup_fd``), and a thread reads it.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from types import FrameType
from typing import Final

from nimpull.errors import Cancelled

GRACE: Final = 4.0  # seconds to stop in order; most runs take a tenth of one
LAST_WORDS: Final = 1.0  # seconds for the report of a run that did not
_NUMBERS: Final = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stopping(cancel: Event, overdue: Callable[[], object]) -> Iterator[None]:
    """The first signal sets ``cancel``, the second ends the process (exit 143).

    ``overdue``: called in a thread, before the end, if the block is not left within GRACE seconds of the
    first: something it waits for (a connection that is not accepted, a volume that hangs) does not let go.
    What is on the disk then is what a kill would leave.
    """
    reader, writer = os.pipe()
    # The C handler writes into it and must never wait; what does not fit is not needed.
    os.set_blocking(writer, False)
    listening = Thread(target=_listen, args=(reader, cancel, overdue), name="nimpull-signals", daemon=True)
    listening.start()  # before the handlers: where no thread can be had, a signal keeps its effect
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = {number: signal.signal(number, _heard) for number in _NUMBERS}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)
        # After the handlers: no signal may find one whose pipe is gone.
        signal.set_wakeup_fd(wakeup)
        # Ends the thread: it reads the end of the pipe.
        os.close(writer)
        listening.join()
        os.close(reader)


def _heard(number: int, frame: FrameType | None) -> None:
    """The default action must not be taken; the pipe says the rest."""


def _listen(reader: int, cancel: Event, overdue: Callable[[], object]) -> None:
    if not os.read(reader, 1):
        return  # the block was left
    cancel.set()
    in_time, _, _ = select.select([reader], [], [], GRACE)
    if in_time:
        if not os.read(reader, 1):
            return
    else:
        speaking = Thread(target=overdue, name="nimpull-overdue", daemon=True)
        speaking.start()
        speaking.join(LAST_WORDS)  # the volume that hangs may be where the report goes
    # Not sys.exit: here it would end this thread alone, and at the end wait for others that hang.
    os._exit(Cancelled.exit_code)
