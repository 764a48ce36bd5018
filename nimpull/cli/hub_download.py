"""``huggingface-cli`` and ``hf``: their ``download``, with the options that either has had.

The lists are those of huggingface_hub 0.34 and 2.4, see its guide to the CLI.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from functools import partial
from typing import Final

import click

from nimpull.cli.options import placed
from nimpull.cli.program import Command, DownloadOnly, repeat_options
from nimpull.cli.running import Output, execute
from nimpull.core.artifacts import Wanted
from nimpull.core.names import ModelUri, display
from nimpull.core.request import LayoutKind, Request
from nimpull.errors import EXIT_CODES, UsageError
from nimpull.settings import MOST_CONNECTIONS, Settings, from_process

_ignored: Final = partial(click.option, expose_value=False)
_WORKERS: Final = click.IntRange(1, MOST_CONNECTIONS, clamp=True)
#: hf's URI of something inside a repository, ``hf://[datasets/]namespace/name[@revision]/path``.
_INSIDE: Final = re.compile(
    r"(?P<repo>hf://(?:datasets/|models/)?(?!datasets/|models/|spaces/)[^/@:?]+/[^/@:?]+"
    r"(?:@(?:refs/(?:pr|convert)/)?[^/?]+)?)/(?P<path>[^?]+)"
)


class HubDownload(Command):
    """After ``--include`` huggingface-cli takes several patterns, hf one: several, unless one of them must be
    the REPO_ID."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        several = repeat_options(args, ("--include", "--exclude"))
        # A trial run on a copy: click parses once, and by then it is known which reading leaves a REPO_ID.
        looked = click.Context(self, parent=ctx.parent, resilient_parsing=True)
        super().parse_args(looked, list(several))
        return super().parse_args(ctx, several if looked.params.get("repo_id") else args)


_EXAMPLES: Final = (
    "huggingface-cli download sentence-transformers/all-MiniLM-L6-v2 --local-dir ./model",
    "huggingface-cli download hf://datasets/rajpurkar/squad --include 'plain_text/*'",
)


@click.group("huggingface-cli", cls=DownloadOnly, no_args_is_help=False, examples=_EXAMPLES)
def hugging_face() -> None:
    """Has download as huggingface-cli and hf offer it. The other commands are not here: this is nimpull."""


@hugging_face.command(
    "download",
    cls=HubDownload,
    may_be_empty=("token",),
    examples=_EXAMPLES,
    exits=tuple(EXIT_CODES),
)
@click.argument("repo_id")
@click.argument("filenames", nargs=-1)
@click.option("--repo-type", "--type", "repo_type", type=click.Choice(["model", "dataset"]))
@click.option("--revision")
@click.option("--include", multiple=True)
@click.option("--exclude", multiple=True)
@click.option("--cache-dir")
@click.option("--local-dir")
@click.option("--token", default="", help="Better in HF_TOKEN: an argument shows in the process list.")
@click.option("--dry-run/--no-dry-run", default=False)
@click.option("--force-download/--no-force-download", default=False, help="Ask the Hub again.")
@click.option("-q", "--quiet", is_flag=True)
@click.option("--json", "as_json", is_flag=True, help="The report, as JSON on stdout.")
@click.option("--max-workers", type=_WORKERS, help="At most so many connections.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["auto", "human", "agent", "json", "quiet"]),
    help="json and quiet are --json and --quiet, the others one.",
)
@_ignored("--local-dir-use-symlinks", help="Accepted and ignored, as in huggingface-cli.")
@_ignored("--resume-download", is_flag=True, help="Accepted; nimpull always resumes.")
@_ignored("--no-truncate", is_flag=True, help="Accepted and ignored.")
def hub_download(
    repo_id: str,
    filenames: tuple[str, ...],
    repo_type: str | None,
    revision: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    cache_dir: str | None,
    local_dir: str | None,
    token: str,
    dry_run: bool,
    force_download: bool,
    quiet: bool,
    as_json: bool,
    max_workers: int | None,
    form: str | None,
) -> int:
    """Download a repository, or some files of it, from the Hub or a DataStore (HF_ENDPOINT)."""
    as_json = as_json or form == "json"

    def ask() -> tuple[Request, Settings]:
        if cache_dir and local_dir:
            raise UsageError("--cache-dir and --local-dir do not go together", hint="Give one of them.")
        settings = from_process(lambda _: {"HF_TOKEN": token} if token else {})
        # the mirror is NIM's: this command does not know it
        settings = replace(settings, connections=max_workers or settings.connections, repository_override="")
        uri, inside = repository(repo_id, repo_type, revision)
        hub = os.path.abspath(cache_dir or settings.hub_cache)
        request = Request(
            store=os.path.abspath(local_dir) if local_dir else os.path.dirname(hub),
            uris=(uri,),
            wanted=wanted((*inside, *filenames), include, exclude),
            layout=LayoutKind.LOCAL_DIR if local_dir else LayoutKind.CACHE,
            hub="" if local_dir else os.path.basename(hub),
            dry_run=dry_run,
            refresh=force_download,
            offline="HF_HUB_OFFLINE" if settings.hf_offline else "",
        )
        return (placed(request, settings) if local_dir else request), settings

    progress = "quiet" if quiet or form == "quiet" else "auto"
    output = Output(as_json, progress=progress, closing=True, answer=True)
    return execute(ask, output, store="" if dry_run else local_dir or "")


def wanted(names: tuple[str, ...], include: tuple[str, ...], exclude: tuple[str, ...]) -> Wanted:
    """A name that ends in "/" is all that is below it."""
    # As hf reads "download REPO folder/".
    folders = tuple(f"{name}**" for name in names if name.endswith("/"))
    files = frozenset(name for name in names if not name.endswith("/"))
    return Wanted(files, (*include, *folders), exclude)


def repository(repo_id: str, repo_type: str | None, revision: str | None) -> tuple[ModelUri, tuple[str, ...]]:
    """The repository, and the file of it that an hf:// URI names. Raises UsageError."""
    if not repo_id.startswith("hf://"):
        kind = "datasets/" if repo_type == "dataset" else ""
        uri = ModelUri.parse(f"hf://{kind}{repo_id}")
        return (uri.with_revision(revision) if revision else uri), ()
    if repo_type or revision:
        raise UsageError(
            f"--repo-type and --revision do not go with {display(repo_id, 200)}",
            hint="The URI says both: hf://datasets/namespace/name@revision.",
        )
    inside = _INSIDE.fullmatch(repo_id)
    if inside:
        return ModelUri.parse(inside["repo"]), (inside["path"],)
    return ModelUri.parse(repo_id), ()
