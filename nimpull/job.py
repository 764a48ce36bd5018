"""The whole job, told once: :func:`run` reads from top to bottom what a pull does.

Detect the hardware, choose the profiles, look whether the store is complete already, list what is wanted,
plan it against what is there, check the room, fetch and verify, publish, report. Whatever goes wrong on the
way ends in a ``Failed`` report with its reference; nothing that failed claims to be ready.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from nimpull import __version__
from nimpull.core.artifacts import Action, Outcome
from nimpull.core.events import Finished, Note, Phase, Planned
from nimpull.core.manifest import Profile, parse_manifest
from nimpull.core.plan import Needs, Plan, destinations, needs_of, needs_to_repair, resolved, settle
from nimpull.core.ports import Wanted
from nimpull.core.report import (
    CachedProfile,
    Failure,
    Report,
    Repository,
    SelectionSummary,
    State,
    TransferSummary,
)
from nimpull.core.request import Request
from nimpull.core.selection import Selection, profile_name, select
from nimpull.errors import (
    AuthError,
    Cancelled,
    ForbiddenError,
    GatedError,
    ManifestError,
    NimpullError,
    UsageError,
    hint_for,
)
from nimpull.wiring.edges import Edges

_log: Final = logging.getLogger("nimpull")
_RULES: Final = {
    "all": "because all are wanted",
    "named": "because it was named",
    "criteria": "because it meets the criteria",
    "best fit": "the best fit for the hardware",
}


def run(request: Request, edges: Edges) -> Report:
    """Never raises an Exception: a failure is a report. BaseExceptions (a second Ctrl-C) pass."""
    started = edges.clock.time()
    report = Report(State.IN_PROGRESS, started, started, version=__version__)
    try:
        with edges:
            report = _pull(request, edges, report)
    except NimpullError as error:
        report = _failed(edges.reporter.draft or report, error, edges)
    except Exception as error:  # noqa: BLE001 - a bug must still leave a report behind, with its trace
        _log.exception("unexpected error")
        report = _failed(edges.reporter.draft or report, error, edges)
    report = replace(report, timeline=edges.progress.timeline())
    edges.reporter.publish(report)
    return report


def abandon(edges: Edges) -> Report:
    """The report of a run that was told to stop and does not: the process ends next, as by a kill."""
    now = edges.clock.time()
    error = Cancelled(
        "stopped while something that it waited for did not let go",
        hint="Run again to continue: what is on the volume is kept. Check that volume and network answer.",
    )
    draft = edges.reporter.draft or Report(State.IN_PROGRESS, now, now, version=__version__)
    report = replace(_failed(draft, error, edges), timeline=edges.progress.timeline())
    edges.reporter.publish(report)
    return report


def _pull(request: Request, edges: Edges, report: Report) -> Report:
    volume, drafted = edges.volume, edges.reporter.drafted
    for warning in edges.settings.warnings:
        edges.emit(Note(warning, "warning"))
    selection = None
    if request.manifest:
        hardware = edges.hardware(request.gpus)
        report = drafted(replace(report, hardware=hardware))
        manifest = parse_manifest(request.manifest, unsafe=edges.settings.unsafe_manifest)
        selection = select(manifest, request.criteria, hardware, edges.table)
        report = drafted(replace(report, selection=SelectionSummary.of(selection, request.criteria)))
        _tell(selection, edges)
    elif not request.uris and not request.repair:
        raise UsageError("nothing to pull", hint="Name a model URI or give a manifest.")
    profiles = selection.chosen if selection else ()
    volume.destinations = destinations(profiles)
    cached = tuple(CachedProfile.of(profile) for profile in profiles)
    key = request.selection_key(tuple(profile.id for profile in profiles))
    report = drafted(replace(report, store=volume.summary()))

    if not request.refresh and (outcomes := volume.ready_outcomes(key)) is not None:
        edges.emit(Note("the store is complete already; nothing was asked of the network"))
        return _ready(report, cached, outcomes, (), edges)
    if request.offline:
        raise UsageError(
            f"{request.offline} is set, and the store is not complete: nothing was downloaded",
            hint="Unset it for the run that fills the store.",
        )
    volume.preflight()
    edges.reporter.set_aside()
    with volume.leased():
        volume.remove_corrupt()
        plan = _plan(request, profiles, edges)
        report = drafted(replace(report, sources=tuple(map(Repository.of, plan.listings))))
        volume.check_room(plan)
        if request.dry_run:
            return replace(report, artifacts=(*plan.present, *_intended(plan)), updated=edges.clock.time())
        volume.check_targets(plan.missing)
        begun = edges.clock.monotonic()
        fetched = edges.fetch(plan.missing) if plan.missing else ()
        if request.repair:
            fetched = tuple(replace(outcome, action=Action.REPAIRED) for outcome in fetched)
        seconds = edges.clock.monotonic() - begun
        for listing in plan.listings:
            volume.finish(listing, complete=_is_whole(request))
        outcomes = (*plan.present, *fetched)
        volume.name_twice(plan.listings, complete=_is_whole(request))
        volume.write_runtime_manifest(plan.listings)
        volume.mark_ready(key, outcomes, plan.listings, tuple(profile.id for profile in profiles))
    transfer = TransferSummary(
        sum(o.fetched for o in fetched), seconds, edges.progress.retries, edges.connections
    )
    return _ready(report, cached, outcomes, (transfer,), edges)


# -- what is wanted ------------------------------------------------------------------------------------


def _plan(request: Request, profiles: Sequence[Profile], edges: Edges) -> Plan:
    volume, needs = edges.volume, _needs(request, profiles)
    if not needs.repositories and not request.repair:
        raise ManifestError(
            "the chosen profiles list no file: " + ", ".join(profile_name(each) for each in profiles),
            hint="Its workspaces are missing (a stripped copy?). Take the manifest out of the NIM image.",
        )
    listed = {uri: edges.list(uri, files, needs.promised) for uri, files in needs.repositories.items()}
    listings = tuple(listed.values())
    filtered = request.wanted != Wanted() or bool(request.manifest)
    if empty := [listing for listing in listings if not listing.artifacts]:
        raise UsageError(
            f"{empty[0].uri} has no file" + (" that was asked for" if filtered else ""),
            hint="Look at the names and patterns that were given (nimpull: --include, --exclude)."
            if filtered
            else "The repository is empty at this revision. Check its name and the revision.",
        )
    edges.emit(Phase("checking what is there"))
    volume.destinations = resolved(volume.destinations, listed)
    with volume.looking():
        plan = settle(listings, resolved(needs.promised, listed), volume.present)
    plan = replace(plan, resumed=volume.resumable(plan.missing))
    volume.tell_of_cache()
    count = len(plan.present) + len(plan.missing)
    edges.emit(Planned(count, plan.total, plan.total - plan.to_fetch, len(plan.present)))
    for outcome in plan.present:
        edges.emit(Finished(outcome))
    return plan


def _needs(request: Request, profiles: Sequence[Profile]) -> Needs:
    if request.repair:
        return needs_to_repair(request.repair)
    return needs_of(profiles) if profiles else Needs(dict.fromkeys(request.uris, request.wanted))


def _is_whole(request: Request) -> bool:
    """Whether the listings are all of their repositories: a hub cache must not take a part for the whole."""
    return request.wanted == Wanted() and not request.manifest and not any(uri.path for uri in request.uris)


def _intended(plan: Plan) -> tuple[Outcome, ...]:
    """What a dry run would fetch, in the report's terms."""
    return tuple(Outcome(a, Action.FETCHED, 0, 0, 0.0, "", a.size or 0, a.digest) for a in plan.missing)


