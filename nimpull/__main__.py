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
    begin()
    from nimpull.cli.main import cli
    from nimpull.cli.program import run_program

    run_program(cli, sys.argv[1:], "nimpull")


def download_to_cache() -> None:
    begin()
    from nimpull.cli.nim import download_to_cache_script

    download_to_cache_script()


def create_model_store() -> None:
    begin()
    from nimpull.cli.nim import create_model_store_script

    create_model_store_script()


def hugging_face() -> None:
    begin()
    from nimpull.cli.hub_download import hugging_face_script

    hugging_face_script()


def list_model_profiles() -> None:
    begin()
    from nimpull.cli.list_profiles import list_model_profiles_script

    list_model_profiles_script()


def check_cache_env() -> None:
    begin()
    from nimpull.cli.nim import check_cache_env_script

    check_cache_env_script()


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
