"""Folders and processes of one benchmark: all of them are gone when it ends, by a signal too."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent.parent
METER = Path(__file__).with_name("meter.py")
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(SystemExit):
    """A signal ended the benchmark."""


class Failed(Exception):
    """A downloader did not do its work."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One run. ``wall`` and ``cpu`` (user and system) in seconds, ``rss`` (peak of one process) in bytes."""

    wall: float
    cpu: float
    rss: int


class Session:
    """Context manager. A stopping signal raises Stopped; further ones do not disturb the cleaning up."""

    def __init__(self) -> None:
        self._folders: list[Path] = []
        self._children: list[subprocess.Popen[str]] = []
        self._before: dict[signal.Signals, Any] = {}
        self._making = False
        self._ending = False
        self._signal = 0

    def __enter__(self) -> Self:
        for each in _STOPPING:
            self._before[each] = signal.signal(each, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        self._ending = True
        for child in reversed(self._children):
            _kill(child)
        for folder in reversed(self._folders):
            shutil.rmtree(folder, ignore_errors=True)
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._signal:
            return  # on the way out already
        self._signal = number
        if not self._making and not self._ending:
            raise Stopped(128 + number)

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """A signal waits until what is made here is also known here."""
        self._making = True
        try:
            yield
        finally:
            self._making = False
        if self._signal and not self._ending:
            raise Stopped(128 + self._signal)

    def folder(self, parent: Path) -> Path:
        """A new folder, removed at the end or by ``remove``."""
        with self._whole():
            made = Path(tempfile.mkdtemp(prefix="nimpull-bench-", dir=parent))
            self._folders.append(made)
        return made

    def remove(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self._folders.remove(folder)

    def start(self, command: Sequence[str | Path], **options: Any) -> subprocess.Popen[str]:
        """A process in a group of its own; ``end`` or the end of the session kills the whole group."""
        with self._whole():
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, text=True, start_new_session=True, **options
            )
            self._children.append(child)
        return child

    def end(self, child: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
        """Send ``number`` to the group, and SIGKILL where that does not end it."""
        _kill(child, number)
        self._children.remove(child)

    # -- measured processes ----------------------------------------------------------------------------

    def launch(self, command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
        """``command`` under the meter; ``collect`` waits for it."""
        meter = [sys.executable, "-I", "-S", str(METER), *command]
        return self.start(meter, env=dict(environment), cwd=ROOT, stdout=subprocess.PIPE)

    def collect(self, child: subprocess.Popen[str]) -> Sample:
        """Raises Failed with the last line that the command wrote."""
        try:
            said, _ = child.communicate()
        finally:
            self.end(child)
        if child.returncode:
            raise Failed(f"the meter ended with exit code {child.returncode}")
        told = json.loads(said)
        if told["code"]:
            raise Failed(f"exit code {told['code']}: {told['said'] or 'it said nothing'}")
        return Sample(told["wall"], told["cpu"], told["rss"])

    def measure(self, command: Sequence[str], environment: Mapping[str, str]) -> Sample:
        return self.collect(self.launch(command, environment))


def _kill(child: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, number)
    with suppress(subprocess.TimeoutExpired):
        child.wait(5)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # whatever is left of the group
    child.wait()
    if child.stdout:
        child.stdout.close()
