"""``nimpull completion SHELL``, and what a shell is offered for options whose values can be known."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator

import click
from click.shell_completion import CompletionItem, get_completion_class

from nimpull.cli.program import Command, OneOf
from nimpull.core.manifest import Profile, parse_manifest
from nimpull.core.names import STATE_DIRECTORY
from nimpull.core.preference import engine, profile_name
from nimpull.errors import NimpullError
from nimpull.settings import from_process

#: Where each shell reads it at its start; zsh and fish know completion files by their place.
_PLACES = {
    "bash": "~/.bashrc",
    "zsh": "~/.zshrc, after compinit",
    "fish": "~/.config/fish/completions/nimpull.fish",
}


@click.command(
    cls=Command,
    examples=(
        "source <(nimpull completion bash)",
        "nimpull completion fish > ~/.config/fish/completions/nimpull.fish",
    ),
    exits=(2,),
)
@click.argument("shell", type=OneOf(list(_PLACES)))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what makes a shell complete nimpull's commands, options, profiles and GPUs."""
    made = get_completion_class(shell)
    assert made is not None  # noqa: S101 - click has these three
    click.echo(f"# for {_PLACES[shell]}")
    click.echo(made(ctx.find_root().command, {}, "nimpull", "_NIMPULL_COMPLETE").source())


def stores(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Directories that nimpull has written to; where there is none, the shell's own completion."""
    pattern = f"{glob.escape(incomplete)}*/{STATE_DIRECTORY}/"
    known = sorted(os.path.dirname(each[:-1]) for each in glob.glob(pattern, include_hidden=True))
    return [CompletionItem(each) for each in known] or [CompletionItem(incomplete, type="dir")]


def gpus(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The last of a list that is separated by commas."""
    from nimpull.detect import shipped_table

    before, comma, last = incomplete.rpartition(",")
    names = (name for name in shipped_table().families if name.startswith(last.upper()))
    return [CompletionItem(f"{before}{comma}{name}") for name in names]


def profiles(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [
        CompletionItem(name, help=profile.id[:12])
        for profile in _profiles(ctx)
        for name in (profile_name(profile), profile.id)
        if name.startswith(incomplete) and (incomplete or name != profile.id)
    ]


def tags(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Of --engine, --precision, --tp and --qos: the values that the manifest has."""
    tag = {"tensor_parallelism": "tp", "qos": "profile"}.get(param.name or "", param.name or "")
    values = {engine(each) if tag == "engine" else each.tags.get(tag, "") for each in _profiles(ctx)}
    return [CompletionItem(value) for value in sorted(values) if value and value.startswith(incomplete)]


def _profiles(ctx: click.Context) -> Iterator[Profile]:
    """None where no manifest can be read: a shell that completes must not be told so."""
    from nimpull.cli.options import find_manifest  # it has the options that complete by this

    try:
        yield from parse_manifest(
            find_manifest(ctx.params.get("manifest_file") or "", from_process())
        ).profiles
    except NimpullError:
        return
