"""What a run did, as one value in three sizes: the report file, the termination message, the last log line.

``status`` has exactly the shape of ``NIMCache.status`` (state, profiles, conditions), so a controller can
copy it. Nothing here holds a secret: every text passes :mod:`nimpull.core.redaction`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from nimpull.core.artifacts import Outcome
from nimpull.core.hardware import Gpu, Hardware
from nimpull.core.names import display
from nimpull.core.redaction import clean, prose
from nimpull.core.reported import (
    CachedProfile,
    Failure,
    Report,
    Repository,
    SelectionSummary,
    Snapshot,
    State,
    StoreSummary,
    Transfer,
)
from nimpull.core.sentences import done, moving
from nimpull.core.units import show_time

SCHEMA_VERSION: Final = "nimpull/v1"
#: Bytes per container; Kubernetes, "Determine the Reason for Pod Failure".
TERMINATION_MESSAGE_LIMIT: Final = 4096
CLOSING_LINE_LIMIT: Final = 1800  # bytes; FallbackToLogsOnError shows the last 2048 bytes of the log


def exit_code(report: Report) -> int:
    """0 for Ready, the error's own code for Failed. An unfinished run has none: ValueError."""
    if report.state is State.IN_PROGRESS:
        raise ValueError("the run is not over")
    return report.error.exit_code if report.error else 0


# -- the file ------------------------------------------------------------------------------------------


def to_json(report: Report) -> dict[str, Any]:
    """The whole report as JSON values, camelCase, as ``report.schema.json`` describes it."""
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
        document["progress"] = _progress(report.progress)
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
    document["artifacts"] = [_artifact(outcome) for outcome in report.artifacts]
    document["notes"] = [clean(note) for note in report.notes]
    return document


def to_text(report: Report) -> str:
    """``to_json`` as text for people and programs: indented, with one line an artifact."""
    fields = (f"  {_text(name)}: {_block(value)}" for name, value in to_json(report).items())
    return "{\n" + ",\n".join(fields) + "\n}"


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


def _error(error: Failure) -> dict[str, Any]:
    return {
        "reference": clean(error.reference),
        "message": prose(error.message),
        "hint": prose(error.hint),
        "retryable": error.retryable,
        "exitCode": error.exit_code,
    }


def _progress(progress: Snapshot) -> dict[str, Any]:
    return {
        "phase": clean(progress.phase),
        "bytesDone": progress.done,
        "bytesTotal": progress.total,
        "bytesPerSecond": round(progress.rate),
        "etaSeconds": None if progress.eta is None else round(progress.eta),
        "filesDone": progress.files,
        "filesTotal": progress.files_total,
    }


def _source(sources: Sequence[Repository]) -> dict[str, Any]:
    """Flat for the usual one repository; ``repositories`` lists all of them, the first one too."""
    entries = [
        {
            "uri": clean(source.uri),
            "endpoint": clean(source.endpoint),
            "requested": clean(source.requested),
            "revision": clean(source.revision),
            "files": source.files,
            "bytes": source.bytes,
        }
        for source in sources
    ]
    first = {name: entries[0][name] for name in ("uri", "endpoint", "requested", "revision")}
    return {**first, "repositories": entries}


def _selection(selection: SelectionSummary) -> dict[str, Any]:
    return {
        "rule": clean(selection.rule),
        "criteria": _texts(selection.criteria),
        "chosen": [clean(profile) for profile in selection.chosen],
        "verdicts": [
            {
                "profile": clean(verdict.profile),
                "name": clean(verdict.name),
                "matches": verdict.matches,
                "reason": clean(verdict.reason),
                "detail": clean(verdict.detail),
                "change": clean(verdict.change),
            }
            for verdict in selection.verdicts
        ],
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
    }


