"""``nimpull download``: of a model, of profiles of a manifest, or of what a NIMCache asks for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Final

import click

from nimpull.cli.options import (
    FILE,
    MANIFEST,
    OUTPUT,
    SERVING_HUB,
    STORE,
    as_bytes,
    choosing,
    criteria,
    find_manifest,
    gpus_option,
    model_of,
    place_option,
    placed,
    read_file,
    registry_model,
    store_path,
)
from nimpull.cli.program import Command, OneOf
from nimpull.cli.running import Output, execute
from nimpull.core.artifacts import Wanted
from nimpull.core.criteria import Criteria, GpuCriterion
from nimpull.core.events import Level
from nimpull.core.names import display
from nimpull.core.nimcache import HubRepository, NimCache, parse_nimcache
from nimpull.core.request import LayoutKind, Request
from nimpull.errors import EXIT_CODES, UsageError
from nimpull.settings import MOST_CONNECTIONS, Settings, from_process

_TRISTATE = OneOf(["true", "false"])
#: The command line, by the names of the parameters of :func:`download`.
Options = SimpleNamespace
#: Those that choose among the profiles of a manifest, and those that choose among the files of a model.
_CHOOSING: Final = (
    *("profiles", "everything", "engine", "precision", "tensor_parallelism", "qos"),
    *("lora", "buildable", "products", "gpu_ids"),
)
_FILTERING: Final = ("include", "exclude")


@click.command(
    cls=Command,
    examples=(
        "nimpull download hf://sentence-transformers/all-MiniLM-L6-v2 --store ./store",
        "nimpull download --manifest model_manifest.yaml --gpu H100:2 --dry-run",
    ),
    exits=tuple(EXIT_CODES),
)
@click.argument("uris", nargs=-1, metavar="[URI]...")
@click.option(
    "-f",
    "--nimcache",
    "nimcache_file",
    metavar="FILE",
    type=FILE,
    help="Do what this NIMCache asks for.",
)
@click.option("--lenient", is_flag=True, help="With -f: unknown fields and missing secrets are only told.")
@MANIFEST
@choosing
@click.option("--all", "everything", is_flag=True, help="Every profile of the manifest.")
@click.option(
    "--lora", type=_TRISTATE, is_flag=False, flag_value="true", help="Profiles with, or without, LoRA."
)
@click.option(
    "--buildable",
    type=_TRISTATE,
    is_flag=False,
    flag_value="true",
    help="Profiles whose engine is built on the node, or not.",
)
@click.option("--product", "products", multiple=True, help="GPU product in the profile's tag; repeatable.")
@click.option("--gpu-id", "gpu_ids", multiple=True, help="PCI device id in the profile's tag; repeatable.")
@gpus_option("GPUs to choose for, in place of this machine's.")
@click.option("--include", multiple=True, metavar="GLOB", help="Only these files of the model; repeatable.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Not these files; repeatable.")
@STORE
@click.option(
    "--layout",
    type=OneOf([kind.value for kind in LayoutKind if kind is not LayoutKind.WORKSPACE]),
    default=LayoutKind.CACHE.value,
    show_default=True,
    help="cache: as NIM and huggingface_hub keep it; local-dir: plain files.",
)
@click.option(
    "--dry-run", is_flag=True, help="Show files, bytes, what is there and whether it fits; fetch nothing."
)
@click.option("--refresh", is_flag=True, help="Ask the source even if the store is complete.")
@click.option(
    "--connections", type=click.IntRange(1, MOST_CONNECTIONS), help="At most so many [NIMPULL_CONNECTIONS]."
)
@click.option(
    "--memory-limit",
    callback=as_bytes,
    metavar="SIZE",
    help="As if the control group allowed no more, e.g. 512Mi [NIMPULL_MEMORY_LIMIT].",
)
@click.option(
    "--retry-seconds",
    type=click.FloatRange(0, 1e6),
    metavar="N",
    help="Go on for so long without any progress, 0 = give up at the first failure [NIMPULL_RETRY_SECONDS].",
)
@place_option("--report", "report_path", help="Where the report goes; - is stdout.")
@place_option(
    "--metrics", help="Where the metrics go [NIMPULL_METRICS, else .nimpull/metrics.prom in the store]."
)
@click.option("-q", "--quiet", is_flag=True, help="Nothing but the closing line.")
@click.option("-v", "--verbose", is_flag=True, help="Also a line for each file.")
@OUTPUT
@click.option(
    "--progress",
    type=OneOf(["auto", "bar", "lines", "json", "quiet"]),
    default="auto",
    show_default=True,
)
def download(**given: Any) -> int:
    """Pull models (ngc://org/team/model:version, hf://namespace/name) or manifest profiles into a store.

    Without a URI, the profiles come from a manifest: those that are named, those that match the criteria,
    or the one that fits this machine's GPUs best. A second run fetches only what is missing.
    """
    options = Options(**given)
    return execute(lambda: ask(options), output_of(options))


def output_of(options: Options) -> Output:
    return Output(options.output == "json" or options.report_path == "-", options.progress)


def ask(options: Options) -> tuple[Request, Settings]:
    """The command line as a Request. Raises UsageError, ManifestError."""
    refuse_mixtures(options)
    if options.nimcache_file:
        return from_nimcache(options.nimcache_file, options)
    settings = _with_options(from_process(), options)
    store, layout = store_path(options.store, settings), LayoutKind(options.layout)
    uris = tuple(model_of(text, settings) for text in options.uris)
    manifest = b""
    if not uris:
        otherwise = "Name a model (nimpull download ngc://org/team/model:version). "
        manifest = find_manifest(options.manifest_file or "", settings, otherwise=otherwise)
    request = Request(
        store=store,
        uris=uris,
        manifest=manifest,
        criteria=_criteria(options, settings),
        wanted=Wanted(include=options.include, exclude=options.exclude),
        layout=layout,
        dry_run=options.dry_run,
        refresh=options.refresh,
        gpus=options.gpus or settings.gpus,
    )
    return placed(request, settings), settings


def _with_options(settings: Settings, options: Options) -> Settings:
    """With the options that were given in place of the variables."""
    level = Level.ERROR if options.quiet else Level.DEBUG if options.verbose else settings.log_level
    retry_seconds = options.retry_seconds
    return replace(
        settings,
        connections=options.connections or settings.connections,
        memory_limit=options.memory_limit or settings.memory_limit,
        retry_seconds=settings.retry_seconds if retry_seconds is None else retry_seconds,
        log_level=level,
        report_path="" if options.report_path == "-" else options.report_path,
        metrics_path=options.metrics,
        nimcache=settings.nimcache or bool(options.nimcache_file),
    )


def refuse_mixtures(options: Options) -> None:
    """Options that would have no effect beside what else is given. Raises UsageError."""
    if options.quiet and options.verbose:
        raise UsageError("-q and -v do not go together", hint="Give one of them.")
    choosing, filtering = _given(options, _CHOOSING), _given(options, _FILTERING)
    if options.nimcache_file:
        other = ["a URI"] if options.uris else []
        other += ["--layout"] if options.layout != LayoutKind.CACHE else []
        if unread := [*other, *choosing, *filtering]:
            raise UsageError(f"-f does not take {', '.join(unread)}", hint="The NIMCache says what to pull.")
    elif options.lenient:
        raise UsageError("--lenient is for -f", hint="Leave it out, or give a NIMCache with -f.")
    elif options.uris:
        if unread := [*(["--manifest"] if options.manifest_file else []), *choosing]:
            raise UsageError(
                f"a URI and {', '.join(unread)} do not go together",
                hint="Give a URI, or choose profiles of a manifest.",
            )
    elif filtering:
        raise UsageError(
            f"{', '.join(filtering)} without a URI: the files of a profile are those that its manifest names",
            hint="Leave it out, or name a model (nimpull download ngc://org/team/model:version).",
        )


def _given(options: Options, names: Iterable[str]) -> list[str]:
    """The flags of those that were."""
    flags = {param.name: param.opts[-1] for param in download.params}
    return [flags[name] for name in names if getattr(options, name)]


def _criteria(options: Options, settings: Settings) -> Criteria:
    products = options.products or ([""] if options.gpu_ids else [])  # "": of any product
    asked = Criteria(
        profiles=options.profiles,
        all=options.everything,
        engine=options.engine,
        precision=options.precision,
        tensor_parallelism=options.tensor_parallelism,
        qos=options.qos,
        lora=_bool(options.lora),
        buildable=_bool(options.buildable),
        gpus=tuple(GpuCriterion(product, options.gpu_ids) for product in products),
    )
    return criteria(settings, asked)


def _bool(value: str | None) -> bool | None:
    return None if value is None else value == "true"


def from_nimcache(path: str, options: Options) -> tuple[Request, Settings]:
    """What the caching Job of this NIMCache would do, as a Request. Raises UsageError, ManifestError."""
    cache = parse_nimcache(read_file(path, "the NIMCache"), lenient=options.lenient)
    for note in cache.notes:
        click.echo(f"nimpull: {display(note)}", err=True)
    settings = _with_options(from_process(lambda own: _variables(cache, own)), options)
    request = Request(
        store=store_path(options.store, settings),
        dry_run=options.dry_run,
        refresh=options.refresh,
        room=cache.room,
        gpus=options.gpus or settings.gpus,
    )
    source = cache.source
    if isinstance(source, HubRepository):
        # As the operator's huggingface-cli Job: plain files, which NIM_MODEL_NAME=/model-store points at.
        plain = replace(request, uris=(source.uri,), layout=LayoutKind.LOCAL_DIR, hub=SERVING_HUB)
        return plain, settings
    if source.endpoint:
        uri = registry_model(source.endpoint, settings)
        hub = SERVING_HUB if uri.scheme == "hf" else ""
        # As its create-model-store Job for modelEndpoint.
        return replace(request, uris=(uri,), layout=LayoutKind.WORKSPACE, hub=hub), settings
    asked = replace(source.criteria, as_operator=True)
    manifest = find_manifest(options.manifest_file or "", settings)
    return placed(replace(request, manifest=manifest, criteria=asked), settings), settings


def _variables(cache: NimCache, own: Mapping[str, str]) -> dict[str, str]:
    variables = cache.environment(own)
    if isinstance(cache.source, HubRepository):
        variables["HF_ENDPOINT"] = cache.source.endpoint.reveal()
    return variables
