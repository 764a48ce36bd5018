"""The ``nimpull`` command group."""

from __future__ import annotations

import click


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="nimpull")
def cli() -> None:
    """Pull the right NIM model profile onto a volume: whole, verified, resumable."""
