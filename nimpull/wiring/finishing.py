"""Finishing a pull: what stands beside the files, their second names, and the marker last of all."""

from __future__ import annotations

from collections.abc import Sequence

from nimpull.core.artifacts import Artifact, Listing, Outcome, Wanted
from nimpull.core.events import Note
from nimpull.core.manifest import runtime_manifest
from nimpull.core.names import SafePath, display
from nimpull.core.request import LayoutKind
from nimpull.errors import NotWritableError
from nimpull.settings import hub_in
from nimpull.store.durable import replace_file, storing
from nimpull.store.layouts import Found, FoundBy, StoreLayout
from nimpull.store.ready import Ready
from nimpull.wiring.volume import Places, Volume


def finish(volume: Volume, places: Places, listings: Sequence[Listing]) -> tuple[Artifact, ...]:
    """What stands beside the files. Returns those that have a second name. Raises StoreError."""
    request = volume.request
    # whether the listings are all of their repositories: a hub cache must not take a part for the whole
    one_file = any(uri.path for uri in request.uris)
    complete = request.wanted == Wanted() and not request.manifest and not one_file
    for listing in listings:
        places.first.finish(listing, complete=complete)
    named = _name_twice(volume, places, listings, complete=complete)
    if request.runtime_manifest:  # before the marker, which speaks for the whole
        with storing("write", request.runtime_manifest):
            replace_file(request.runtime_manifest, runtime_manifest(listings))
    _tell_of_homes(volume, listings)
    return named


def mark_ready(
    volume: Volume,
    places: Places,
    listings: Sequence[Listing],
    outcomes: Sequence[Outcome],
    named: Sequence[Artifact],
    *,
    selection: str,
    profiles: tuple[str, ...],
    endpoints: tuple[str, ...],
) -> None:
    """Last of all, once every file is durable. ``profiles``: ids; ``named``: what has a second name.

    Raises StoreError.
    """
    store, now = volume.store, volume.clock.time()
    files = store.files_of(places.first, [outcome.artifact for outcome in outcomes])
    names = store.files_of(places.second, named) if places.second else ()
    revisions = tuple(str(listing.uri) for listing in listings)
    store.mark_ready(Ready(selection, places.first.name, now, files, revisions, profiles, names, endpoints))


def _name_twice(
    volume: Volume, places: Places, listings: Sequence[Listing], *, complete: bool
) -> tuple[Artifact, ...]:
    """Where another reader looks; no second bytes. Returns what has a second name, and tells of the rest."""
    second = places.second
    if second is None:
        return ()
    named: list[Artifact] = []
    failed: dict[str, list[tuple[SafePath, str]]] = {}
    with volume.store.tree.holding():
        for listing in listings:
            for artifact in listing.artifacts:
                # By what the system says, without the path: one line for all that fail alike.
                if reason := _name_too(artifact, places.first, second):
                    failed.setdefault(reason.rpartition(": ")[2], []).append((artifact.path, reason))
                else:
                    named.append(artifact)
            if not failed:
                second.finish(listing, complete=complete)
    for (path, reason), *others in failed.values():
        what = f"{len(others) + 1} files are" if others else f"{path} is"
        volume.emit(Note(f"{what} only in {places.only}: {reason}", "warning"))
    return tuple(named)


def _name_too(artifact: Artifact, first: StoreLayout, second: StoreLayout) -> str:
    """Give what ``first`` has committed its place in ``second`` too. Returns why not, or ""."""
    try:
        file = first.committed(artifact)
        if file is None:
            return ""
        found = second.find(artifact) or Found(artifact, file, FoundBy.ELSEWHERE)
        return "" if second.take(found) else "this file system has no hard links"
    except NotWritableError as error:
        return error.message


def _tell_of_homes(volume: Volume, listings: Sequence[Listing]) -> None:
    """A home outside of the store is lost with its pod: where its files are instead is told once."""
    request, settings, emit = volume.request, volume.settings, volume.emit
    schemes = {listing.uri.scheme for listing in listings}
    store, is_cache = display(request.store, 200), request.layout is LayoutKind.CACHE
    if "hf" in schemes and settings.hf_home and not hub_in(request.store, settings.hf_home):
        home = f"HF_HOME={display(settings.hf_home, 200)} is outside of the store {store}"
        if not is_cache and not request.hub:
            emit(Note(f"{home}: no hub cache is made beside the plain files"))
        elif not request.hub or request.runtime_manifest or not is_cache:
            hub = display(request.hub or "huggingface/hub", 200)
            emit(Note(f"{home}; the hub cache is {store}/{hub}, where the next pod finds it", "warning"))
    outside = settings.ngc_home and not hub_in(request.store, settings.ngc_home)
    if is_cache and outside and schemes - {"hf"}:
        home = f"NGC_HOME={display(settings.ngc_home, 200)} is outside of the store {store}"
        emit(Note(f"{home}; the files are in {store}/ngc/hub, where the next pod finds them", "warning"))
