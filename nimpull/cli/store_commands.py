"""``nimpull verify`` and ``nimpull status``: look at a store, with no network but for --refresh, --repair."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from nimpull.cli.options import OUTPUT, STORE, store_path
from nimpull.cli.output import say
from nimpull.cli.program import Command
from nimpull.cli.running import Output, execute, quiet_edges
from nimpull.core.artifacts import Wanted
from nimpull.core.digest import Digest
from nimpull.core.names import STATE_DIRECTORY, display
from nimpull.core.report.contents import ProgressSummary
from nimpull.core.report.document import progress_json
from nimpull.core.report.sentences import moving
from nimpull.core.request import LayoutKind, Repair, Request
from nimpull.core.units import show_bytes, show_count, show_time
from nimpull.errors import IntegrityError, LeaseHeldError, UsageError
from nimpull.settings import from_process

if TYPE_CHECKING:
    from nimpull.store.presence import Presence, Running
    from nimpull.store.status import Status
    from nimpull.store.store import Store
    from nimpull.store.verify import Verification


def open_store(root: str | None) -> Store:
    """Raises UsageError where there is no store; nothing is written."""
    from nimpull.store.durable import store_error
    from nimpull.store.store import Store

    path = store_path(root, from_process())
    try:
        state = os.stat(f"{path}/{STATE_DIRECTORY}")
    except (FileNotFoundError, NotADirectoryError):
        state = None
    except OSError as error:
        raise store_error(error, "look into the store", path) from error
    if not (state and stat.S_ISDIR(state.st_mode)):
        raise UsageError(
            f"{display(path, 300)} is no store of nimpull: it has no .nimpull directory",
            hint="Give the directory of an earlier nimpull download with --store.",
        )
    return Store(path)


@click.command(
    cls=Command,
    examples=("nimpull verify --store ./store", "nimpull verify --store ./store --repair"),
    exits=(2, 33, 41, 42),
)
@STORE
@click.option("--refresh", is_flag=True, help="Compare with what the registries list now.")
@click.option("--repair", is_flag=True, help="Fetch what is lost again from where it came from.")
@OUTPUT
def verify(store: str | None, refresh: bool, repair: bool, output: str) -> int:
    """Hash every committed file again. Exit 0: all is as it was downloaded; 33: it is not; 2: there is none.

    With --repair, exit 0: all is as it was downloaded again; else the exit code of what hindered it. Keys are
    those of a download.
    """
    from nimpull.detect.process_limits import processors
    from nimpull.store.repair import plan_repair

    with open_store(store) as opened:
        root = opened.root
        promised = ask_registries(opened) if refresh else {}
        result = opened.verify(workers=processors(), promised=promised)
        if result.sound and not result.files:
            raise UsageError(
                f"{display(root, 300)} holds no file that nimpull downloaded: there is nothing to verify",
                hint="Run nimpull download, or give the directory of an earlier one with --store.",
            )
        plan = plan_repair(opened.tree, opened.record, result)
    if output == "text":
        show_verification(result, root)
    code = 0 if result.sound else IntegrityError.exit_code
    if repair and not result.sound:
        code = repair_store(root, plan)
    if output == "json":
        document = verification_document(result, repaired=not result.sound and code == 0)
        click.echo(json.dumps(document, indent=2))
    elif not result.sound:
        click.echo(advice(root, plan, asked=repair, code=code))
    return code


def ask_registries(store: Store) -> Mapping[str, tuple[Digest, ...]]:
    """What each recorded file must be by the registry that it came from; by identity. Raises NimpullError.

    What came from another endpoint than this environment's is told, and compared with the record alone.
    """
    from nimpull.store.verify import sources_of

    promised: dict[str, tuple[Digest, ...]] = {}
    with quiet_edges(Request(store=store.root), from_process()) as edges:
        for (uri, endpoint), paths in sources_of(store.record).items():
            if endpoint not in ("", edges.registries.endpoint(uri)):
                say(f"not asked: {uri} came from {display(endpoint)}", err=True)
                continue
            listing = edges.list(uri, Wanted(paths), {})
            promised |= {each.identity: each.digests for each in listing.artifacts}
    return promised


def repair_store(root: str, plan: Repair) -> int:
    """Fetch what is lost. A file of unknown source is left: exit 33."""
    # refresh: the markers say that all is there, which the verification has just refuted.
    request = Request(store=root, layout=LayoutKind.WORKSPACE, refresh=True, repair=plan)
    code = execute(lambda: (request, from_process()), Output(closing=True))
    return code or (IntegrityError.exit_code if plan.unknown else 0)


def advice(root: str, plan: Repair, *, asked: bool, code: int) -> str:
    """What to do next, or that nothing is left to do."""
    if code == 0:
        return f"{display(root, 300)}: repaired, all as downloaded."
    if not asked:
        return "Run nimpull verify --repair, or the same nimpull download again: it fetches only these files."
    gone = "The corrupt files were removed. " if plan.corrupt else ""
    return f"{gone}Not all is repaired. Run the same nimpull download again: it fetches only these files."


def verification_document(result: Verification, *, repaired: bool) -> dict[str, object]:
    return {
        "files": result.files,
        "bytes": result.bytes,
        "corrupt": [
            {
                "path": each.path,
                "expected": str(each.expected),
                "found": str(each.found or ""),
                "reason": each.reason,
            }
            for each in result.mismatches
        ],
        "missing": list(result.missing),
        "repaired": repaired,
    }


def show_verification(result: Verification, root: str) -> None:
    for each in result.mismatches:
        found = each.reason or f"is {each.found}"
        click.echo(f"corrupt  {display(each.path, 300)}: should be {each.expected}, {display(found)}")
    for path in result.missing:
        click.echo(f"missing  {display(path, 300)}")
    bad = f"{len(result.mismatches)} corrupt, {len(result.missing)} missing"
    hashed = f"{show_count(result.files, 'file')}, {show_bytes(result.bytes)} hashed"
    click.echo(f"{display(root, 300)}: {hashed}: {'all as downloaded' if result.sound else bad}.")


@click.command(
    cls=Command,
    examples=("nimpull status --store ./store", "nimpull status --store ./store --watch"),
    exits=(2, 41, 42),
)
@STORE
@click.option("--watch", "watching", is_flag=True, help="Follow the pull that runs; exit as it does.")
@OUTPUT
def status(store: str | None, watching: bool, output: str) -> int:
    """What is in a store, what is half done, and who writes there. Looks at names and sizes only.

    With --watch, the exit code is that of the pull: also for a Job's pod, from any other that has the volume.
    """
    from nimpull.cli.watching import progress_of, read_report, watch
    from nimpull.store.presence import announced

    if watching and output == "json":
        raise UsageError("--watch and -o json do not go together", hint="Ask with -o json again and again.")
    with open_store(store) as opened:
        if watching:
            return watch(opened.root)
        found, root, runs = opened.status(), opened.root, announced(opened.tree)
        progress = progress_of(read_report(opened.tree)) if runs else None
    if output == "json":
        click.echo(json.dumps(status_document(found, runs, progress), indent=2))
    else:
        show_status(found, runs, progress, root)
    return 0


def status_document(
    found: Status, runs: Sequence[Running], progress: ProgressSummary | None
) -> dict[str, object]:
    return {
        "files": found.files,
        "bytes": found.bytes,
        "selections": [
            {
                "selection": each.ready.selection,
                "layout": each.ready.layout,
                "revisions": list(each.ready.revisions),
                "endpoints": list(each.ready.endpoints),
                "profiles": list(each.ready.profiles),
                "files": len(each.ready.files),
                "bytes": each.ready.size,
                "ready": not each.changed,
                "changed": list(each.changed),
            }
            for each in found.selections
        ],
        "partial": [
            {"name": each.name, "file": display(each.identity), "size": each.size, "bytes": each.bytes}
            for each in found.partial
        ],
        "writing": [run.owner for run in runs],
        "progress": progress_json(progress) if progress else None,
    }


def show_status(found: Status, runs: Sequence[Running], progress: ProgressSummary | None, root: str) -> None:
    click.echo(
        f"{display(root, 300)}: {show_count(found.files, 'file')}, {show_bytes(found.bytes)} committed"
    )
    for each in found.selections:
        ready = each.ready
        state = f"{show_count(len(each.changed), 'file')} changed or gone" if each.changed else "ready"
        what = ready.revisions or (ready.selection,)
        about = [
            display(ready.layout, 40),
            show_count(len(ready.files), "file"),
            show_bytes(ready.size),
            *(f"from {display(endpoint, 200)}" for endpoint in ready.endpoints),
        ]
        click.echo(f"  {state}: {', '.join(display(each, 200) for each in what)}")
        click.echo(f"    {', '.join(about)}")
        for profile in ready.profiles:
            click.echo(f"    profile {display(profile, 80)}")
    if not found.selections:
        click.echo("  nothing is ready")
    for part in found.partial:
        when = show_time(part.modified)
        name = display(part.identity, 200) or f"{part.name[:16]}…"
        whole = f" of {show_bytes(part.size)}" if part.size is not None else ""
        click.echo(f"  half done: {name}: {show_bytes(part.bytes)}{whole}, last written {when}")
    for run in runs:
        click.echo(f"  writing now: {run.owner}")
    if progress:
        click.echo(f"  {moving(progress)}")
    if found.partial and not runs:
        click.echo("Run the same nimpull download again to go on from there.")


@click.command(
    cls=Command,
    examples=("nimpull prune --store ./store", "nimpull prune --store ./store --yes"),
    exits=(2, 41, 42, 43),
)
@STORE
@click.option("--yes", is_flag=True, help="Remove what is listed; without it nothing is.")
@OUTPUT
def prune(store: str | None, yes: bool, output: str) -> int:
    """What in a store nobody needs: half-done files and snapshots that no marker names, reports of failures.

    Never what a marker names, what nimpull did not write, plain files, or anything while a run writes there.
    """
    from nimpull.clock import SystemClock
    from nimpull.store import prune as pruning
    from nimpull.store.presence import Presence

    with open_store(store) as opened:
        tree, record = opened.tree, opened.record
        if not yes:
            found = pruning.plan(tree, record)
        else:
            with Presence(tree, owner=f"nimpull prune (pid {os.getpid()})", clock=SystemClock()) as presence:
                _refuse_beside(presence)
                found = pruning.plan(tree, record)
                for removable in found:
                    _refuse_beside(presence)  # one may have begun meanwhile
                    pruning.carry_out(tree, record, removable)
        root = opened.root
    freed = sum(each.bytes for each in found)
    if output == "json":
        items = [
            {"what": each.what, "name": display(each.name), "bytes": each.bytes, "paths": list(each.paths)}
            for each in found
        ]
        click.echo(json.dumps({"removed": yes, "bytes": freed, "items": items}, indent=2))
        return 0
    verb = "removed" if yes else "remove"
    for each in found:
        click.echo(f"{verb}  {show_bytes(each.bytes):>10}  {each.what}: {each.name}")
    would = "would be freed. Nothing was removed; --yes removes it."
    came = f"{show_bytes(freed)} {'freed.' if yes else would}" if found else "there is nothing to remove."
    click.echo(f"{display(root, 300)}: {came}")
    return 0


def _refuse_beside(presence: Presence) -> None:
    if others := presence.others():
        raise LeaseHeldError(
            f"{others[0].owner} writes into this store", hint="Run nimpull prune again when it is done."
        )
