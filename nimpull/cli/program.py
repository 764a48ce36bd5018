"""What all commands have in common: how they refuse, what their help ends with, the code they exit with."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from nimpull.core.names import did_you_mean
from nimpull.errors import EXIT_CODES, LimitError, NimpullError, OutputError, UsageError
from nimpull.settings import is_ascii_only

#: What people write for an option of nimpull, and what it is: other tools have it.
_ELSEWHERE: Final = {
    "--token": "put the token into HF_TOKEN: arguments show in the process list",
    "--api-key": "put the key into NGC_API_KEY: arguments show in the process list",
    "--local-dir": "use --store DIR --layout local-dir",
    "--cache-dir": "use --store DIR",
    "--revision": "it is part of the URI: hf://namespace/name@revision, ngc://org/team/model:version",
    "--quiet": "use -q",
    "--verbose": "use -v",
}


#: What other tools call it.
_OTHER_WORDS: Final = {
    **dict.fromkeys(("pull", "get", "fetch", "install", "cp"), "download"),
    **dict.fromkeys(("ls", "list", "profiles", "list-model-profiles"), "list-profiles"),
    **dict.fromkeys(("rm", "gc", "clean", "remove", "delete"), "prune"),
    **dict.fromkeys(("check", "repair", "fsck"), "verify"),
    **dict.fromkeys(("info", "ps", "watch", "du"), "status"),
    "gpu": "gpus",
}


class HelpEpilog(click.Command):
    """``examples``: command lines for the end of the help; ``exits``: the exit codes beside 0."""

    def __init__(
        self, *args: Any, examples: Sequence[str] = (), exits: Sequence[int] = (), **rest: Any
    ) -> None:
        super().__init__(*args, **rest)
        self.examples = tuple(examples)
        self.exits = tuple(exits)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"  {example}\n")  # in one line, to be copied
        if self.exits:
            with formatter.section("Exit codes"):
                known = [f"{code}\xa0{EXIT_CODES[code]}" for code in self.exits]
                text = ", ".join(["0\xa0done", *known]) + " (docs/errors.md)."
                lines = textwrap.wrap(text, formatter.width - 2, break_on_hyphens=False)
                formatter.write("".join(f"  {line}\n" for line in lines).replace("\xa0", " "))


class Command(HelpEpilog):
    """A callback returns its exit code, None = 0, and may raise NimpullError.

    ``may_be_empty``: parameters that "" is a value of; ``several``: options that take several values at once.
    """

    def __init__(
        self, *args: Any, may_be_empty: Sequence[str] = (), several: Sequence[str] = (), **rest: Any
    ) -> None:
        super().__init__(*args, **rest)
        self.may_be_empty = frozenset(may_be_empty)
        self.several = tuple(several)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, repeat_options(args, self.several))
        for param in () if ctx.resilient_parsing else self.params:
            name = param.name or ""
            if ctx.get_parameter_source(name) is not ParameterSource.COMMANDLINE or name in self.may_be_empty:
                continue
            if (value := ctx.params[name]) == "" or (isinstance(value, tuple) and "" in value):
                # --store "$UNSET" must not mean the default
                raise click.BadParameter("it is empty; is a variable not set that should be?", ctx, param)
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        try:
            ctx.exit(super().invoke(ctx) or 0)
        except NimpullError as error:
            from nimpull.cli.running import fail

            ctx.exit(fail(error))


class CommandGroup(HelpEpilog, click.Group):
    """Commands that are not there are told with the nearest that are."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            ctx.fail(self.no_command(ctx, args[0]))
        resolved: tuple[str | None, click.Command | None, list[str]] = super().resolve_command(ctx, args)
        return resolved

    def no_command(self, ctx: click.Context, name: str) -> str:
        if "://" in name:
            return f"there is no command “{name}”. Did you mean “{ctx.command_path} download {name}”?"
        if name in _OTHER_WORDS:
            return f"there is no command “{name}”. Did you mean “{_OTHER_WORDS[name]}”?"
        return f"there is no command “{name}”. {did_you_mean(name, self.list_commands(ctx))}".rstrip()


class DownloadOnly(CommandGroup):
    """huggingface-cli and hf have many commands; those that are not here are told as such."""

    def no_command(self, ctx: click.Context, name: str) -> str:
        return f"there is no “{name}” here: of {ctx.command_path}, nimpull offers only “download”"


class OneOf(click.Choice[str]):
    """A choice that says which of its values was meant."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:  # noqa: ARG002
        meant = did_you_mean(str(value), self.choices)
        return f"“{value}” is none of {', '.join(self.choices)}. {meant}".rstrip()


def run_program(command: click.Command, arguments: Sequence[str], name: str = "") -> None:
    """Ends the process. ``name`` "" = what it was called as.

    A wrong command line ends with the usual line and termination message: of the operator's Jobs for the
    Hub, kubelet shows nothing else.
    """
    from nimpull.cli.running import fail, fail_unasked

    # Before click prints anything, its help included.
    if is_ascii_only():
        from nimpull.progress.stream import use_ascii

        use_ascii(sys.stdout, sys.stderr)
    try:
        code = command.main(
            args=list(arguments),
            prog_name=name or Path(sys.argv[0]).name,
            standalone_mode=False,
            help_option_names=["-h", "--help"],
        )
        sys.stdout.flush()
    except click.UsageError as refused:
        code = _refused(refused)
    except BrokenPipeError:  # the reader of stdout has gone, as "head" does
        code = 1
        _silence_stdout()
    except (OSError, MemoryError, RuntimeError, ImportError) as error:
        if limit := LimitError.of(error):
            code = fail_unasked(limit)
        elif isinstance(error, OSError) and _stdout_fails():
            _silence_stdout()
            code = fail(OutputError.of("the output", error))
        else:
            raise
    sys.exit(code)


def _refused(refused: click.UsageError) -> int:
    from nimpull.cli.running import fail_unasked

    message, hints = " ".join(refused.format_message().split()), []
    if isinstance(refused, click.NoSuchOption):
        message = f"there is no option {refused.option_name}"
        if elsewhere := _ELSEWHERE.get(refused.option_name):
            hints.append(f"{elsewhere[0].upper()}{elsewhere[1:]}.")
        elif refused.possibilities:
            hints.append(f"Did you mean {' or '.join(refused.possibilities[:3])}?")
    if refused.ctx:
        click.echo(refused.ctx.get_usage(), err=True)
        hints.append(f"See {refused.ctx.command_path} --help.")
    return fail_unasked(UsageError(message, hint=" ".join(hints)))


def _silence_stdout() -> None:
    """What could not be written stays in Python's buffer: the interpreter would fail over it at its end."""
    # In place of the descriptor, not of the object: the interpreter flushes sys.stdout at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stdout_fails() -> bool:
    """Whether an OSError came from stdout: if so, one more character cannot be written either."""
    try:
        os.write(sys.stdout.fileno(), b"\n")
    except OSError:
        return True
    return False


def repeat_options(arguments: Sequence[str], names: Sequence[str]) -> list[str]:
    """``--profiles A B C`` as ``--profiles A --profiles B --profiles C``: argparse's ``nargs="*"``."""
    repeated: list[str] = []
    current = ""
    for argument in arguments:
        name = argument.partition("=")[0]
        if argument.startswith("-"):
            current = name if name in names and "=" not in argument else ""
            if not current:
                repeated.append(argument)
        elif current:
            repeated += [current, argument]
        else:
            repeated.append(argument)
    return repeated
