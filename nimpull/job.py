"""The whole job: :func:`run` reads from top to bottom what a pull does.

Detect the hardware, choose the profiles, look whether the store is complete already, list what is wanted,
plan it against what is there, check the room, fetch and verify, publish, report. Whatever goes wrong on the
way ends in a ``Failed`` report with its reference; nothing that failed claims to be ready.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from nimpull.core.artifacts import Action, Artifact, Listing, Outcome, Wanted
from nimpull.core.events import Finished, Note, Planned
from nimpull.core.manifest import Profile, parse_manifest
from nimpull.core.names import ModelUri
from nimpull.core.plan import (
    Needs,
    Plan,
    completed,
    destinations,
    needs_of,
    needs_to_repair,
    resolved,
)
from nimpull.core.preference import profile_name
from nimpull.core.report.contents import Failure, Report, Repository, SelectionSummary, State, TransferSummary
from nimpull.core.request import Repair, Request
from nimpull.detect import hardware_of, shipped_table
from nimpull.errors import (
    AuthError,
    Cancelled,
    ForbiddenError,
    GatedError,
    LimitError,
    ManifestError,
    NimpullError,
    UsageError,
    hint_for,
)
from nimpull.mirroring import mirrored
from nimpull.store.claims import Claims
from nimpull.store.ingest import present_of
from nimpull.store.layouts import Found, StoreLayout
from nimpull.store.repair import make_links
from nimpull.wiring.edges import Edges
from nimpull.wiring.filling import check_targets, finish, sharing, take
from nimpull.wiring.looking import look, outcomes_of, tell_of_ready
from nimpull.wiring.volume import Places

_log: Final = logging.getLogger("nimpull")
_RULES: Final = {
    "all": "because all are wanted",
    "named": "because it was named",
    "criteria": "because it meets the criteria",
    "best fit": "the best fit for the hardware",
}


def run(request: Request, edges: Edges) -> Report:
    """Never raises an Exception: a failure is a report. BaseExceptions (a second Ctrl-C) pass."""
    report = edges.reporter.draft
    try:
        with edges:
            if request.repair:
                report = _repair(request.repair, edges, report)
            else:
                report = _pull(request, edges, report)
            if request.mirror:
                report = mirrored(request.mirror, edges, report)
    except NimpullError as error:
        report = _failed(error, edges)
    except Exception as error:  # noqa: BLE001 - a bug must still leave a report behind, with its trace
        limit = LimitError.of(error)
        if limit is None:
            _log.exception("unexpected error")
        report = _failed(limit or error, edges)
    report = replace(report, timeline=edges.progress.timeline())
    edges.reporter.publish(report)
    return report


def abandon(edges: Edges) -> Report:
    """The report of a run that was told to stop and does not: the process ends next, as by a kill.

    Not written yet: the volume that hangs may be where it goes, so what is left to say comes before.
    """
    error = Cancelled(
        "stopped while something that it waited for did not let go",
        hint="Run again to continue: what is on the volume is kept. Check that volume and network answer.",
    )
    return replace(_failed(error, edges), timeline=edges.progress.timeline())


# -- the three kinds of run ----------------------------------------------------------------------------


def _pull(request: Request, edges: Edges, report: Report) -> Report:
    volume, drafted = edges.volume, edges.reporter.drafted
    for warning in edges.settings.warnings:
        edges.emit(Note(warning, "warning"))
    report, profiles = _choose(request, edges, report)
    needs = _needs(request, profiles)
    endpoints = edges.endpoints(needs.repositories)
    ids = tuple(profile.id for profile in profiles)
    key = request.selection_key(ids, endpoints)
    edges.reporter.selection = key
    report = drafted(replace(report, store=volume.summary()))

    if not request.refresh and (marker := volume.ready(key, needs.repositories)):
        tell_of_ready(marker, volume)
        return _ready(report, profiles, outcomes_of(marker), TransferSummary(), edges)
    if request.offline:
        of = f" for {', '.join(endpoints)}" if endpoints else ""
        raise UsageError(
            f"{request.offline} is set, and the store is not complete{of}: nothing was downloaded",
            hint="Unset it for the run that fills the store.",
        )
    if request.dry_run:
        return _dry_run(needs, profiles, key, edges, report)
    edges.prepare()
    report = drafted(replace(report, store=volume.summary()))
    edges.reporter.set_aside()  # while there is room: a run that fills the volume must be able to say so
    with volume.claims() as claims:
        listed = _list(needs, edges)
        listings = tuple(listed.values())
        report = drafted(replace(report, sources=tuple(map(Repository.of, listings))))
        places = volume.places(resolved(destinations(profiles), listed))
        found, missing = look(volume, places, listings, key)
        # from here on readers may see a change: what would take another model's files has been refused
        outcomes, transfer = _fill(places.first, found, missing, edges, claims)
        # the marker comes last: one that is there speaks for files that are durable
        finish(volume, places, listings, outcomes, selection=key, profiles=ids, endpoints=endpoints)
    return _ready(report, profiles, outcomes, transfer, edges)


def _dry_run(needs: Needs, profiles: Sequence[Profile], key: str, edges: Edges, report: Report) -> Report:
    """What a pull would fetch and refuse. Nothing is written, nor is the store made."""
    volume = edges.volume
    listed = _list(needs, edges)
    listings = tuple(listed.values())
    report = replace(report, sources=tuple(map(Repository.of, listings)))
    places = volume.places(resolved(destinations(profiles), listed))
    found, missing = look(volume, places, listings, key)
    present = tuple(each.outcome for each in found)
    plan = _planned(present, missing, edges)
    volume.check_room(plan, places.first)
    intended = (Outcome(a, Action.FETCHED, 0, 0, 0.0, "", a.size or 0, a.digest) for a in plan.missing)
    return replace(report, artifacts=(*present, *intended), updated=edges.clock.time())


def _repair(repair: Repair, edges: Edges, report: Report) -> Report:
    """Fetch what a verification found lost. The markers that were there speak for it again."""
    volume = edges.volume
    report = edges.reporter.drafted(replace(report, store=volume.summary()))
    edges.prepare()
    with volume.claims() as claims:
        volume.store.remove(repair.corrupt)  # first: no reader shall meet it, also if its source is away
        listings = tuple(_list(needs_to_repair(repair), edges).values())
        places = Places(volume.store.restored({str(each.uri): each for each in repair.lost}))
        found, missing = look(volume, places, listings, "")
        outcomes, transfer = _fill(places.first, found, missing, edges, claims)
        make_links(volume.store.tree, repair.links)
    repaired = {Action.FETCHED: Action.REPAIRED, Action.RESUMED: Action.REPAIRED}
    outcomes = tuple(replace(each, action=repaired.get(each.action, each.action)) for each in outcomes)
    return _ready(report, (), outcomes, transfer, edges)


# -- their steps ---------------------------------------------------------------------------------------


def _choose(request: Request, edges: Edges, report: Report) -> tuple[Report, tuple[Profile, ...]]:
    """The profiles of the manifest that are wanted here; () where whole repositories are."""
    drafted = edges.reporter.drafted
    if not request.manifest:
        return report, ()
    from nimpull.core.selection import select  # its pattern engines are slow to import

    table = shipped_table()
    hardware = hardware_of(request.gpus, table, cancel=edges.cancel)
    report = drafted(replace(report, hardware=hardware))
    manifest = parse_manifest(request.manifest, unsafe=edges.settings.unsafe_manifest)
    selection = select(manifest, request.criteria, hardware, table)
    report = drafted(replace(report, selection=SelectionSummary.of(selection, request.criteria)))
    why = _RULES.get(selection.rule, selection.rule)
    for profile in selection.chosen:
        edges.emit(Note(f"profile {profile_name(profile)} ({profile.id[:12]}), {why}"))
    return report, selection.chosen


def _needs(request: Request, profiles: Sequence[Profile]) -> Needs:
    needs = needs_of(profiles) if profiles else Needs(dict.fromkeys(request.uris, request.wanted))
    if profiles and not needs.repositories:
        raise ManifestError(
            "the chosen profiles list no file: " + ", ".join(profile_name(each) for each in profiles),
            hint="Its workspaces are missing (a stripped copy?). Take the manifest out of the NIM image.",
        )
    if not needs.repositories:
        raise UsageError("nothing to pull", hint="Name a model URI or give a manifest.")
    return needs


def _list(needs: Needs, edges: Edges) -> dict[ModelUri, Listing]:
    """By the repository as it was asked for: at an immutable revision, with the manifest's digests."""
    listed = {uri: edges.list(uri, files, needs.promised) for uri, files in needs.repositories.items()}
    promised = resolved(needs.promised, listed)
    for uri, listing in listed.items():
        filtered = needs.repositories[uri] != Wanted()
        if not listing.artifacts:
            raise UsageError(
                f"{listing.uri} has no file" + (" that was asked for" if filtered else ""),
                hint="Look at the names and patterns that were given (nimpull: --include, --exclude)."
                if filtered
                else "The repository is empty at this revision. Check its name and the revision.",
            )
        listed[uri] = completed(listing, promised, edges.registries.endpoint(uri))
    return listed


