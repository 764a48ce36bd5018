"""``nimpull list-profiles``, and the container's own ``list-model-profiles``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import click

from nimpull.cli.options import (
    MANIFEST,
    STORE,
    choosing,
    find_manifest,
    gpus_option,
    place_option,
    placed,
    store_path,
)
from nimpull.cli.output import wrapped_for_terminal
from nimpull.cli.program import Command, OneOf
from nimpull.cli.running import quiet_edges
from nimpull.core.artifacts import Artifact, Listing
from nimpull.core.criteria import Criteria
from nimpull.core.fit import Fitter, Verdict
from nimpull.core.hardware import DeviceTable, Hardware, named_hardware
from nimpull.core.manifest import Manifest, Profile, parse_manifest
from nimpull.core.names import ModelUri, display
from nimpull.core.nim_listing import render as render_as_nim
from nimpull.core.plan import completed, distinct, needs_of, resolved
from nimpull.core.preference import has_lora, is_buildable
from nimpull.core.profile_table import FORMATS, ProfileList, render
from nimpull.core.request import Request
from nimpull.core.selection import best, differences, named, nothing_asked_for
from nimpull.core.sizes import Sizes
from nimpull.core.units import show_bytes, show_counts
from nimpull.errors import (
    ManifestError,
    NimpullError,
    NoProfileError,
    SourceError,
    StoreError,
    TransferError,
    UsageError,
)
from nimpull.settings import Settings, from_process

Judged = tuple[tuple[Profile, Verdict], ...]


def judge(profiles: Sequence[Profile], hardware: Hardware, table: DeviceTable) -> Judged:
    fitter = Fitter(hardware, table)
    return tuple((profile, fitter.verdict(profile)) for profile in profiles)


def look(manifest_file: str, gpus: str, settings: Settings) -> tuple[Manifest, Hardware, Judged]:
    """The manifest, this machine's GPUs (or those named), and what fits. Raises UsageError, ManifestError."""
    from nimpull.detect import hardware_of, shipped_table

    manifest = parse_manifest(find_manifest(manifest_file, settings), unsafe=settings.unsafe_manifest)
    table = shipped_table()
    hardware = hardware_of(gpus or settings.gpus, table)
    return manifest, hardware, judge(manifest.profiles, hardware, table)


@click.command(
    "list-profiles",
    cls=Command,
    examples=(
        "nimpull list-profiles --manifest model_manifest.yaml --gpu H100:8 --explain",
        "nimpull list-profiles --manifest model_manifest.yaml --precision fp8 -o ids",
    ),
    exits=(2, 10, 11),
)
@MANIFEST
@gpus_option("Answer for these GPUs, not this machine's.")
@choosing
@click.option("--lora/--no-lora", default=None, help="Only with, or only without, LoRA.")
@click.option("--buildable/--no-buildable", default=None, help="Only if built on the node, or only if not.")
@click.option(
    "--explain", is_flag=True, help="Say of each profile why it fits, or what would have to change."
)
@click.option(
    "--sizes",
    "with_sizes",
    is_flag=True,
    help="Ask the registry how large the profiles are, and what of them --store has.",
)
@STORE
@click.option("-o", "--output", type=OneOf(FORMATS), default="table", show_default=True)
@place_option("--html", help="Write a page: what runs on which hardware; - = stdout.")
def list_profiles(
    manifest_file: str | None,
    gpus: str,
    profiles: tuple[str, ...],
    engine: str,
    precision: str,
    tensor_parallelism: str,
    qos: str,
    lora: bool | None,
    buildable: bool | None,
    explain: bool,
    with_sizes: bool,
    store: str | None,
    output: str,
    html: str,
) -> None:
    """List the profiles of a model manifest: what runs on these GPUs, what does not, and why."""
    settings = from_process()
    manifest, hardware, judged = look(manifest_file or "", gpus, settings)
    asked = Criteria(engine=engine, precision=precision, tensor_parallelism=tensor_parallelism, qos=qos)
    kept = {id(profile) for profile in (named(manifest, profiles) if profiles else manifest.profiles)}
    shown = tuple(
        (profile, verdict)
        for profile, verdict in judged
        if id(profile) in kept
        and not differences(profile, asked)
        and lora in (None, has_lora(profile))
        and buildable in (None, is_buildable(profile))
    )
    if manifest.profiles and not shown:  # filters cannot be meant that leave nothing
        asked = replace(asked, lora=lora, buildable=buildable)
        raise nothing_asked_for(manifest, asked)
    sizes = None
    if with_sizes and output != "ids":  # which show none
        sizes = ask_sizes([profile for profile, _ in shown], store_path(store, settings), settings)
    listing = ProfileList(manifest, hardware, shown, best_id(judged), sizes)
    if html:
        show_page(listing, html)
        return
    text = render(listing, output, explain=explain)
    click.echo(wrapped_for_terminal(text) if output in ("table", "wide") else text, nl=False)


