"""The report file: a run's report as JSON values, camelCase, as ``nimpull/report.schema.json`` describes it.

``status`` has exactly the shape of ``NIMCache.status`` (state, profiles, conditions), so a controller can
copy it. Nothing here holds a secret: every text passes :mod:`nimpull.core.redaction`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, Final

from nimpull.core.artifacts import Outcome
from nimpull.core.hardware import Gpu, Hardware
from nimpull.core.mirror_objects import Step
from nimpull.core.names import display
from nimpull.core.redaction import clean, prose
from nimpull.core.report.contents import (
    CachedProfile,
    Failure,
    MirrorSummary,
    PodShare,
    ProfileVerdict,
    ProgressSummary,
    Report,
    Repository,
    SelectionSummary,
    State,
    StoreSummary,
    TransferSummary,
)
from nimpull.core.report.sentences import done, moving
from nimpull.core.report.timeline import timeline_json
from nimpull.core.units import show_time

SCHEMA_VERSION: Final = "nimpull/v1"


def to_json(report: Report) -> dict[str, Any]:
    """The whole report as JSON values, camelCase, as ``report.schema.json`` describes it."""
    return without_artifacts(report) | {"artifacts": [_artifact(outcome) for outcome in report.artifacts]}


def without_artifacts(report: Report) -> dict[str, Any]:
    """The same but for ``artifacts``, of which there may be a million."""
    document: dict[str, Any] = {
        "schemaVersion": SCHEMA_VERSION,
        "version": clean(report.version),
        "startedAt": show_time(report.started),
        "updatedAt": show_time(report.updated),
        "status": _status(report),
    }
    if report.error:
        document["error"] = _error(report.error)
    if report.progress:
        document["progress"] = progress_json(report.progress)
    if report.sources:
        document["source"] = _source(report.sources)
    if report.selection:
        document["selection"] = _selection(report.selection)
    if report.hardware:
        document["hardware"] = hardware_json(report.hardware)
    if report.store:
        document["store"] = _store(report.store)
    if report.transfer:
        document["transfer"] = _transfer(report.transfer)
    if report.mirror:
        document["mirror"] = _mirror(report.mirror)
    if report.timeline:
        document["timeline"] = timeline_json(report.timeline)
    if report.pods:
        document["pods"] = [_share(share) for share in report.pods]
    document["notes"] = [clean(note) for note in report.notes]
    return document


def to_text(report: Report) -> str:
    """``to_json`` as text for people and programs: indented, with one line an artifact."""
    return "".join(text_of(report))


def to_bytes(report: Report) -> bytes:
    """The same for a file."""
    written = bytearray()
    for piece in text_of(report):
        written += piece.encode()
    return bytes(written)


def text_of(report: Report) -> Iterator[str]:
    """The same in pieces: what there may be a million of is not held as JSON beside its text."""
    yield "{\n"
    for name, value in without_artifacts(report).items():
        yield f"  {_text(name)}: {_block(value)},\n"
    yield '  "artifacts": ['
    for place, outcome in enumerate(report.artifacts):
        yield f"{',' if place else ''}\n    {_text(_artifact(outcome))}"
    yield "\n  ]\n}" if report.artifacts else "]\n}"


def _block(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return "[\n" + ",\n".join(f"    {_text(item)}" for item in value) + "\n  ]" if value else "[]"
    return json.dumps(value, indent=2, ensure_ascii=False).replace("\n", "\n  ")


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _status(report: Report) -> dict[str, Any]:
    profiles = report.profiles if report.state is State.READY else ()
    return {
        "state": report.state.value,
        "profiles": [_profile(profile) for profile in profiles],
        "conditions": [_condition(report)],
    }


def _profile(profile: CachedProfile) -> dict[str, Any]:
    return {
        "name": display(profile.name),
        "model": display(profile.model),
        "release": display(profile.release),
        "config": _texts(profile.config),
    }


def _condition(report: Report) -> dict[str, Any]:
    """The condition types and reasons are the operator's; the message is ours, and says more."""
    if report.state is State.IN_PROGRESS:
        kind, status, reason = "NIM_CACHE_JOB_PENDING", "False", "JobRunning"
        message = moving(report.progress) if report.progress else "The pull has started"
    elif report.error:
        kind, status, reason = "NIM_CACHE_JOB_COMPLETED", "False", "JobFailed"
        message = f"{report.error.reference}: {prose(report.error.message)}"
    else:
        kind, status, reason = "NIM_CACHE_JOB_COMPLETED", "True", "JobCompleted"
        message = done(report)
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": show_time(
            report.started if report.state is State.IN_PROGRESS else report.updated
        ),
    }


def _share(share: PodShare) -> dict[str, Any]:
    return {
        "name": display(share.pod),
        "state": share.state.value,
        "files": share.files,
        "bytes": share.bytes,
        "waitingFor": clean(share.waiting),
    }


