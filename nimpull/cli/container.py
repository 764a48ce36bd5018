"""What a NIM container offers beside its downloads: a start without a command, and looks at itself.

``nimpull`` alone with NIM_ENGINE_MODEL_DOWNLOAD_ONLY, ``check-cache-env`` ("Utilities" in NVIDIA's
documentation of a NIM) and ``nimpull manifest``.
"""

from __future__ import annotations

import os
import sys

import click

from nimpull.cli.options import criteria, find_manifest
from nimpull.cli.program import Command, run_program
from nimpull.cli.running import execute
from nimpull.core.names import display
from nimpull.core.request import LayoutKind, Request
from nimpull.errors import NotWritableError, UsageError
from nimpull.settings import DEFAULT_CACHE, Settings, from_process, native_path


def start() -> int:
    """A native NIM's start: the best profile, or NIM_MODEL_PROFILE, as plain files. Returns the exit code."""

    def ask() -> tuple[Request, Settings]:
        settings = from_process()
        if not settings.model_path:
            raise UsageError(
                "NIM_ENGINE_MODEL_DOWNLOAD_ONLY is set, but NIM_ENGINE_MODEL_PATH is not",
                hint="Set NIM_ENGINE_MODEL_PATH to the directory that the model goes to.",
            )
        request = Request(
            store=settings.model_path,
            manifest=find_manifest("", settings),
            criteria=criteria(settings),
            layout=LayoutKind.WORKSPACE,
            gpus=settings.gpus,
            offline=settings.offline,
            ignore_failure=settings.ignore_download_failure,
        )
        return request, settings

    return execute(ask, store=native_path())


@click.command("manifest", cls=Command, exits=(2,))
@click.option("--manifest", "manifest_file", metavar="FILE", help="Model manifest [NIM_MANIFEST_PATH].")
def manifest(manifest_file: str | None) -> None:
    """Print the model manifest that this image carries, byte for byte."""
    click.echo(find_manifest(manifest_file or "", from_process()), nl=False)


@click.command("check-cache-env", cls=Command, exits=(40, 41, 42))
def check_cache_env() -> None:
    """Check that the NIM cache is there and can be written. Exit 0: it can; 41: it cannot."""
    from nimpull.store.preflight import probe

    settings = from_process()
    path = settings.cache_path or DEFAULT_CACHE
    said = "NIM_CACHE_PATH" if settings.cache_path else "NIM_CACHE_PATH is not set; its default"
    if not os.path.isdir(path):
        raise NotWritableError(
            f"{said} {display(path, 300)} is not a directory that uid {os.geteuid()} can enter",
            hint="Mount a volume there, or set NIM_CACHE_PATH to where one is mounted.",
        )
    probe(path)
    click.echo(f"{said} {display(path, 300)} is there and can be written.")


def check_cache_env_script() -> None:
    run_program(check_cache_env, sys.argv[1:])
