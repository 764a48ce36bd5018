"""What a NIM container offers, as translations of arguments into one Request.

``download-to-cache``, ``create-model-store``, ``check-cache-env``, ``nimpull manifest`` and a start without a
command: what the NIM Operator's Jobs call. Spellings are those seen in the wild: NVIDIA's documentation of
NIMs ("Utilities"), the operator's source.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace

import click

from nimpull.cli.options import MANIFEST, SERVING_HUB, criteria, find_manifest, is_served, model_of, placed
from nimpull.cli.program import Command
from nimpull.cli.running import execute
from nimpull.core.criteria import Criteria
from nimpull.core.manifest import parse_manifest
from nimpull.core.names import display
from nimpull.core.request import LayoutKind, Request
from nimpull.core.selection import named
from nimpull.errors import EXIT_CODES, ManifestError, NoProfileError, NotWritableError, UsageError
from nimpull.settings import DEFAULT_CACHE, Settings, cache_path, from_process, native_path

# -- download-to-cache ---------------------------------------------------------------------------------


@click.command(
    "download-to-cache",
    cls=Command,
    examples=(
        "download-to-cache --profiles 4e869579b1c2 ff67ce6fad2c",
        "download-to-cache --model-uri hf://sentence-transformers/all-MiniLM-L6-v2",
    ),
    exits=tuple(EXIT_CODES),
    several=("-p", "--profile", "--profiles"),
)
@click.option(
    "-p",
    "--profile",
    "--profiles",
    "profiles",
    multiple=True,
    metavar="ID...",
    help="Ids, beginnings of them, or names.",
)
@click.option("--all", "everything", is_flag=True, help="Every profile of the manifest.")
@click.option("--lora", is_flag=True, help="The best profile with LoRA.")
@click.option("--model-uri", metavar="URI", help="Model-free: hf://namespace/name[:revision].")
@click.option(
    "-m",
    "--manifest-file",
    metavar="FILE",
    help="The model manifest [NIM_MANIFEST_PATH]. With --model-uri: where its runtime manifest goes.",
)
def download_to_cache(
    profiles: tuple[str, ...], everything: bool, lora: bool, model_uri: str | None, manifest_file: str | None
) -> int:
    """Download profiles into the NIM cache: those named, all, or the one that fits these GPUs best."""

    def ask() -> tuple[Request, Settings]:
        settings = from_process()
        store = settings.cache_path or DEFAULT_CACHE
        if model_uri:
            if profiles or everything or lora:
                raise UsageError("--model-uri goes without profiles", hint="A model-free pull has none.")
            uri = model_of(model_uri, settings)
            request = Request(store=store, uris=(uri,), runtime_manifest=manifest_file or "")
        elif lora and (profiles or everything):
            raise UsageError(
                "--lora goes without --profiles and --all",
                hint="It takes the best profile with LoRA by itself.",
            )
        else:
            wanted = Criteria(profiles=profiles, all=everything, lora=True if lora else None, best_only=lora)
            asked = criteria(settings, wanted)
            manifest = find_manifest(manifest_file or "", settings)
            # In the words of the container's tool, before the job refuses them in its own.
            print_unknown(manifest, asked.profiles)
            request = Request(store=store, manifest=manifest, criteria=asked, gpus=settings.gpus)
        request = replace(
            placed(request, settings),
            offline=settings.offline,
            ignore_failure=settings.ignore_download_failure,
        )
        return request, settings

    return execute(ask, store=cache_path() or DEFAULT_CACHE)


def print_unknown(manifest: bytes, names: Sequence[str]) -> None:
    """NIM's own lines about profiles that the manifest lacks: scripts look for them. The job refuses them."""
    try:
        # Once more than the job does, because these lines come before its own.
        parsed = parse_manifest(manifest)
    except ManifestError:
        return  # the job says so, in its report
    unknown = []
    for name in names:
        try:
            if name != "all":
                named(parsed, (name,))
        except NoProfileError:
            unknown.append(name)
    if unknown:
        click.echo("Error: Not all of the provided profiles are supported.", err=True)
        click.echo(f"Unknown profiles provided: {as_set(unknown)}", err=True)
        click.echo(f"All valid profiles: {as_set(profile.id for profile in parsed.profiles)}", err=True)


def as_set(names: Iterable[str]) -> str:
    return "{" + ", ".join(f"'{display(name)}'" for name in names) + "}"


# -- create-model-store --------------------------------------------------------------------------------


@click.command(
    "create-model-store",
    cls=Command,
    examples=(
        "create-model-store --profile 4e869579b1c2 --model-store ./model",
        "create-model-store --model-repo ngc://nim/meta/llama3-8b-instruct:hf -m ./model",
    ),
    exits=tuple(EXIT_CODES),
)
@click.option("-p", "--profile", "profiles", multiple=True, metavar="ID", help="Its id or name.")
@click.option("--model-repo", metavar="URI", help="hf://…, ngc://…, s3://… or https://…")
@click.option(
    "-m",
    "--model-store",
    "directory",
    required=True,
    metavar="DIR",
    help="Where the plain files go.",
)
def create_model_store(profiles: tuple[str, ...], model_repo: str | None, directory: str) -> int:
    """Write one profile, or one repository, as plain files; what the NIM cache has is linked from it."""

    def ask() -> tuple[Request, Settings]:
        settings = from_process()
        if bool(profiles) == bool(model_repo):
            raise UsageError("give either --profile or --model-repo", hint="One of them says what to write.")
        cache = settings.cache_path or DEFAULT_CACHE
        if model_repo:
            uri = model_of(model_repo, settings)
            request = Request(store=directory, uris=(uri,), layout=LayoutKind.WORKSPACE, cache=cache)
            if settings.hf_home or uri.scheme != "hf":
                return placed(request, settings), settings
            # the operator's Job for ``modelEndpoint: hf://…`` has no HF_HOME; the pods that serve it will
            return replace(request, hub=SERVING_HUB if is_served(directory, settings) else ""), settings
        request = Request(
            store=directory,
            criteria=criteria(settings, Criteria(profiles=profiles)),
            manifest=find_manifest("", settings),
            layout=LayoutKind.WORKSPACE,
            cache=cache,
            gpus=settings.gpus,
        )
        return request, settings

    return execute(ask, store=directory)


# -- the container itself ------------------------------------------------------------------------------


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
            criteria=criteria(settings, Criteria()),
            layout=LayoutKind.WORKSPACE,
            gpus=settings.gpus,
            offline=settings.offline,
            ignore_failure=settings.ignore_download_failure,
        )
        return request, settings

    return execute(ask, store=native_path())


@click.command(
    "manifest",
    cls=Command,
    examples=("nimpull manifest > model_manifest.yaml", "nimpull manifest --manifest ./model_manifest.yaml"),
    exits=(2,),
)
@MANIFEST
def manifest(manifest_file: str | None) -> None:
    """Print the model manifest that this image carries, byte for byte."""
    click.echo(find_manifest(manifest_file or "", from_process()), nl=False)


@click.command("check-cache-env", cls=Command, examples=("check-cache-env",), exits=(2, 40, 41, 42))
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