def _error(error: Failure) -> dict[str, Any]:
    return _fields(error) | {"message": prose(error.message), "hint": prose(error.hint)}


def progress_json(progress: ProgressSummary) -> dict[str, Any]:
    """``progress`` of the report, and of a JSON line."""
    return {
        "phase": clean(progress.phase),
        "bytesDone": progress.done,
        "bytesTotal": progress.total,
        "bytesPerSecond": round(progress.rate),
        "etaSeconds": None if progress.eta is None else round(progress.eta),
        "filesDone": progress.files,
        "filesTotal": progress.files_total,
        "stalledSeconds": round(progress.stalled),
    }


def _source(sources: Sequence[Repository]) -> dict[str, Any]:
    """Flat for the usual one repository; ``repositories`` lists all of them, the first one too."""
    entries = [_fields(source) for source in sources]
    first = {name: entries[0][name] for name in ("uri", "endpoint", "requested", "revision")}
    return {**first, "repositories": entries}


def _selection(selection: SelectionSummary) -> dict[str, Any]:
    return {
        "rule": clean(selection.rule),
        "criteria": _texts(selection.criteria),
        "chosen": [clean(profile) for profile in selection.chosen],
        "verdicts": [_fields(verdict) for verdict in selection.verdicts],
    }


def hardware_json(hardware: Hardware) -> dict[str, Any]:
    """``hardware`` of the report, and what ``nimpull gpus -o json`` prints."""
    return {
        "origin": hardware.origin.value,
        "driver": clean(hardware.driver),
        "cuda": clean(hardware.cuda),
        "gpus": [_gpu(gpu) for gpu in hardware.gpus],
        "notes": [clean(note) for note in hardware.notes],
    }


def _gpu(gpu: Gpu) -> dict[str, Any]:
    return {
        "index": gpu.index,
        "uuid": display(gpu.uuid),
        "product": display(gpu.product),
        "deviceId": display(gpu.device_id),
        "subsystemId": display(gpu.subsystem_id),
        "memoryTotalBytes": gpu.memory_total,
        "memoryUsedBytes": gpu.memory_used,
        "computeCapability": display(gpu.compute_capability),
        "mig": display(gpu.mig),
        "virtual": gpu.virtual,
        "sharedMemory": gpu.shared_memory,
        "problems": [display(problem) for problem in gpu.problems],
    }


def _store(store: StoreSummary) -> dict[str, Any]:
    return {
        "path": display(store.path, 4096),
        "layout": display(store.layout),
        "bytes": store.bytes,
        "freeBytes": store.free,
        "mode": store.mode,
        "lacks": list(store.lacks),
    }


def _transfer(transfer: TransferSummary) -> dict[str, Any]:
    rate = transfer.bytes / transfer.seconds if transfer.seconds > 0 else 0.0
    return {
        "bytes": transfer.bytes,
        "seconds": round(transfer.seconds, 3),
        "bytesPerSecond": round(rate),
        "retries": transfer.retries,
        "connections": transfer.connections,
    }


def _mirror(mirror: MirrorSummary) -> dict[str, Any]:
    sent, skipped = mirror.of(Step.SENT), mirror.of(Step.SKIPPED)
    return {
        "target": display(mirror.target, 4096),
        "files": len(mirror.objects),
        "bytes": sum(one.size for one in mirror.objects),
        "filesSent": len(sent),
        "bytesSent": sum(one.size for one in sent),
        "filesSkipped": len(skipped),
        "bytesSkipped": sum(one.size for one in skipped),
        "marks": [display(key, 2048) for key in mirror.marks],
        "manifest": display(mirror.manifest),
        "objects": [
            {"key": display(one.key, 2048), "size": one.size, "action": one.step.value}
            for one in mirror.objects
        ],
    }


def _artifact(outcome: Outcome) -> dict[str, Any]:
    digest = outcome.digest or outcome.artifact.digest
    return {
        "path": display(outcome.artifact.path, 1024),
        "uri": display(outcome.artifact.uri.repo, 2048),
        "size": outcome.size,
        "digest": str(digest) if digest else None,
        "action": outcome.action.value,
        "verifiedBy": display(outcome.verified),
        "bytesFetched": outcome.fetched,
        "attempts": outcome.attempts,
        "seconds": round(outcome.seconds, 3),
    }


def _texts(mapping: Mapping[str, str]) -> dict[str, str]:
    return {display(key): display(value) for key, value in mapping.items()}


def _fields(value: Failure | Repository | ProfileVerdict) -> dict[str, Any]:
    """A value whose fields have the names of the file, but for the case; its texts cleaned."""
    pairs = ((field.name, getattr(value, field.name)) for field in fields(value))
    return {_camel(name): clean(each) if isinstance(each, str) else each for name, each in pairs}


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(map(str.capitalize, others))
