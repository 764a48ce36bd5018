"""``nimpull fits``: whether a published NIM runs on these machines, before its image is pulled."""

from __future__ import annotations

import click

from nimpull.cli.options import gpus_option, place_option
from nimpull.cli.program import Command, OneOf
from nimpull.cli.running import quiet_edges
from nimpull.core.fits_table import FitTable, Machine, closing, nothing_known, render_json, render_text
from nimpull.core.names import Url
from nimpull.core.published_profiles import parse_resource
from nimpull.core.request import Request
from nimpull.settings import from_process


@click.command(
    "fits",
    cls=Command,
    examples=(
        "nimpull fits nim/meta/llama-3.3-70b-instruct:1.8.5 --gpu H100:8 --gpu L40S:4",
        "nimpull fits nvcr.io/nim/meta/llama-3.1-8b-instruct:1.8.5 --explain",
    ),
    exits=(2, 22, 30),
)
@click.argument("nim", metavar="IMAGE|RESOURCE")
@gpus_option("A machine type, in place of this one; repeatable: a column each.", multiple=True)
@click.option("--explain", is_flag=True, help="Say of each profile why it fits, or why not.")
@click.option("-o", "--output", type=OneOf(("table", "json")), default="table", show_default=True)
@place_option("--html", help="Write a page: what runs on which machine; - = stdout.")
def fits(nim: str, gpus: tuple[str, ...], explain: bool, output: str, html: str) -> None:
    """Ask NIM's metadata service, without a key, which profiles of a NIM run on which machines.

    What the service does not know or does not say is unknown, never "no".
    """
    resource, tag = parse_resource(nim)
    settings = from_process()
    from nimpull.detect import hardware_of, shipped_table
    from nimpull.sources.nim_metadata import NimMetadata

    devices = shipped_table()
    named = gpus or tuple(filter(None, (settings.gpus,))) or ("",)
    machines = [Machine(each or "here", hardware_of(each, devices)) for each in named]
    machines = [machine for machine in machines if machine.hardware.gpus]  # there may be none here
    with quiet_edges(Request(store=""), settings) as edges:
        published = NimMetadata(edges.api, Url(settings.ngc_api)).profiles(resource, tag)
    table = FitTable.of(f"{resource}:{tag}", machines, published, devices)
    if html:
        show_page(table, html)
        return
    click.echo(render_json(table) if output == "json" else render_text(table, explain=explain), nl=False)


def show_page(table: FitTable, path: str) -> None:
    """Raises UsageError where the libraries are not installed, OutputError."""
    from nimpull.cli.report import load_pictures, write_page

    pictures = load_pictures()
    published = table.profiles or ()
    columns = {
        machine.name: [
            (each.profile, row[place]) for each, row in zip(published, table.verdicts, strict=True)
        ]
        for place, machine in enumerate(table.machines)
    }
    best = {place for each in range(len(table.machines)) if (place := table.best(each)) is not None}
    matrix = pictures.matrix_of(columns, chosen=[published[place].profile.id for place in best])
    notes = closing(table) if published else [f"It is {nothing_known(table)}"]
    write_page(path, pictures.matrix_page(matrix, f"Profiles of {table.nim}", notes))
