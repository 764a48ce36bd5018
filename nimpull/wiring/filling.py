"""Filling the volume: what was found is taken, the fetch writes the rest, and the ready marker comes last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from nimpull.core.artifacts import Artifact, Listing, Location, Outcome, Wanted
from nimpull.core.events import Note
from nimpull.core.manifest import runtime_manifest
from nimpull.core.names import SafePath, Url, display
from nimpull.core.request import LayoutKind
from nimpull.core.units import show_bytes, show_count
from nimpull.errors import NotWritableError
from nimpull.settings import hub_in
from nimpull.store import preflight
from nimpull.store.area import IngestArea
from nimpull.store.claims import Claims
from nimpull.store.durable import replace_file, storing
from nimpull.store.layouts import Found, FoundBy, StoreLayout
from nimpull.store.ready import Ready
from nimpull.store.scratch import ScratchRoom
from nimpull.store.sharing import SharedWork
from nimpull.wiring.volume import Places, Volume


@contextmanager
def sharing(
    volume: Volume, layout: StoreLayout, artifacts: Sequence[Artifact], claims: Claims
) -> Iterator[tuple[SharedWork, IngestArea]]:
    """What is missing as work that other pods may have begun, and where a fetch writes. Raises StoreError."""
    tree, record, settings = volume.store.tree, volume.store.record, volume.settings

    def by_now(artifact: Artifact) -> Outcome | None:
        """What another pod may have brought since this one looked."""
        if tree.lstat(layout.path_of(artifact)):
            record.news()  # before it is read: a line of the record is cheaper
        found = layout.find(artifact)
        return found.outcome if found and layout.take(found) else None

    work = SharedWork(
        artifacts,
        claims,
        by_now,
        record.news,
        pod=settings.pod,
        index=settings.pod_index,
        clock=volume.clock,
        cancel=volume.cancel,
        emit=volume.emit,
        patience=settings.retry_seconds,
        fits=ScratchRoom(tree).fits if tree.has_scratch else None,
    )
    with closing(IngestArea(tree, layout, fence=work, monotonic=volume.clock.monotonic)) as ingests:
        yield work, ingests


def take(
    volume: Volume, layout: StoreLayout, found: Sequence[Found]
) -> tuple[tuple[Outcome, ...], tuple[Artifact, ...], dict[str, Location]]:
    """Let what was found stand in its place. Returns the outcomes, what cannot be linked, and where the
    NIM cache has that: it is copied from there, and checked on the way. Locations by identity."""
    with volume.store.tree.holding():
        taken = [layout.take(each) is not None for each in found]
    done = [each for each, there in zip(found, taken, strict=True) if there]
    unlinked = [each for each, there in zip(found, taken, strict=True) if not there]
    copies = {
        each.artifact.identity: Location(Url(Path(each.tree.absolute(each.file.path)).as_uri()))
        for each in unlinked
        if each.tree
    }
    _tell(volume, done, "are hard links to the NIM cache {}")
    _tell(
        volume,
        unlinked,
        "are in the NIM cache {} and are copied: no hard link can be made from there (another file "
        "system, or another owner)",
    )
    return tuple(each.outcome for each in done), tuple(each.artifact for each in unlinked), copies


def _tell(volume: Volume, found: Sequence[Found], what: str) -> None:
    """Of those that are in the NIM cache."""
    cached = [each for each in found if each.tree]
    if cached and (tree := cached[0].tree):
        size = show_bytes(sum(each.file.size for each in cached))
        text = what.format(display(tree.root, 200))
        volume.emit(Note(f"{show_count(len(cached), 'file')}, {size}, {text}"))


def check_targets(volume: Volume, layout: StoreLayout, artifacts: Sequence[Artifact]) -> None:
    """Raises NotWritableError or ListingError for targets that a rename cannot reach or that are one."""
    tree = volume.store.tree
    preflight.check_one_file_system(tree, [layout.path_of(each) for each in artifacts])
    preflight.check_names([each.path for each in artifacts], folding=preflight.folds_names(tree))


# -- what stands beside the files, and the marker ---------------------------------------------------------


def finish(
    volume: Volume,
    places: Places,
    listings: Sequence[Listing],
    outcomes: Sequence[Outcome],
    *,
    selection: str,
    profiles: tuple[str, ...],
    endpoints: tuple[str, ...],
) -> None:
    """What stands beside the files, and last of all, once every file is durable, the marker.

    ``profiles``: ids. Raises StoreError.
    """
    request, store = volume.request, volume.store
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
    now = volume.clock.time()
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
