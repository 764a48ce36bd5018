"""What a run prints at its end, on streams that may be closed, broken, or without a reader.

The exit code says what the run came to in any case: a reader that went away is no failure of it.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from itertools import chain
from threading import Thread
from typing import TextIO

from nimpull.errors import OutputError
from nimpull.progress.stream import TextStream, await_writer, encoding_of


def say(line: str, *, err: bool = False) -> OutputError | None:
    """A line for people. Where it is not read, it is given up after two seconds, and nothing is wrong."""
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


def hand_over(pieces: Iterator[str]) -> OutputError | None:
    """What was asked for, on stdout, with a line feed at its end; nothing for no piece.

    Its reader may take its time, as of any program, or go away. Beside Python's buffer: what cannot be
    written would stay in it, and fail again when the interpreter ends.
    """
    first = next(pieces, None)
    if first is None:
        return None
    try:
        # a path may be no UTF-8: a script that reads it gets the bytes that it was given as
        with open(
            sys.stdout.fileno(),
            "w",
            encoding=encoding_of(sys.stdout),
            errors="surrogateescape",
            newline="",
            closefd=False,
        ) as out:
            out.writelines(chain((first,), pieces, ("\n",)))
    except BrokenPipeError:
        return None
    except (OSError, ValueError) as error:  # ValueError: closed in Python
        return OutputError.of("the output", error)
    return None
