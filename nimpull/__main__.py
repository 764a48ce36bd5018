"""``python -m nimpull`` and the console scripts.

All start here, and import the rest only once SIGTERM is heard: the first process of a container, which this
often is, does not get a signal that it has no handler for (pid_namespaces(7)), and the import of a command
takes a tenth of a second or more.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def main() -> None:
    _run("nimpull.cli.main", "cli", "nimpull")


def download_to_cache() -> None:
    _run("nimpull.cli.nim", "download_to_cache")


def create_model_store() -> None:
    _run("nimpull.cli.nim", "create_model_store")


def hugging_face() -> None:
    _run("nimpull.cli.hub_download", "hugging_face")


def list_model_profiles() -> None:
    _run("nimpull.cli.list_profiles", "list_model_profiles")


def check_cache_env() -> None:
    _run("nimpull.cli.nim", "check_cache_env")


def _run(module: str, command: str, name: str = "") -> None:
    """``name`` "" = what the process was called as."""
    begin()
    from importlib import import_module

    from nimpull.cli.program import run_program

    run_program(getattr(import_module(module), command), sys.argv[1:], name)


def begin() -> None:
    """Before anything that takes time, or opens a file."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        _hold(descriptor, name)


def _hold(descriptor: int, name: str) -> None:
    """A standard stream that is closed leaves its number to the next file: what is said gets into that."""
    try:
        os.fstat(descriptor)
    except OSError:
        os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
        os.set_inheritable(descriptor, True)
        setattr(sys, name, open(descriptor, "w" if descriptor else "r", closefd=False))  # noqa: SIM115


def _end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signal's signature
    """Until a run takes over (nimpull.cli.signals) there is nothing to stop in order."""
    name = signal.Signals(number).name
    try:  # noqa: SIM105 - contextlib is not imported this early
        # not print: the signal may have come in the middle of one
        os.write(2, f"nimpull: stopped by {name}: cancelled, exit 143\n".encode())
    except OSError:
        pass  # nobody reads it
    os._exit(143)


if __name__ == "__main__":
    main()
