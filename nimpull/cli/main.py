"""The ``nimpull`` command group. Commands are imported when run: ``--help`` stays as fast as click."""

from __future__ import annotations

from importlib import import_module
from typing import Final

import click

from nimpull.cli.program import Command, CommandGroup

#: name -> (module of this package, attribute, one line for ``nimpull --help``)
COMMANDS: Final = {
    "download": ("download", "download", "Pull models or manifest profiles into a store."),
    "mirror": ("mirror", "command", "Fill a bucket or a directory that others pull from."),
    "gpus": ("gpus", "show_gpus", "Show the GPUs that profiles are chosen for."),
    "list-profiles": (
        "list_profiles",
        "list_profiles",
        "List a manifest's profiles: what runs here, and why not.",
    ),
    "fits": ("fits", "fits", "Ask whether a NIM runs on some machine, before its image is pulled."),
    "manifest": ("nim", "manifest", "Print the model manifest that this image carries."),
    "verify": ("store_commands", "verify", "Hash every file of a store again."),
    "report": ("report", "report", "What a pull did, in words or as a page to look at."),
    "status": ("store_commands", "status", "What is in a store, and what is half done."),
    "prune": ("store_commands", "prune", "What nobody needs in a store, and remove it."),
    "doctor": ("doctor", "doctor", "What would go wrong here, before anything is pulled."),
    "completion": ("completion", "completion", "Make bash, zsh or fish complete nimpull."),
    "help": ("main", "show_help", "Show the help of a command."),
}


class LazyGroup(CommandGroup):
    """Loads a command on first use, as click's documentation shows ("Lazily Loading Subcommands")."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(import_module(f"nimpull.cli.{module}"), attribute)
        assert isinstance(command, click.Command)  # noqa: S101 - the table above is ours
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    subcommand_metavar="[COMMAND] [ARGS]...",
    examples=(
        "nimpull download hf://sentence-transformers/all-MiniLM-L6-v2 --store ./store",
        "nimpull help download",
    ),
)
@click.version_option(package_name="nimpull")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Pull the right NIM model profile onto a volume: whole, verified, resumable."""
    if ctx.invoked_subcommand is None:
        ctx.exit(bare_start(ctx))


@click.command("help", cls=Command, examples=("nimpull help", "nimpull help download"), exits=(2,))
@click.argument("command", required=False)
@click.pass_context
def show_help(ctx: click.Context, command: str | None) -> None:
    """Show the help of a command, or of nimpull."""
    root = ctx.find_root()
    if command is None:
        click.echo(root.get_help())
        return
    _, found, _ = cli.resolve_command(root, [command])
    assert found is not None  # noqa: S101 - resolve_command refuses what is not there
    with click.Context(found, info_name=command, parent=root) as below:
        click.echo(below.get_help())


def bare_start(ctx: click.Context) -> int:
    """Without a command: what NIM_ENGINE_MODEL_DOWNLOAD_ONLY asks for, else the help and exit 2."""
    from nimpull.settings import download_only_is_set

    if download_only_is_set():
        from nimpull.cli.nim import start

        return start()
    click.echo(ctx.get_help(), err=True)
    return 2