def show_page(listing: ProfileList, path: str) -> None:
    """``listing`` for its own hardware and for eight of each GPU that the manifest names."""
    from nimpull.cli.report import load_pictures, write_page
    from nimpull.detect import shipped_table

    pictures, table = load_pictures(), shipped_table()
    profiles = [profile for profile, _ in listing.judged]
    columns = {headline(listing.hardware): listing.judged} if listing.hardware.gpus else {}
    for device in sorted({profile.tags.get("gpu", "") for profile in profiles} - {""}):
        try:
            hardware = named_hardware(f"{device}:8", table)
        except UsageError:  # a family that the table does not know
            continue
        # This machine may be one of them: its own column stays.
        columns.setdefault(headline(hardware), judge(profiles, hardware, table))
    columns = columns or {headline(listing.hardware): listing.judged}
    models = sorted({display(profile.model, 200) for profile in profiles if profile.model})
    page = pictures.matrix_page(
        pictures.matrix_of(columns, chosen=(listing.best,), notes=size_notes(listing)),
        f"Profiles of {', '.join(models) or 'the manifest'}",
        (*listing.hardware.notes, *listing.manifest.notes),
    )
    write_page(path, page)


def headline(hardware: Hardware) -> str:
    """``8x H100``."""
    names = (gpu.product.removeprefix("NVIDIA ") or gpu.device_id for gpu in hardware.gpus)
    return show_counts(names) or "no GPU"


def size_notes(listing: ProfileList) -> dict[str, str]:
    """What is known of the size of each profile, by id."""
    if listing.sizes is None:
        return {}
    sizes = {profile.id: listing.sizes.of_one(profile).total for profile, _ in listing.judged}
    return {each: show_bytes(size) for each, size in sizes.items() if size is not None}


def best_id(judged: Judged) -> str:
    """What a download without criteria takes; "" where nothing fits: an answer here, not an error."""
    try:
        return best(judged).id
    except NoProfileError:
        return ""


# -- sizes -----------------------------------------------------------------------------------------------


def ask_sizes(profiles: Sequence[Profile], store: str, settings: Settings) -> Sizes:
    """What cannot be had is a note, not an error: the profiles can be listed without. Raises Cancelled."""
    causes: list[NimpullError] = []
    readable = _readable(profiles, causes)
    needs = needs_of(readable)
    listings: dict[ModelUri, Listing] = {}
    with quiet_edges(placed(Request(store=store, dry_run=True), settings), settings) as edges:
        for uri, wanted in needs.repositories.items():
            try:
                listings[uri] = edges.list(uri, wanted, {})
            except (SourceError, UsageError) as error:  # this repository; another may answer
                causes.append(error)
            except TransferError as error:  # the way there: every other would wait as long for the same
                causes.append(error)
                break
        missing: list[Artifact] | None = None
        try:
            promised, volume = resolved(needs.promised, listings), edges.volume
            # With the manifest's digests, as a pull has them: the store is asked for the same files.
            complete = [
                completed(each, promised, edges.registries.endpoint(uri)) for uri, each in listings.items()
            ]
            layout = volume.places({}).first
            missing = [each for each in distinct(complete) if not (volume.exists and layout.committed(each))]
        except StoreError as error:
            causes.append(error)
    return Sizes.of(readable, listings, missing, _note(causes))


def _readable(profiles: Sequence[Profile], causes: list[NimpullError]) -> tuple[Profile, ...]:
    """Those whose files all have a source; ``causes`` gets what is wrong with the others."""
    readable = []
    for profile in profiles:
        try:
            needs_of((profile,))
        except ManifestError as error:
            causes.append(error)
        else:
            readable.append(profile)
    return tuple(readable)


def _note(causes: Sequence[NimpullError]) -> str:
    if not causes:
        return ""
    first = causes[0]
    more = f" (and {len(causes) - 1} more)" if len(causes) > 1 else ""
    return f"Some sizes are unknown: {first.reference}: {first.message}{more}. {first.hint}".strip()


# -- the container's own command ------------------------------------------------------------------------


@click.command(
    "list-model-profiles",
    cls=Command,
    examples=("list-model-profiles", "list-model-profiles -m model_manifest.yaml"),
    exits=(2, 10),
)
@click.option("-m", "--manifest-file", metavar="FILE", help="Model manifest [NIM_MANIFEST_PATH].")
def list_model_profiles(manifest_file: str | None) -> None:
    """List the profiles of the model manifest as NIM containers do. Exit 0 even if nothing runs here."""
    _, hardware, judged = look(manifest_file or "", "", from_process())
    click.echo(render_as_nim(judged, hardware), nl=False)