# -- what is told --------------------------------------------------------------------------------------


def _tell(selection: Selection, edges: Edges) -> None:
    for profile in selection.chosen:
        why = _RULES.get(selection.rule, selection.rule)
        edges.emit(Note(f"profile {profile_name(profile)} ({profile.id[:12]}), {why}"))


def _ready(
    report: Report,
    profiles: tuple[CachedProfile, ...],
    outcomes: Sequence[Outcome],
    transfer: tuple[TransferSummary, ...],
    edges: Edges,
) -> Report:
    return replace(
        report,
        state=State.READY,
        updated=edges.clock.time(),
        profiles=profiles,
        artifacts=tuple(outcomes),
        transfer=transfer[0] if transfer else TransferSummary(),
        store=edges.volume.summary(sum(outcome.size for outcome in outcomes)),
        progress=None,
    )


def _failed(report: Report, error: BaseException, edges: Edges) -> Report:
    failure = Failure.of(error)
    hint = hint_for(failure.hint, nimcache=edges.settings.nimcache, options=not edges.settings.drop_in)
    failure = replace(failure, hint=hint)
    if isinstance(error, AuthError | GatedError | ForbiddenError) and edges.settings.doubts:
        doubts = "; ".join(edges.settings.doubts)
        stop = "" if doubts.endswith("?") else "."
        failure = replace(failure, hint=f"{failure.hint} {doubts}{stop}".lstrip())
    return replace(report, state=State.FAILED, updated=edges.clock.time(), error=failure, progress=None)
