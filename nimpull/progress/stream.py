"""Text for a stream that may be closed, broken, or read slowly or not at all."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from threading import Thread
from typing import Final, TextIO

CLOSE_PATIENCE: Final = 2.0  # seconds that the end of a run waits for a reader that does not read
_UNREAD: Final = (errno.EPIPE, errno.EBADF)
#: What own messages have beyond ASCII, for terminals that show no more.
PLAIN: Final = str.maketrans({"—": "-", "…": "...", "“": '"', "”": '"', "·": "-", "→": "->"})


def await_writer(thread: Thread) -> None:
    """Until it has written, but not for a reader that does not read."""
    thread.join(CLOSE_PATIENCE)


class TextStream:
    """It never raises, and goes quiet once it failed. ``ascii``: nothing else is written.

    A stream with a descriptor is written beside Python's buffer: a thread that blocks would hold the buffer's
    lock, which the interpreter wants at exit and may abort over ("could not acquire lock … at shutdown").
    """

    def __init__(self, stream: TextIO, *, ascii: bool = False) -> None:
        self._stream = stream
        self._descriptor: int | None = None
        self._ascii = ascii
        self.broken = False
        self.refusal: OSError | None = None  # of what should have kept it, as a full disk
        with suppress(OSError, ValueError, AttributeError):  # StringIO has none; a closed stream fails later
            stream.flush()
            self._descriptor = stream.fileno()

    def write(self, text: str) -> None:
        if self.broken or not text:
            return
        if self._ascii:
            text = text.translate(PLAIN).encode("ascii", "backslashreplace").decode()
        try:
            if self._descriptor is None:
                self._stream.write(text)
                self._stream.flush()
                return
            # os.write may take a part only (a pipe that is nearly full).
            rest = memoryview(text.encode("utf-8", "backslashreplace"))
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except (OSError, ValueError) as error:  # EPIPE, closed file: the download goes on unseen
            self.broken = True
            if isinstance(error, OSError) and error.errno not in _UNREAD:
                self.refusal = error

    def flush(self) -> None:
        """Everything is written at once; tqdm asks for it."""

    @property
    def columns(self) -> int:
        """Width of the terminal; 80 where it has none to tell (a pod's tty before the first resize)."""
        if self._descriptor is not None:
            with suppress(OSError):
                return os.get_terminal_size(self._descriptor).columns or 80
        return 80
