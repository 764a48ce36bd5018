"""Text for a stream that may be closed, broken, or read slowly or not at all."""

from __future__ import annotations

import codecs
import errno
import io
import json
import os
from contextlib import suppress
from threading import Thread
from typing import Final, TextIO

CLOSE_PATIENCE: Final = 2.0  # seconds that the end of a run waits for a reader that does not read
_UNREAD: Final = (errno.EPIPE, errno.EBADF)
ASCII: Final = "nimpull_ascii"
#: What own messages have beyond ASCII, for terminals that show no more.
_PLAIN: Final = str.maketrans({"—": "-", "…": "...", "“": '"', "”": '"', "·": "-", "→": "->"})


def use_ascii(*streams: TextIO) -> None:
    """Nothing but ASCII from now on: an encoding of its own, for click takes "ascii" for a mistake."""
    encoding = codecs.CodecInfo(
        encode=lambda text, _errors="": (to_ascii(text).encode("ascii"), len(text)),
        decode=codecs.ascii_decode,
        incrementalencoder=_AsciiEncoder,
        name=ASCII,
    )
    codecs.register(lambda name: encoding if name == ASCII else None)
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=ASCII)


class _AsciiEncoder(codecs.IncrementalEncoder):
    def encode(self, text: str, final: bool = False) -> bytes:  # noqa: ARG002 - codecs' signature
        return to_ascii(text).encode("ascii")


def to_ascii(text: str) -> str:
    """What own messages have beyond ASCII in ASCII; other text escaped as in JSON, which so stays JSON."""
    text = text.translate(_PLAIN)
    return text if text.isascii() else "".join(c if c.isascii() else json.dumps(c)[1:-1] for c in text)


def encoding_of(stream: TextIO) -> str:
    """What is written beside Python's buffer has to be encoded here: UTF-8, whatever the locale says."""
    return ASCII if getattr(stream, "encoding", "") == ASCII else "utf-8"


def await_writer(thread: Thread) -> None:
    """Until it has written, but not for a reader that does not read."""
    thread.join(CLOSE_PATIENCE)


class TextStream:
    """It never raises, and goes quiet once it failed.

    A stream with a descriptor is written beside Python's buffer: a thread that blocks would hold the buffer's
    lock, which the interpreter wants at exit and may abort over ("could not acquire lock … at shutdown").
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._descriptor: int | None = None
        self.encoding = encoding_of(stream)
        self.broken = False
        self.refusal: OSError | None = None  # of what should have kept it, as a full disk
        with suppress(OSError, ValueError, AttributeError):  # StringIO has none; a closed stream fails later
            stream.flush()
            self._descriptor = stream.fileno()

    def write(self, text: str) -> None:
        if self.broken or not text:
            return
        try:
            if self._descriptor is None:
                self._stream.write(text)
                self._stream.flush()
                return
            # os.write may take a part only (a pipe that is nearly full).
            rest = memoryview(text.encode(self.encoding, "backslashreplace"))
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
