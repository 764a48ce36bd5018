"""``nimpull doctor``: what a pull would meet here, before there is one. Nothing is fetched."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Final

import click

from nimpull.cli.options import model_of, store_path
from nimpull.cli.program import Command, OneOf
from nimpull.core.diagnosis import (
    Diagnosis,
    Mark,
    exit_code_of,
    judge_answer,
    judge_gpus,
    judge_key,
    judge_machine,
    judge_store,
    page,
)
from nimpull.core.names import ModelUri, Url
from nimpull.errors import EXIT_CODES, NimpullError
from nimpull.settings import Settings, from_process

_PATIENCE: Final = (5.0, 10.0)  # seconds for a connection, and for an answer


@click.command(
    cls=Command,
    exits=tuple(EXIT_CODES),
    examples=("nimpull doctor --store /model-store", "nimpull doctor hf://acme/tiny -o json"),
)
@click.argument("uris", nargs=-1, metavar="[URI]...")
@click.option("--store", metavar="DIR", help="Where models would go [NIM_CACHE_PATH, /model-store].")
@click.option("-o", "--output", type=OneOf(["text", "json"]), default="text", show_default=True)
def doctor(uris: tuple[str, ...], store: str | None, output: str) -> int:
    """Look at what a pull needs: environment, store, limits, GPUs, CAs, proxies, keys, and a HEAD to each
    registry, those of the URIs only where some are given. Exits with the code of the first problem."""
    findings = tuple(examine(uris, store))
    if output == "json":
        click.echo(json.dumps([asdict(each) for each in findings], indent=2, ensure_ascii=False))
    else:
        click.echo(page(findings, shutil.get_terminal_size().columns))
    return exit_code_of(findings)


def examine(uris: tuple[str, ...], store: str | None) -> Iterator[Diagnosis]:
    settings, models, broken = Settings(), tuple[ModelUri, ...](), None
    try:
        settings = from_process()
        models = tuple(model_of(uri, settings) for uri in uris)
        yield from (Diagnosis("environment", Mark.WARNING, warning) for warning in settings.warnings)
    except NimpullError as error:
        broken = error
        yield Diagnosis.of("environment", error)
    yield _store(store_path(store, settings))
    yield from _machine()
    if not broken:
        yield from _network(settings, models)


def _store(path: str) -> Diagnosis:
    """A store that is not there yet is not made for it."""
    from nimpull.store.preflight import probe, room

    try:
        above = os.path.abspath(path)
        while not os.path.lexists(above):
            above = os.path.dirname(above)
        could_be_made = os.path.isdir(above) and os.access(above, os.W_OK | os.X_OK, effective_ids=True)
        there = os.path.isdir(path)
        # where it cannot be made, the attempt says why
        abilities = probe(path) if there or not could_be_made else None
        left = room(above)
        return judge_store(path, abilities, left.bytes, left.inodes)
    except NimpullError as error:
        return Diagnosis.of("store", error)


def _machine() -> Iterator[Diagnosis]:
    from nimpull.detect import detect, shipped_table
    from nimpull.detect.process_limits import cpu_limit, memory_limit, open_files

    yield judge_machine(memory_limit(), cpu_limit(), open_files())
    yield judge_gpus(detect(lookup=shipped_table().find))


def _network(settings: Settings, models: tuple[ModelUri, ...]) -> Iterator[Diagnosis]:
    from nimpull.clock import SystemClock
    from nimpull.transport import HttpApi, Network
    from nimpull.wiring.edges import transport_policy

    connecting, answering = _PATIENCE
    policy = replace(
        transport_policy(settings), connect_timeout=connecting, read_timeout=answering, retry_budget=0.0
    )
    clock = SystemClock()
    try:
        network = Network(policy, clock)
        api = HttpApi(network, clock=clock, cancel=threading.Event(), emit=lambda _event: None)
    except NimpullError as error:
        yield Diagnosis.of("cas", error)
        return
    count = network.authorities.pem.count(b"-----BEGIN CERTIFICATE")
    yield Diagnosis("cas", Mark.OK, f"{count} certificate authorities are believed")
    schemes = {model.scheme for model in models} or {"ngc", "hf"}
    if "ngc" in schemes:
        yield judge_key("ngc key", "NGC_API_KEY", settings.ngc_key)
    if "hf" in schemes:
        yield judge_key("hub token", "HF_TOKEN", settings.hf_token)

    def ask(url: Url, subject: str) -> Diagnosis:
        began = clock.monotonic()
        try:
            # A redirect is an answer: where it leads to is not what was asked about.
            reply = api.request("HEAD", url, follow=False)
        except NimpullError as error:
            return Diagnosis.of(subject, error)
        took, proxy = clock.monotonic() - began, network.proxy_for(url)
        return judge_answer(subject, url, proxy, reply.status, reply.headers, seconds=took, now=clock.time())

    places: dict[Url, str] = {}
    for url, name in _endpoints(settings, models, schemes):
        places.setdefault(url, name)  # a mirror of NGC often answers at one address for both
    # All at once: each may take its ten seconds.
    with ThreadPoolExecutor(max(len(places), 1)) as pool:
        yield from pool.map(ask, places, places.values())


def _endpoints(
    settings: Settings, models: tuple[ModelUri, ...], schemes: set[str]
) -> Iterator[tuple[Url, str]]:
    """(address, what it is called) of what would be asked, the mirror in place of both registries."""
    override = settings.repository_override
    if schemes & {"ngc", "hf"} and override.startswith("http"):
        yield Url(override), "mirror"
    elif not override:
        if "ngc" in schemes:
            yield Url(settings.ngc_api), "ngc"
            yield Url(settings.ngc_auth), "ngc login"
        if "hf" in schemes:
            yield Url(settings.hf_endpoint), "hub"
    if settings.s3_endpoint and ("s3" in schemes or override.startswith("s3")):
        yield Url(settings.s3_endpoint), "s3"
    for model in models:
        if model.scheme in ("http", "https"):
            yield Url(f"{model.scheme}://{model.name}/"), "web server"