def _transfer(transfer: Transfer) -> dict[str, Any]:
    rate = transfer.bytes / transfer.seconds if transfer.seconds > 0 else 0.0
    return {
        "bytes": transfer.bytes,
        "seconds": round(transfer.seconds, 3),
        "bytesPerSecond": round(rate),
        "retries": transfer.retries,
        "connections": transfer.connections,
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


# -- the termination message ---------------------------------------------------------------------------


def termination_message(report: Report, limit: int = TERMINATION_MESSAGE_LIMIT) -> bytes:
    """The report without its long lists, as one line of valid JSON in at most ``limit`` bytes.

    What does not fit goes in this order, and ``truncated`` says so: notes, hardware, the tags of profiles,
    source, the profiles themselves, store and transfer, the hint, the tail of the message. State and
    reference always stay. Raises ValueError for a limit too small for these (under 256 bytes).
    """
    if limit < 256:
        raise ValueError("a termination message needs 256 bytes at least")
    document = to_json(report)
    for name in ("artifacts", "selection"):
        document.pop(name, None)
    if report.hardware:
        document["hardware"] = {"origin": report.hardware.origin.value, "gpus": _gpu_counts(report.hardware)}
    for shrink in (_keep, *(_dropping(name) for name in ("notes", "hardware")), *_SHRINKS):
        document = shrink(document)
        text = _compact(document)
        if len(text) <= limit:
            return text
    return _cut_message(report, limit)


def _gpu_counts(hardware: Hardware) -> dict[str, int]:
    products = [clean(gpu.product or gpu.device_id or "unknown", 80) for gpu in hardware.gpus]
    return {product: products.count(product) for product in products}


def _keep(document: dict[str, Any]) -> dict[str, Any]:
    return document


def _dropping(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def drop(document: dict[str, Any]) -> dict[str, Any]:
        return {**{key: value for key, value in document.items() if key != name}, "truncated": True}

    return drop


def _drop_tags(document: dict[str, Any]) -> dict[str, Any]:
    status = document["status"]
    profiles = [{"name": profile["name"]} for profile in status["profiles"]]
    return {**document, "status": {**status, "profiles": profiles}}


def _drop_profiles(document: dict[str, Any]) -> dict[str, Any]:
    return {**document, "status": {**document["status"], "profiles": []}}


def _drop_conditions(document: dict[str, Any]) -> dict[str, Any]:
    """The condition of a failure repeats the error's message."""
    return {**document, "status": {**document["status"], "conditions": []}}


_SHRINKS: Final = (
    _drop_tags,
    _dropping("source"),
    _drop_profiles,
    _drop_conditions,
    _dropping("progress"),
    _dropping("transfer"),
    _dropping("store"),
)


def _cut_message(report: Report, limit: int) -> bytes:
    """Only the state and the error: the hint goes before the message is cut to what fits."""
    document: dict[str, Any] = {
        "schemaVersion": SCHEMA_VERSION,
        "status": {"state": report.state.value, "profiles": [], "conditions": []},
        "truncated": True,
    }
    if not report.error:
        return _compact(document)
    whole = {**_error(report.error), "hint": ""}
    message = whole["message"]

    def shortened(length: int) -> bytes:
        kept = message if length == len(message) else message[:length] + "…"
        return _compact({**document, "error": {**whole, "message": kept}})

    low, high = 0, len(message)
    while low < high:  # the longest prefix that fits; escapes make its size in bytes no simple count
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(shortened(middle)) <= limit else (low, middle - 1)
    return shortened(low)


def _compact(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


# -- the last line of the log --------------------------------------------------------------------------


def closing_line(report: Report) -> str:
    """One line that says what happened and what to do, short enough for ``FallbackToLogsOnError``."""
    if report.error:
        error = report.error
        again = "a retry may help" if error.retryable else "a retry does not help"
        parts = [f"Failed ({error.reference}, exit {error.exit_code}, {again}): {_one_line(error.message)}"]
        if error.hint:
            parts.append(_one_line(error.hint))
        line = " — ".join(parts)
    elif report.state is State.READY:
        line = f"Ready: {done(report)}"
    else:
        line = f"InProgress: {moving(report.progress) if report.progress else 'started'}"
    text = f"nimpull: {line}"
    if len(text.encode()) <= CLOSING_LINE_LIMIT:
        return text
    return text.encode()[: CLOSING_LINE_LIMIT - 3].decode("utf-8", "ignore") + "…"


def _one_line(text: str) -> str:
    """Indented lines are the items of a list."""
    joined = ""
    for line in filter(str.strip, prose(text).split("\n")):
        between = "; " if line.startswith("  ") and not joined.endswith(":") else " "
        joined += (between if joined else "") + " ".join(line.split())
    return joined
