"""The drop-in commands: what the NIM Operator's Jobs call, as translations of arguments into one Request.

``download-to-cache``, ``create-model-store`` and ``huggingface-cli download``. Spellings are those seen in
the wild: NVIDIA's documentation ("Utilities"), the operator's source, huggingface_hub's guide to its CLI.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace

import click

from nimpull.cli.options import (
    CONNECTIONS,
    SERVING_HUB,
    criteria,
    find_manifest,
    limited,
    model_of,
    placed,
)
from nimpull.cli.program import DownloadOnly, run_program
from nimpull.cli.running import execute
from nimpull.core.manifest import Manifest, parse_manifest
from nimpull.core.names import ModelUri, display
from nimpull.core.ports import Wanted
from nimpull.core.request import LayoutKind, Request
from nimpull.core.selection import named
from nimpull.errors import ManifestError, NoProfileError, UsageError
from nimpull.settings import DEFAULT_CACHE, Settings, from_process


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


# -- download-to-cache ---------------------------------------------------------------------------------


@click.command("download-to-cache")
@click.option("-p", "--profile", "--profiles", "profiles", multiple=True, metavar="ID...")
@click.option("--all", "everything", is_flag=True, help="Every profile of the manifest.")
@click.option("--lora", is_flag=True, help="The best profile with LoRA.")
@click.option("--model-uri", metavar="URI", help="Model-free: hf://namespace/name[:revision].")
@click.option("--manifest-file", metavar="FILE", help="Where the runtime manifest of a model-free pull goes.")
def download_to_cache(
    profiles: tuple[str, ...], everything: bool, lora: bool, model_uri: str | None, manifest_file: str | None
) -> None:
    """Download profiles into the NIM cache: those named, all, or the one that fits these GPUs best."""

    def ask() -> tuple[Request, Settings]:
        settings = from_process()
        store = settings.cache_path or DEFAULT_CACHE
        if model_uri:
            if profiles or everything:
                raise UsageError("--model-uri goes without profiles", hint="A model-free pull has none.")
            uri = model_of(model_uri, settings)
            request = Request(store=store, uris=(uri,), runtime_manifest=manifest_file or "")
            return under_flags(request, settings), settings
        asked = criteria(settings, profiles=profiles, everything=everything, lora=True if lora else None)
        asked = replace(asked, best_only=lora)
        manifest = find_manifest("", settings)
        tell_unknown(manifest, asked.profiles)
        request = Request(store=store, manifest=manifest, criteria=asked, gpus=settings.gpus)
        return under_flags(request, settings), settings

    sys.exit(execute(ask))


def tell_unknown(manifest: bytes, names: Sequence[str]) -> None:
    """NIM's own lines about profiles that the manifest lacks: scripts look for them. The job refuses them."""
    try:
        parsed = parse_manifest(manifest)
    except ManifestError:
        return  # the job says so, in its report
    unknown = [name for name in names if name != "all" and not is_known(parsed, name)]
    if unknown:
        click.echo("Error: Not all of the provided profiles are supported.", err=True)
        click.echo(f"Unknown profiles provided: {as_set(unknown)}", err=True)
        click.echo(f"All valid profiles: {as_set(profile.id for profile in parsed.profiles)}", err=True)


def is_known(manifest: Manifest, name: str) -> bool:
    try:
        return bool(named(manifest, (name,)))
    except NoProfileError:
        return False


def as_set(names: Iterable[str]) -> str:
    return "{" + ", ".join(f"'{display(name)}'" for name in names) + "}"


def under_flags(request: Request, settings: Settings) -> Request:
    """HF_HOME and NGC_HOME, NIM_DISABLE_MODEL_DOWNLOAD and NIM_IGNORE_MODEL_DOWNLOAD_FAIL."""
    return replace(
        placed(request, settings),
        offline=settings.offline,
        ignore_failure=settings.ignore_download_failure,
    )


# -- create-model-store --------------------------------------------------------------------------------


@click.command("create-model-store")
@click.option("-p", "--profile", "profiles", multiple=True, metavar="ID")
@click.option("--model-repo", metavar="URI", help="hf://…, ngc://…, s3://… or https://…")
@click.option(
    "-m", "--model-store", "directory", required=True, metavar="DIR", help="Where the plain files go."
)
def create_model_store(profiles: tuple[str, ...], model_repo: str | None, directory: str) -> None:
    """Write one profile, or one repository, as plain files; what the NIM cache has is linked from it."""

    def ask() -> tuple[Request, Settings]:
        settings = from_process()
        if bool(profiles) == bool(model_repo):
            raise UsageError("give either --profile or --model-repo", hint="One of them says what to write.")
        cache = settings.cache_path or DEFAULT_CACHE
        if model_repo:
            uri = model_of(model_repo, settings)
            request = Request(store=directory, uris=(uri,), layout=LayoutKind.WORKSPACE, cache=cache)
            request = replace(request, hub=served_hub(directory, uri, settings))
            return (placed(request, settings) if settings.hf_home else request), settings
        asked = criteria(settings, profiles=profiles)
        manifest = find_manifest("", settings)
        return (
            Request(
                store=directory,
                manifest=manifest,
                criteria=asked,
                layout=LayoutKind.WORKSPACE,
                cache=cache,
                gpus=settings.gpus,
            ),
            settings,
        )

    sys.exit(execute(ask))