def _fill(
    layout: StoreLayout,
    found: Sequence[Found],
    missing: Sequence[Artifact],
    edges: Edges,
    claims: Claims,
) -> tuple[tuple[Outcome, ...], TransferSummary]:
    """Take what was found, and fetch the rest, together with other pods that want the same."""
    volume = edges.volume
    present, unlinked, copies = take(volume, layout, found)
    plan = _planned(present, (*unlinked, *missing), edges)
    volume.check_room(plan, layout)
    check_targets(volume, layout, plan.missing)
    begun = edges.clock.monotonic()
    fetched: list[Outcome] = []
    with sharing(volume, layout, plan.missing, claims) as (work, ingests):
        edges.reporter.work = work
        while work.unfinished:  # again only where a claim was lost, and came back
            fetched += edges.fetch(work, ingests, copies)
        outcomes = (*present, *fetched, *work.elsewhere)
        ingests.sweep(outcome.artifact for outcome in outcomes)
    seconds = edges.clock.monotonic() - begun
    count = sum(outcome.fetched for outcome in fetched)
    return outcomes, TransferSummary(count, seconds, edges.progress.timeline().retries, edges.connections)


def _planned(present: tuple[Outcome, ...], missing: tuple[Artifact, ...], edges: Edges) -> Plan:
    """With what an earlier run left half done of the missing ones."""
    resumed = present_of(edges.volume.store.tree, missing) if edges.volume.exists else 0
    plan = Plan(present, missing, resumed)
    count = len(present) + len(missing)
    edges.emit(Planned(count, plan.total, plan.total - plan.to_fetch, len(present)))
    for outcome in present:
        edges.emit(Finished(outcome))
    return plan


