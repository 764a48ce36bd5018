"""The report file: a run's report as JSON values, camelCase, as ``nimpull/report.schema.json`` describes it.

``status`` has exactly the shape of ``NIMCache.status`` (state, profiles, conditions), so a controller can
copy it. Nothing here holds a secret: every text passes :mod:`nimpull.core.redaction`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any, Final

from nimpull.core.artifacts import Outcome
from nimpull.core.hardware import Hardware
from nimpull.core.manifest import Profile
from nimpull.core.mirror_objects import MirrorAction
from nimpull.core.names import ModelUri, display
from nimpull.core.redaction import clean, prose
from nimpull.core.report.contents import (
    Failure,
    MirrorSummary,
    ProgressSummary,
    RateLine,
    Report,
    Repository,
    State,
    StoreSummary,
    Timeline,
    TransferSummary,
    seconds_by_phase,
)
from nimpull.core.report.sentences import done, moving
from nimpull.core.units import show_time

SCHEMA_VERSION: Final = "nimpull/v1"
#: Fields whose name in the file is not their own in camel case.
_NAMES: Final = {
    "memory_total": "memoryTotalBytes",
    "memory_used": "memoryUsedBytes",
    "free": "freeBytes",
    "pod": "name",
    "waiting": "waitingFor",
}


def without_artifacts(report: Report) -> dict[str, Any]:
    """The report as JSON values but for ``artifacts``, of which there may be a million."""
    document: dict[str, Any] = {
        "schemaVersion": SCHEMA_VERSION,
        "version": clean(report.version),
        "startedAt": show_time(report.started),
        "updatedAt": show_time(report.updated),
        "status": _status(report),
    }
    sections: dict[str, tuple[Any, Callable[[Any], Any]]] = {
        "error": (report.error, _error),
        "progress": (report.progress, progress_json),
        "source": (report.sources, _source),
        "selection": (report.selection, _plain),
        "hardware": (report.hardware, hardware_json),
        "store": (report.store, _store),
        "transfer": (report.transfer, _transfer),
        "mirror": (report.mirror, _mirror),
        "timeline": (report.timeline, _timeline),
        "pods": (report.pods, _plain),
    }
    document |= {name: as_json(part) for name, (part, as_json) in sections.items() if part}
    return document | {"notes": _plain(report.notes)}


def to_bytes(report: Report, rows: bytes | None = None) -> bytes:
    """The report file: indented, with one line an artifact. ``rows``: its :func:`artifact_rows`, if made."""
    before = [f"  {_text(name)}: {_block(value)},\n" for name, value in without_artifacts(report).items()]
    head = "".join(["{\n", *before, '  "artifacts": ['])
    return b"".join((head.encode(), artifact_rows(report) if rows is None else rows, b"]\n}"))


def artifact_rows(report: Report) -> bytes:
    """The lines of ``artifacts``, made one by one: the JSON values of a million would not fit beside them."""
    written = bytearray()
    for outcome in report.artifacts:
        written += f"{',' if written else ''}\n    {_text(_artifact(outcome))}".encode()
    return bytes(written + b"\n  " if written else b"")


def _block(value: Any) -> str:
    # A line for each entry keeps long lists readable, and greppable.
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return "[\n" + ",\n".join(f"    {_text(item)}" for item in value) + "\n  ]" if value else "[]"
    return json.dumps(value, indent=2, ensure_ascii=False).replace("\n", "\n  ")


_text = json.JSONEncoder(ensure_ascii=False).encode


@lru_cache(maxsize=256)  # a pull has thousands of files of a few repositories
def _repository(repo: ModelUri) -> str:
    return display(repo.repo, 2048)


def _status(report: Report) -> dict[str, Any]:
    # The operator fills status.profiles once the Job has succeeded, and so does this.
    profiles = report.profiles if report.state is State.READY else ()
    return {
        "state": report.state.value,
        "profiles": [_profile(profile) for profile in profiles],
        "conditions": [_condition(report)],
    }


def _profile(profile: Profile) -> dict[str, Any]:
    """An entry of ``NIMCache.status.profiles``."""
    names = {"name": profile.id, "model": profile.model, "release": profile.release, "config": profile.tags}
    return {name: _plain(value) for name, value in names.items()}


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


def _error(error: Failure) -> dict[str, Any]:
    return _object(error) | {"message": prose(error.message), "hint": prose(error.hint)}


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
    entries = [_object(source) for source in sources]
    first = {name: entries[0][name] for name in ("uri", "endpoint", "requested", "revision")}
    return {**first, "repositories": entries}


def hardware_json(hardware: Hardware) -> dict[str, Any]:
    """``hardware`` of the report, and what ``nimpull gpus -o json`` prints."""
    values = _object(hardware)
    return {name: values[name] for name in ("origin", "driver", "cuda", "gpus", "notes")}


def _store(store: StoreSummary) -> dict[str, Any]:
    return _object(store) | {"path": display(store.path, 4096)}


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
    sent, skipped = mirror.of(MirrorAction.SENT), mirror.of(MirrorAction.SKIPPED)
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
            {"key": display(one.key, 2048), "size": one.size, "action": one.action.value}
            for one in mirror.objects
        ],
    }


def _timeline(timeline: Timeline) -> dict[str, Any]:
    return {
        "intervalSeconds": timeline.interval,
        "bytesPerSecond": list(timeline.rates),
        "hosts": [_line(line) for line in timeline.hosts],
        "connectionIntervalSeconds": timeline.connection_interval,
        "connections": [{"connection": line.connection, **_line(line)} for line in timeline.connections],
        "pauses": [
            {
                "atSeconds": round(pause.at, 1),
                "seconds": round(pause.seconds, 1),
                "reason": clean(pause.reason),
                "times": pause.times,
            }
            for pause in timeline.pauses
        ],
        "phases": [
            {"phase": clean(span.phase), "atSeconds": round(span.at, 2), "seconds": round(span.seconds, 2)}
            for span in timeline.phases
        ],
        "secondsByPhase": {
            clean(name, 40): round(each, 3) for name, each in seconds_by_phase(timeline).items()
        },
    }


def _line(line: RateLine) -> dict[str, Any]:
    return {"host": display(line.host, 255), "bytesPerSecond": list(line.rates)}


def _artifact(outcome: Outcome) -> dict[str, Any]:
    # a path is shown as it is: it may look like a credential to redaction, and must still be found
    digest = outcome.digest or outcome.artifact.digest
    return {
        "path": display(outcome.artifact.path, 1024),
        "uri": _repository(outcome.artifact.repo),
        "size": outcome.size,
        "digest": str(digest) if digest else None,
        "action": outcome.action.value,
        "verifiedBy": display(outcome.verified),
        "bytesFetched": outcome.fetched,
        "attempts": outcome.attempts,
        "seconds": round(outcome.seconds, 3),
    }


def _object(value: Any) -> dict[str, Any]:
    """A dataclass by its fields: their names in camel case, their texts cleaned."""
    return {
        _NAMES.get(each.name) or _camel(each.name): _plain(getattr(value, each.name))
        for each in fields(value)
    }


def _plain(value: Any) -> Any:
    match value:
        case str():
            return clean(value)
        case tuple():
            return [_plain(each) for each in value]
        case Mapping():
            return {clean(key): _plain(each) for key, each in value.items()}
    return _object(value) if is_dataclass(value) else value


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(map(str.capitalize, others))
