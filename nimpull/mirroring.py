"""How a mirror is filled: :func:`mirrored` brings what the store has to the target.

For each repository: look at what is there, send what is missing or differs, and write the list of checksums
last. Until then no reader takes the repository for complete, whenever this run ends; the next one goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Final

from nimpull.core.artifacts import Action, Artifact, Outcome
from nimpull.core.digest import Digest, new_hasher
from nimpull.core.events import Finished, Phase, Planned
from nimpull.core.mirror_objects import (
    CHECKSUMS,
    ExistingObject,
    MirrorAction,
    MirrorFile,
    MirrorObject,
    MirrorRepository,
    Target,
    checksum_list,
    digests_in,
    is_there,
    manifest_key,
    mirror_manifest,
)
from nimpull.core.names import SafePath, display
from nimpull.core.report.contents import MirrorSummary, Report, State
from nimpull.core.request import MirrorTo
from nimpull.core.units import show_count
from nimpull.errors import IntegrityError
from nimpull.wiring.edges import Edges
from nimpull.wiring.mirror_store import MirrorStore

_NAMED: Final = 5  # objects that a message names


@dataclass(frozen=True, slots=True)
class _Work:
    """A repository and what is to be done: ``sending`` and ``there`` are its contents by their path."""

    repository: MirrorRepository
    existing: Mapping[str, ExistingObject]
    sending: tuple[MirrorFile, ...]
    there: tuple[MirrorFile, ...]


def mirrored(wanted: MirrorTo, edges: Edges, report: Report) -> Report:
    """``report``: of the pull; with a mirror that is complete in the end, or as it would be (a dry run).

    Raises NimpullError.
    """
    edges.emit(Phase("mirroring", wanted.target))
    draft = edges.reporter.drafted(
        replace(report, state=State.IN_PROGRESS, mirror=MirrorSummary(wanted.target))
    )
    request, store = edges.volume.request, MirrorStore(wanted, edges, report)
    repositories = store.repositories
    with closing(store.target) as target:
        work = tuple(_looked(repository, target) for repository in repositories)
        if wanted.check:
            return _compared(work, wanted, target, draft, edges)
        sending = [file.size or 0 for each in work for file in each.sending]
        there = [file.size or 0 for each in work for file in each.there]
        count, size = len(sending) + len(there), sum(sending) + sum(there)
        edges.emit(Planned(count, size, sum(there), len(there)))
        if request.dry_run:
            return replace(draft, mirror=_summary(wanted, target, work), updated=edges.clock.time())
        target.check_room(sum(sending), len(sending))
        known: dict[tuple[str, str], str] = {}
        for each in work:
            known |= _written(each, store, edges)
        # the manifest that was given, or one that names what was mirrored
        manifest = request.manifest or mirror_manifest(repositories, known)
        key = target.beside(manifest_key(manifest))
        if target.read(key) != manifest:
            target.write(key, manifest)
    summary = replace(_summary(wanted, target, work), manifest=key)
    return replace(draft, state=State.READY, mirror=summary, updated=edges.clock.time(), progress=None)


# -- what is there -------------------------------------------------------------------------------------


def _looked(repository: MirrorRepository, target: Target) -> _Work:
    existing = target.look(repository)
    there: list[MirrorFile] = []
    sending: list[MirrorFile] = []
    for file in repository.contents:
        found = existing.get(target.key(repository, file.path))
        (there if is_there(file, found) else sending).append(file)
    return _Work(repository, existing, tuple(sending), tuple(there))


def _summary(wanted: MirrorTo, target: Target, work: Iterable[_Work]) -> MirrorSummary:
    """Every file once: profiles share theirs."""
    objects: dict[str, MirrorObject] = {}
    marks = []
    for each in work:
        for files, action in ((each.there, MirrorAction.SKIPPED), (each.sending, MirrorAction.SENT)):
            for file in files:
                key = target.key(each.repository, file.path)
                objects.setdefault(key, MirrorObject(key, file.size or 0, action))
        marks.append(target.key(each.repository, CHECKSUMS))
    listed = tuple(sorted(objects.values(), key=lambda one: one.key))
    return MirrorSummary(wanted.target, listed, tuple(dict.fromkeys(marks)))


# -- a comparison --------------------------------------------------------------------------------------


def _compared(work: Sequence[_Work], wanted: MirrorTo, target: Target, draft: Report, edges: Edges) -> Report:
    """Raises IntegrityError that names what differs."""
    objects: dict[str, MirrorObject] = {}
    marks = []
    for each in work:
        mark = target.key(each.repository, CHECKSUMS)
        listed = digests_in(target.read(mark) or b"")
        for file in each.repository.contents:
            key = target.key(each.repository, file.path)
            found = each.existing.get(key)
            same = found is not None and file.path in listed and target.compare(key, file)
            compared = MirrorAction.SKIPPED if same else MirrorAction.DIFFERS
            action = MirrorAction.MISSING if found is None else compared
            objects[key] = MirrorObject(key, found.size if found else 0, action)
        if not listed:
            objects[mark] = MirrorObject(mark, 0, MirrorAction.MISSING)
        marks += [mark] if listed else []
    summary = MirrorSummary(wanted.target, tuple(objects.values()), tuple(marks))
    report = edges.reporter.drafted(replace(draft, mirror=summary))
    if bad := [*summary.of(MirrorAction.MISSING), *summary.of(MirrorAction.DIFFERS)]:
        names = "".join(f"\n  {one.action.value}: {display(one.key, 300)}" for one in bad[:_NAMED])
        more = f"\n  and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        raise IntegrityError(
            f"{show_count(len(bad), 'object')} of {target.name} "
            f"{'is' if len(bad) == 1 else 'are'} not as in the store:{names}{more}",
            hint="Run nimpull mirror without --check: it sends these, and nothing else.",
        )
    return replace(report, state=State.READY, updated=edges.clock.time(), progress=None)


# -- sending -------------------------------------------------------------------------------------------


def _written(work: _Work, store: MirrorStore, edges: Edges) -> dict[tuple[str, str], str]:
    """The contents, then the commit mark, then what else readers look for. BLAKE3 by repository and path."""
    repository, target = work.repository, store.target
    sums = _sent(work, store, edges)
    mark = target.key(repository, CHECKSUMS)
    before = target.read(mark)
    for file in work.there:
        sums[file.path] = _known_blake3(file, work.existing[target.key(repository, file.path)], before, store)
    if own := repository.own_list:
        content = store.read(own)
    else:
        content = checksum_list(sums, b"" if repository.whole else before or b"")
    if content != before:
        target.write(mark, content)
    described: dict[str, MirrorFile] = {}
    for file in repository.contents:
        digests = dict.fromkeys((*file.digests, Digest("blake3", sums[file.path])))
        described[file.path] = replace(file, digests=tuple(digests))
    listed = repository.own_list or MirrorFile(SafePath(CHECKSUMS), "", len(content), ())
    target.publish(repository, {**described, CHECKSUMS: replace(listed, size=len(content))})
    return {(str(repository.uri), path): hexadecimal for path, hexadecimal in sums.items()}


def _sent(work: _Work, store: MirrorStore, edges: Edges) -> dict[str, str]:
    """BLAKE3 by path. The first failure stops the others."""
    repository, target = work.repository, store.target

    def send(file: MirrorFile) -> tuple[str, str]:
        begun = edges.clock.monotonic()
        found = target.send(target.key(repository, file.path), file)
        artifact = Artifact(file.path, file.size, file.digests, repository.at)
        seconds = edges.clock.monotonic() - begun
        edges.progress(Finished(Outcome(artifact, Action.SENT, 0, 1, seconds, "blake3", file.size or 0)))
        return file.path, found

    largest_first = sorted(work.sending, key=lambda file: -(file.size or 0))
    with ThreadPoolExecutor(store.workers, "nimpull-mirror") as pool:
        futures = [pool.submit(send, file) for file in largest_first]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in done:
            if future.exception():
                pool.shutdown(cancel_futures=True)
                future.result()
        return dict(future.result() for future in futures)


def _known_blake3(
    file: MirrorFile, existing: ExistingObject, before: bytes | None, store: MirrorStore
) -> str:
    """Of a file that was not sent: the store or the target knows it, or the list that was written before;
    else the file is read once more."""
    for digest in (*file.digests, *existing.digests):
        if digest.algorithm == "blake3":
            return digest.hex
    if listed := digests_in(before or b"").get(file.path):
        return listed
    hasher = new_hasher("blake3", file.size or 0)
    with store.open(file.stored) as opened:
        while block := opened.read(1 << 20):
            hasher.update(block)
    return hasher.hexdigest()