def served_hub(directory: str, uri: ModelUri, settings: Settings) -> str:
    """The operator's Job for ``modelEndpoint: hf://…`` has no HF_HOME, but its store is NIM_CACHE_PATH: the
    pods that serve it will have HF_HOME there."""
    if settings.hf_home or uri.scheme != "hf" or not settings.cache_path:
        return ""
    return SERVING_HUB if os.path.realpath(settings.cache_path) == os.path.realpath(directory) else ""


# -- huggingface-cli, hf -------------------------------------------------------------------------------


@click.group("huggingface-cli", cls=DownloadOnly, no_args_is_help=False)
def hugging_face() -> None:
    """``download`` as huggingface-cli and hf offer it. The other commands are not here: this is nimpull."""


@hugging_face.command("download")
@click.argument("repo_id")
@click.argument("filenames", nargs=-1)
@click.option("--repo-type", "--type", "repo_type", type=click.Choice(["model", "dataset"]), default="model")
@click.option("--revision", default="")
@click.option("--include", multiple=True)
@click.option("--exclude", multiple=True)
@click.option("--cache-dir")
@click.option("--local-dir")
@click.option("--token", default="", help="Better in HF_TOKEN: an argument shows in the process list.")
@click.option("--dry-run/--no-dry-run", default=False)
@click.option("--force-download/--no-force-download", default=False, help="Ask the Hub again.")
@click.option("-q", "--quiet", is_flag=True)
@click.option("--json", "as_json", is_flag=True)
@click.option("--max-workers", type=CONNECTIONS, help="At most so many connections.")
@click.option("--format", "_format", type=click.Choice(["auto", "human", "agent", "json", "quiet"]))
@click.option("--local-dir-use-symlinks", "_symlinks", help="Accepted and ignored, as in huggingface-cli.")
@click.option("--resume-download", "_resume", is_flag=True, help="Accepted; nimpull always resumes.")
@click.option("--no-truncate", "_no_truncate", is_flag=True, help="Accepted and ignored.")
def hub_download(
    repo_id: str,
    filenames: tuple[str, ...],
    repo_type: str,
    revision: str,
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
    _format: str | None,
    _symlinks: str | None,
    _resume: bool,
    _no_truncate: bool,
) -> None:
    """Download a repository, or some files of it, from the Hub or a DataStore (HF_ENDPOINT)."""
    where = ""

    def ask() -> tuple[Request, Settings]:
        nonlocal where
        if cache_dir and local_dir:
            raise UsageError("--cache-dir and --local-dir do not go together", hint="Give one of them.")
        settings = from_process(lambda _: {"HF_TOKEN": token} if token else {})
        # the mirror is NIM's: this command does not know it
        settings = replace(limited(settings, max_workers, None), repository_override="")
        uri = _repository(repo_id, repo_type, revision)
        folders = tuple(f"{name}**" for name in filenames if name.endswith("/"))
        files = frozenset(name for name in filenames if not name.endswith("/"))
        wanted = Wanted(files, (*include, *folders), exclude)
        hub = os.path.abspath(cache_dir or settings.hub_cache)
        where = os.path.abspath(local_dir) if local_dir else hub
        request = Request(
            store=where if local_dir else os.path.dirname(hub),
            uris=(uri,),
            wanted=wanted,
            layout=LayoutKind.LOCAL_DIR if local_dir else LayoutKind.CACHE,
            hub="" if local_dir else os.path.basename(hub),
            dry_run=dry_run,
            refresh=force_download,
            offline="HF_HUB_OFFLINE" if settings.hf_offline else "",
        )
        return (placed(request, settings) if local_dir else request), settings

    code = execute(
        ask, output="json" if as_json else "text", progress="quiet" if quiet else "auto", closing=True
    )
    if code == 0 and not as_json and not dry_run:
        click.echo(where)
    sys.exit(code)


def _repository(repo_id: str, repo_type: str, revision: str) -> ModelUri:
    if repo_id.startswith("hf://"):
        uri = ModelUri.parse(repo_id)
    else:
        kind = "datasets/" if repo_type == "dataset" else ""
        uri = ModelUri.parse(f"hf://{kind}{repo_id}")
    return uri.with_revision(revision) if revision else uri


# -- console scripts -----------------------------------------------------------------------------------


def download_to_cache_script() -> None:
    run_program(download_to_cache, spread(sys.argv[1:], ("-p", "--profile", "--profiles")))


def create_model_store_script() -> None:
    run_program(create_model_store, sys.argv[1:])


def hugging_face_script() -> None:
    run_program(hugging_face, spread(sys.argv[1:], ("--include", "--exclude")))