# -- what is told --------------------------------------------------------------------------------------


def _ready(
    report: Report,
    profiles: Sequence[Profile],
    outcomes: Sequence[Outcome],
    transfer: TransferSummary,
    edges: Edges,
) -> Report:
    return replace(
        report,
        state=State.READY,
        updated=edges.clock.time(),
        profiles=tuple(profiles),
        artifacts=tuple(outcomes),
        transfer=transfer,
        store=edges.volume.summary(sum(outcome.size for outcome in outcomes)),
        progress=None,
    )


def _failed(error: BaseException, edges: Edges) -> Report:
    """With the files that are finished all the same: the next run does not fetch them."""
    failure = Failure.of(error)
    hint = hint_for(failure.hint, nimcache=edges.settings.nimcache, options=not edges.settings.drop_in)
    failure = replace(failure, hint=hint)
    if isinstance(error, AuthError | GatedError | ForbiddenError) and edges.settings.doubts:
        doubts = "; ".join(edges.settings.doubts)
        stop = "" if doubts.endswith("?") else "."
        failure = replace(failure, hint=f"{failure.hint} {doubts}{stop}".lstrip())
    return replace(
        edges.reporter.draft,
        state=State.FAILED,
        updated=edges.clock.time(),
        artifacts=tuple(edges.finished),
        error=failure,
        progress=None,
    )
