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
    hear_signals()
    from nimpull.cli.main import cli
    from nimpull.cli.program import run_program

    run_program(cli, sys.argv[1:], "nimpull")


def download_to_cache() -> None:
    hear_signals()
    from nimpull.cli.names import download_to_cache_script

    download_to_cache_script()


def create_model_store() -> None:
    hear_signals()
    from nimpull.cli.names import create_model_store_script

    create_model_store_script()


def hugging_face() -> None:
    hear_signals()
    from nimpull.cli.names import hugging_face_script

    hugging_face_script()


def list_model_profiles() -> None:
    hear_signals()
    from nimpull.cli.list_profiles import list_model_profiles_script

    list_model_profiles_script()


def check_cache_env() -> None:
    hear_signals()
    from nimpull.cli.container import check_cache_env_script

    check_cache_env_script()


def hear_signals() -> None:
    """Until a run takes over (nimpull.cli.signals) there is nothing to stop in order: exit 143 at once."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signal's signature
    name = signal.Signals(number).name
    try:  # noqa: SIM105 - contextlib is not imported this early
        # not print: the signal may have come in the middle of one
        os.write(sys.stderr.fileno(), f"nimpull: stopped by {name}: cancelled, exit 143\n".encode())
    except (AttributeError, OSError, ValueError):
        pass  # stderr is closed, and its number may be another file's
    os._exit(143)


if __name__ == "__main__":
    main()
