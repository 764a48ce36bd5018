"""Options and arguments that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import click

import nimpull.cli.completion as complete
from nimpull.cli.program import OneOf
from nimpull.core.addresses import as_model
from nimpull.core.criteria import Criteria, parse_tags_selector
from nimpull.core.names import ModelUri, display
from nimpull.core.request import LayoutKind, Request
from nimpull.core.units import parse_quantity
from nimpull.errors import ManifestError, UsageError
from nimpull.settings import Settings, hub_in

Decorated = TypeVar("Decorated", bound=Callable[..., object])
MAX_MANIFEST_BYTES = 16 << 20
DEFAULT_STORE = "/model-store"
#: A shell completes it as a file. What cannot be read is told by read_file, what cannot be written by
#: report_place.
FILE = click.Path(readable=False)
SERVING_HUB = "huggingface/hub/hub"  # below the store, as the operator's NIMService sets HF_HOME


# -- options ---------------------------------------------------------------------------------------------

STORE = click.option(
    "--store",
    metavar="DIR",
    shell_complete=complete.stores,
    help="Model store [NIM_CACHE_PATH, else /model-store].",
)
MANIFEST = click.option(
    "--manifest",
    "manifest_file",
    metavar="FILE",
    type=FILE,
    help="Model manifest [NIM_MANIFEST_PATH].",
)
OUTPUT = click.option(
    "-o", "--output", type=OneOf(["text", "json"]), default="text", show_default=True, help="On stdout."
)


def place_option(*names: str, help: str) -> Callable[[Decorated], Decorated]:
    """A file that is written; it is looked at before the work, see :func:`report_place`."""
    return click.option(
        *names,
        default="",
        metavar="PATH",
        type=FILE,
        callback=report_place,
        help=help,
    )


def gpus_option(help: str, *, multiple: bool = False) -> Callable[[Decorated], Decorated]:
    return click.option(
        "--gpu",
        "gpus",
        default=None if multiple else "",
        multiple=multiple,
        metavar="H100:8",
        shell_complete=complete.gpus,
        help=help,
    )


def choosing(command: Decorated) -> Decorated:
    """-p, --engine, --precision, --tp, --qos: which profiles of a manifest."""
    name = click.option(
        "-p",
        "--profile",
        "profiles",
        multiple=True,
        metavar="ID|NAME",
        shell_complete=complete.profiles,
        help="This profile; repeatable.",
    )
    tags = (
        (("--engine",), "tensorrt_llm, vllm, sglang, …"),
        (("--precision",), "fp8, bf16, …"),
        (("--tp", "tensor_parallelism"), "Tensor parallelism."),
        (("--qos",), "latency or throughput."),
    )
    # Decorators apply from the last to the first; --help lists them as above.
    for names, help in reversed(tags):
        command = click.option(*names, default="", shell_complete=complete.tags, help=help)(command)
    return name(command)


# -- what they mean --------------------------------------------------------------------------------------


def read_file(path: str, what: str, most: int = MAX_MANIFEST_BYTES) -> bytes:
    """At most ``most`` bytes of it. Raises UsageError that names the path."""
    try:
        with open(path, "rb") as stream:
            content = stream.read(most + 1)
    except OSError as error:
        raise UsageError(f"cannot read {what} {path}: {error.strerror}", hint="Check the path.") from error
    if len(content) > most:
        raise ManifestError(f"{what} {path} is over {most >> 20} MiB", hint=f"This is not {what}.")
    if not content.strip():
        raise ManifestError(f"{what} {path} is empty", hint="Fetch it again; was it written in full?")
    return content


def find_manifest(option: str, settings: Settings, *, otherwise: str = "") -> bytes:
    """``--manifest``, NIM_MANIFEST_PATH, or the image's own. Raises UsageError that lists where it looked.

    ``otherwise``: what else the user could do, the beginning of the hint's sentence.
    """
    if option:
        return read_file(option, "the manifest")
    for path in settings.manifest_paths:
        try:
            # Not os.path.exists: a manifest that may not be read is there, and must not be passed over.
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            pass  # it is there, and read_file says why it cannot be read
        return read_file(path, "the manifest")
    raise UsageError(
        "no model manifest was found at " + " or ".join(settings.manifest_paths),
        hint=f"{otherwise}Set NIM_MANIFEST_PATH to one (nimpull: or give --manifest FILE). "
        "docs/image.md says how a manifest gets into the image of a modelPuller.",
    )


def model_of(text: str, settings: Settings) -> ModelUri:
    """A model URI, or the web address of a model on NGC or a Hub. Raises UsageError."""
    return registry_model(ModelUri.parse(text), settings)


def registry_model(uri: ModelUri, settings: Settings) -> ModelUri:
    """See :func:`nimpull.core.addresses.as_model`; the endpoints of the environment are registries too."""
    return as_model(uri, ngc=(settings.ngc_api,), hubs=(settings.hf_endpoint,))


def placed(request: Request, settings: Settings) -> Request:
    """The same with the caches of HF_HOME and NGC_HOME, where these are inside its store.

    Plain files of the Hub are named in the hub cache too: universal NIMs look there. Where HF_HOME is
    elsewhere, pods that serve the store do not have it there: theirs is in the store.
    """
    store, hub = request.store, hub_in(request.store, settings.hf_home)
    is_cache = request.layout is LayoutKind.CACHE
    served = request.runtime_manifest if is_cache else is_served(store, settings)
    if settings.hf_home and not hub and served:
        hub = SERVING_HUB
    if is_cache:
        return replace(request, hub=hub, ngc_hub=hub_in(store, settings.ngc_home))
    return replace(request, hub=hub) if any(uri.scheme == "hf" for uri in request.uris) else request


def is_served(directory: str, settings: Settings) -> bool:
    """Whether it is what a Job of the operator fills: its NIM_CACHE_PATH."""
    cache = settings.cache_path
    return bool(cache) and os.path.realpath(cache) == os.path.realpath(directory)


def as_bytes(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    """Callback of an option that takes a Kubernetes quantity. Raises BadParameter."""
    try:
        return parse_quantity(value) if value else None
    except ValueError as error:
        raise click.BadParameter(f"{display(value, 40)} is {error}") from error


def report_place(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    """Callback: what cannot be written is told before the work, not after it. Raises BadParameter."""
    if not value or value == "-":
        return value
    directory = os.path.dirname(os.path.abspath(value))
    if os.path.exists(value) and not os.path.isfile(value):
        raise click.BadParameter(f"{display(value, 300)} is not a file. For stdout give -")
    if not os.access(directory, os.W_OK | os.X_OK):
        there = "cannot be written" if os.path.isdir(directory) else "is not a directory that is there"
        raise click.BadParameter(f"{display(directory, 300)} {there}")
    return value


def store_path(option: str | None, settings: Settings) -> str:
    """``--store``, NIM_CACHE_PATH, or the mount of a caching Job."""
    return option or settings.cache_path or DEFAULT_STORE


def criteria(settings: Settings, asked: Criteria) -> Criteria:
    """``asked`` by options, with NIM_TAGS_SELECTOR; NIM_MODEL_PROFILE where no option chooses a profile."""
    named = tuple(part for name in asked.profiles for part in name.split(",") if part)
    everything, tags = asked.all or "all" in named, parse_tags_selector(settings.tags_selector)
    asked = replace(asked, profiles=named, all=everything, tags=tags)
    if settings.model_profile and not (asked.profiles or asked.all or asked.restricts):
        return Criteria(profiles=(settings.model_profile,), tags=asked.tags)
    return asked
