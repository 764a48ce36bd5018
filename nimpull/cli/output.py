"""What a run prints at its end, on streams that may be closed, broken, or without a reader.

The exit code says what the run came to in any case: a reader that went away is no failure of it.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterable
from threading import Thread
from typing import Final, TextIO

from nimpull.errors import OutputError

_BLOCK: Final = 64 << 10  # characters


def say(line: str, *, err: bool = False) -> OutputError | None:
    """A line for people. Where it is not read, it is given up after two seconds, and nothing is wrong."""
    from nimpull.progress.stream import TextStream, await_writer

    # In a thread: a log driver that does not read must not keep the process from ending.
    out = sys.stderr if err else sys.stdout
    stream = TextStream(out)
    text = wrapped(line, stream.columns) if _is_terminal(out) else line
    saying = Thread(target=stream.write, args=(f"{text}\n",), name="nimpull-say", daemon=True)
    try:
        saying.start()
    except RuntimeError:  # no thread is left: then with the reader's patience
        stream.write(f"{text}\n")
    else:
        await_writer(saying)
    return OutputError.of("the output", stream.refusal) if stream.refusal else None


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # closed in Python
        return False


def wrapped_for_terminal(text: str) -> str:
    """On a terminal lines of prose are broken between words; rows of a table, with wide gaps, are not."""
    from nimpull.progress.stream import TextStream

    if not _is_terminal(sys.stdout):
        return text
    columns = TextStream(sys.stdout).columns
    return "\n".join(
        line if "  " in line.strip() or len(line) <= columns else wrapped(line, columns)
        for line in text.split("\n")
    )


def wrapped(line: str, columns: int) -> str:
    """Broken between words, which a terminal does not do; names, which are copied, stay whole."""
    return textwrap.fill(
        line, max(columns, 20), subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def hand_over(pieces: Iterable[str]) -> OutputError | None:
    """What was asked for, on stdout, with a line feed at its end; nothing for no piece.

    Its reader may take its time, as of any program, or go away. Beside Python's buffer: what cannot be
    written would stay in it, and fail again when the interpreter ends.
    """
    try:
        descriptor = sys.stdout.fileno()
    except ValueError as error:  # closed in Python
        return OutputError.of("the output", error)
    try:
        block, size = list[str](), 0
        for piece in pieces:
            block.append(piece)
            size += len(piece)
            if size > _BLOCK:  # the text may be of a million files
                _write(descriptor, "".join(block))
                # Not empty: the last line feed is due once anything was written.
                block, size = [""], 0
        if block:
            _write(descriptor, "".join([*block, "\n"]))
    except BrokenPipeError:
        return None
    except OSError as error:
        return OutputError.of("the output", error)
    return None


def _write(descriptor: int, text: str) -> None:
    from nimpull.progress.stream import encoding_of

    # a path may be no UTF-8: a script that reads it gets the bytes that it was given as
    rest = memoryview(text.encode(encoding_of(sys.stdout), "surrogateescape"))
    while rest:
        rest = rest[os.write(descriptor, rest) :]
