"""``nimpull mirror``: what ``download`` brings into the store, and from there to a bucket or a directory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from nimpull.cli.download import Options, ask, download, output_of
from nimpull.cli.program import Command, OneOf
from nimpull.cli.running import execute
from nimpull.core.mirror_objects import check_mirrored
from nimpull.core.names import ModelUri
from nimpull.core.request import LayoutKind, MirrorTo, Request
from nimpull.errors import EXIT_CODES, UsageError
from nimpull.settings import Settings


def mirror(to: str, check: bool, s3_addressing: str, **given: Any) -> int:
    """Fill a bucket or a directory from which NIM, nimpull and huggingface_hub pull without the internet.

    Takes what download takes, brings it into the store if it is not there, and sends it to --to under the
    keys that NIM_REPOSITORY_OVERRIDE asks for. checksums.blake3 of each repository goes last: without it, no
    reader takes the repository for whole. A second run sends nothing; one that was killed goes on.
    """
    options = Options(layout=LayoutKind.CACHE.value, **given)
    return execute(lambda: ask_mirror(options, MirrorTo(to, check, s3_addressing)), output_of(options))


def ask_mirror(options: Options, to: MirrorTo) -> tuple[Request, Settings]:
    """Raises UsageError, ManifestError."""
    scheme = to.target.partition("://")[0] if "://" in to.target else "file"
    if scheme == "s3":
        ModelUri.parse(to.target)
    elif scheme != "file":
        raise UsageError(
            f"--to cannot be {scheme}://…",
            hint="Give s3://bucket, with AWS_ENDPOINT_URL for what is not AWS, or a directory.",
        )
    request, settings = ask(options)
    check_mirrored(request.uris)
    # a comparison fetches nothing: what the store has not is compared by what its source promises
    return replace(request, mirror=to, dry_run=request.dry_run or to.check), settings


command = Command(
    "mirror",
    callback=mirror,
    params=[
        *(param for param in download.params if param.name != "layout"),
        click.Option(["--to"], required=True, metavar="s3://BUCKET|DIR", help="Where the mirror is."),
        click.Option(
            ["--check"],
            is_flag=True,
            help="Compare and send nothing: by the checksums that S3 keeps, else by reading back. "
            "Exit 33: differs.",
        ),
        click.Option(
            ["--s3-addressing"],
            type=OneOf(["auto", "virtual", "path"]),
            default="auto",
            show_default=True,
            help="Bucket before the host's name, or in the path.",
        ),
    ],
    help=mirror.__doc__,
    examples=(
        "nimpull mirror hf://sentence-transformers/all-MiniLM-L6-v2 --store ./store --to ./mirror",
        "nimpull mirror --manifest model_manifest.yaml --all --store ./store --to s3://models",
        "nimpull mirror --manifest model_manifest.yaml --all --store ./store --to s3://models --check",
    ),
    exits=tuple(EXIT_CODES),
)
