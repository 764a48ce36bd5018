"""What a run says at its end, on streams that may be closed, broken, or read by nobody.

The exit code says what the run came to, whoever listens: a reader that went away is no failure of it.
"""

from __future__ import annotations

import os
import sys
from threading import Thread

from nimpull.errors import OutputError
from nimpull.settings import is_ascii_only


def say(line: str, *, err: bool = False) -> None:
    """A line for people: where nobody reads, it is left behind after a moment."""
    from nimpull.progress.stream import TextStream, await_writer

    stream = TextStream(sys.stderr if err else sys.stdout, ascii=is_ascii_only())
    saying = Thread(target=stream.write, args=(f"{line}\n",), name="nimpull-say", daemon=True)
    saying.start()
    await_writer(saying)


def hand_over(text: str) -> OutputError | None:
    """What was asked for, on stdout: its reader may take its time, as of any program, or go away.

    Beside Python's buffer: what cannot be written would stay in it, and fail again when the interpreter ends.
    """
    try:
        descriptor = sys.stdout.fileno()
        rest = memoryview(f"{text}\n".encode("utf-8", "backslashreplace"))
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except BrokenPipeError:
        return None
    except (OSError, ValueError) as error:  # ValueError: closed in Python
        return OutputError.of("the output", error)
    return None
