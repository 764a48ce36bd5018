"""A command as a program of its own: a command line that cannot be understood is a failure like others."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click


def run_program(command: click.Command, arguments: Sequence[str], name: str = "") -> None:
    """Ends the process. ``name`` "" = what it was called as.

    A wrong command line ends with the usual line and termination message: of the operator's Jobs for the
    Hub, kubelet shows nothing else.
    """
    try:
        code = command.main(
            args=list(arguments),
            prog_name=name or Path(sys.argv[0]).name,
            standalone_mode=False,
            help_option_names=["-h", "--help"],
        )
    except click.UsageError as refused:
        from nimpull.cli.running import fail_unasked
        from nimpull.errors import UsageError

        hint = ""
        if refused.ctx:
            click.echo(refused.ctx.get_usage(), err=True)
            hint = f"See {refused.ctx.command_path} --help."
        code = fail_unasked(UsageError(refused.format_message(), hint=hint))
    except BrokenPipeError:  # the reader of stdout has gone, as "head" does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def spread(arguments: Sequence[str], names: Sequence[str]) -> list[str]:
    """``--profiles A B C`` as ``--profiles A --profiles B --profiles C``: argparse's ``nargs="*"``."""
    spread_out: list[str] = []
    current = ""
    for argument in arguments:
        name = argument.partition("=")[0]
        if argument.startswith("-"):
            current = name if name in names and "=" not in argument else ""
            if not current:
                spread_out.append(argument)
        elif current:
            spread_out += [current, argument]
        else:
            spread_out.append(argument)
    return spread_out


class DownloadOnly(click.Group):
    """huggingface-cli and hf have many commands; those that are not here are told as such."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known: tuple[str | None, click.Command | None, list[str]]
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            ctx.fail(f"there is no “{args[0]}” here: of {ctx.command_path}, nimpull offers only “download”")
        known = super().resolve_command(ctx, args)
        return known
