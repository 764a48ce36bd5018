"""What a run did, as one value in three sizes: the report file, the termination message, the last log line.

``status`` has exactly the shape of ``NIMCache.status`` (state, profiles, conditions), so a controller can
copy it. Nothing here holds a secret: every text passes :func:`clean`, which escapes and cuts what is foreign
and takes out credentials, should one have slipped into a message of a library.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from nimpull.core.artifacts import Action, Listing, Outcome
from nimpull.core.hardware import Gpu, Hardware
from nimpull.core.manifest import Profile
from nimpull.core.names import display
from nimpull.core.units import show_bytes, show_rate, show_seconds, show_time
from nimpull.errors import INTERNAL_ERROR_EXIT_CODE, INTERNAL_ERROR_REFERENCE, NimpullError

SCHEMA_VERSION: Final = "nimpull/v1"
TERMINATION_MESSAGE_LIMIT: Final = (
    4096  # bytes per container, Kubernetes "Determine the Reason for Pod Failure"
)
CLOSING_LINE_LIMIT: Final = 1800  # bytes; FallbackToLogsOnError shows the last 2048 bytes of the log
MESSAGE_LIMIT: Final = 4000  # characters of an own message with its nearest misses

_SECRETS: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (re.compile(r"(?i)\b(https?://)[^\s/@]+@"), r"\1…@"),
    (re.compile(r"(?i)\b(https?://[^\s?\"'<>]*)\?[^\s\"'<>]*"), r"\1?…"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{4,}"), r"\1 …"),
    (re.compile(r"\b(nvapi-|hf_)[A-Za-z0-9_-]{4,}"), r"\1…"),
    (
        re.compile(
            r"(?i)\b(x-(?:amz|goog)-[a-z-]+|ssec-key|signature|sig|policy|key-pair-id|[a-z_]{0,40}token"
            r"|[a-z_-]{0,40}api[_-]?key|[a-z_]{0,40}password|[a-z_]{0,40}secret(?:_access_key)?)(['\"]?[=:]\s?['\"]?)[^\s&,;\"'}\])]{4,}"
        ),
        r"\1\2…",
    ),
)


def clean(text: object, limit: int = 512) -> str:
    """One line of foreign text: controls escaped, cut at ``limit`` characters, credentials taken out."""
    return display(_without_secrets(str(text)[: limit + 512]), limit)


def _prose(text: str) -> str:
    """An own message: its line breaks stay, each line is cleaned."""
    return "\n".join(clean(line, MESSAGE_LIMIT) for line in text[:MESSAGE_LIMIT].split("\n"))


def _without_secrets(text: str) -> str:
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


class State(StrEnum):
    """The states of ``NIMCache.status.state`` that a puller can be in."""

    IN_PROGRESS = "InProgress"
    READY = "Ready"
    FAILED = "Failed"


@dataclass(frozen=True, slots=True)
class CachedProfile:
    """An entry of ``NIMCache.status.profiles``: ``name`` is the profile id, ``config`` its tags."""

    name: str
    model: str = ""
    release: str = ""
    config: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, profile: Profile) -> CachedProfile:
        return cls(profile.id, profile.model, profile.release, profile.tags)


@dataclass(frozen=True, slots=True)
class Repository:
    """One source as it was resolved. ``uri`` names the immutable revision; ``bytes`` None = not listed."""

    uri: str
    endpoint: str = ""
    requested: str = ""
    revision: str = ""
    files: int = 0
    bytes: int | None = None

    @classmethod
    def of(cls, listing: Listing) -> Repository:
        sizes = [artifact.size for artifact in listing.artifacts]
        known = [size for size in sizes if size is not None]
        return cls(
            uri=str(listing.uri),
            endpoint=str(listing.endpoint),
            requested=listing.requested,
            revision=listing.uri.revision,
            files=len(sizes),
            bytes=sum(known) if len(known) == len(sizes) else None,
        )


@dataclass(frozen=True, slots=True)
class ProfileVerdict:
    """One profile's verdict: ``reason`` is the rule that matched or the requirement that failed."""

    profile: str
    name: str
    matches: bool
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class SelectionSummary:
    """``criteria``: what was asked for, as text; ``chosen``: profile ids; ``verdicts`` in manifest order."""

    criteria: Mapping[str, str] = field(default_factory=dict)
    chosen: tuple[str, ...] = ()
    verdicts: tuple[ProfileVerdict, ...] = ()


@dataclass(frozen=True, slots=True)
class StoreSummary:
    """``path``: the store's root; ``bytes``: what this selection occupies; ``free``: None = unknown."""

    path: str
    layout: str
    bytes: int = 0
    free: int | None = None


@dataclass(frozen=True, slots=True)
class Transfer:
    """``bytes`` over the network; ``seconds`` of wall time; ``connections``: the most at one time."""

    bytes: int = 0
    seconds: float = 0.0
    retries: int = 0
    connections: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How far a run is. Bytes; ``rate`` in bytes per second over the last half minute; ``eta`` in seconds.

    None = not known (yet): the plan is not made, or nothing moves.
    """

    phase: str = ""
    done: int = 0
    total: int | None = None
    rate: float = 0.0
    eta: float | None = None
    files: int = 0
    files_total: int | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a run failed, ready for a reader: see :mod:`nimpull.errors`."""

    reference: str
    message: str
    hint: str
    retryable: bool
    exit_code: int

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Anything that is no NimpullError is a bug: ``internal-error``, exit 70."""
        if isinstance(error, NimpullError):
            return cls(error.reference, error.message, error.hint, error.retryable, error.exit_code)
        return cls(
            INTERNAL_ERROR_REFERENCE,
            f"unexpected {type(error).__name__}: {error}",
            "This is a bug in nimpull; the log above holds the traceback. Please report both.",
            False,
            INTERNAL_ERROR_EXIT_CODE,
        )


@dataclass(frozen=True, slots=True)
class Report:
    """One run. ``started`` and ``updated``: seconds since the epoch; ``error`` is set if and only if Failed.

    ``profiles`` are published in ``status.profiles`` once Ready, as the operator does.
    """

    state: State
    started: float
    updated: float
    version: str = ""
    profiles: tuple[CachedProfile, ...] = ()
    sources: tuple[Repository, ...] = ()
    selection: SelectionSummary | None = None
    hardware: Hardware | None = None
    store: StoreSummary | None = None
    transfer: Transfer | None = None
    progress: Snapshot | None = None
    artifacts: tuple[Outcome, ...] = ()
    error: Failure | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.error is not None) != (self.state is State.FAILED):
            raise ValueError("a report has an error if and only if it is Failed")


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
        document["hardware"] = _hardware(report.hardware)
    if report.store:
        document["store"] = _store(report.store)
    if report.transfer:
        document["transfer"] = _transfer(report.transfer)
    document["artifacts"] = [_artifact(outcome) for outcome in report.artifacts]
    document["notes"] = [clean(note) for note in report.notes]
    return document


def _status(report: Report) -> dict[str, Any]:
    profiles = report.profiles if report.state is State.READY else ()
    return {
        "state": report.state.value,
        "profiles": [_profile(profile) for profile in profiles],
        "conditions": [_condition(report)],
    }


def _profile(profile: CachedProfile) -> dict[str, Any]:
    return {
        "name": clean(profile.name),
        "model": clean(profile.model),
        "release": clean(profile.release),
        "config": _texts(profile.config),
    }


def _condition(report: Report) -> dict[str, Any]:
    """The condition types and reasons are the operator's; the message is ours, and says more."""
    if report.state is State.IN_PROGRESS:
        kind, status, reason = "NIM_CACHE_JOB_PENDING", "False", "JobRunning"
        message = _moving(report.progress) if report.progress else "The pull has started"
    elif report.error:
        kind, status, reason = "NIM_CACHE_JOB_COMPLETED", "False", "JobFailed"
        message = f"{report.error.reference}: {_prose(report.error.message)}"
    else:
        kind, status, reason = "NIM_CACHE_JOB_COMPLETED", "True", "JobCompleted"
        message = _done(report)
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
        "message": _prose(error.message),
        "hint": _prose(error.hint),
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
        "criteria": _texts(selection.criteria),
        "chosen": [clean(profile) for profile in selection.chosen],
        "verdicts": [
            {
                "profile": clean(verdict.profile),
                "name": clean(verdict.name),
                "matches": verdict.matches,
                "reason": clean(verdict.reason),
                "detail": clean(verdict.detail),
            }
            for verdict in selection.verdicts
        ],
    }


def _hardware(hardware: Hardware) -> dict[str, Any]:
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
        "uuid": clean(gpu.uuid),
        "product": clean(gpu.product),
        "deviceId": clean(gpu.device_id),
        "subsystemId": clean(gpu.subsystem_id),
        "memoryTotalBytes": gpu.memory_total,
        "memoryUsedBytes": gpu.memory_used,
        "computeCapability": clean(gpu.compute_capability),
        "mig": clean(gpu.mig),
        "virtual": gpu.virtual,
        "sharedMemory": gpu.shared_memory,
        "problems": [clean(problem) for problem in gpu.problems],
    }


def _store(store: StoreSummary) -> dict[str, Any]:
    return {
        "path": clean(store.path, 4096),
        "layout": clean(store.layout),
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
        "path": clean(outcome.artifact.path, 1024),
        "uri": clean(outcome.artifact.uri.repo, 2048),
        "size": outcome.size,
        "digest": str(digest) if digest else None,
        "action": outcome.action.value,
        "verifiedBy": clean(outcome.verified),
        "bytesFetched": outcome.fetched,
        "attempts": outcome.attempts,
        "seconds": round(outcome.seconds, 3),
    }


def _texts(mapping: Mapping[str, str]) -> dict[str, str]:
    return {clean(key): clean(value) for key, value in mapping.items()}


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
        line = f"Ready: {_done(report)}"
    else:
        line = f"InProgress: {_moving(report.progress) if report.progress else 'started'}"
    text = f"nimpull: {line}"
    if len(text.encode()) <= CLOSING_LINE_LIMIT:
        return text
    return text.encode()[: CLOSING_LINE_LIMIT - 3].decode("utf-8", "ignore") + "…"


def _one_line(text: str) -> str:
    return " ".join(part for line in _prose(text).split("\n") for part in line.split())


def _done(report: Report) -> str:
    """``2 profiles, 14 files, 16.1 GiB in /model-store, verified by blake3; fetched …``."""
    outcomes = report.artifacts
    size = report.store.bytes if report.store and report.store.bytes else sum(item.size for item in outcomes)
    parts = []
    if report.profiles:
        parts.append(_count(len(report.profiles), "profile"))
    if outcomes:
        parts.append(_count(len(outcomes), "file"))
    parts.append(show_bytes(size) + (f" in {clean(report.store.path)}" if report.store else ""))
    checked = sorted({clean(outcome.verified, 40) for outcome in outcomes if outcome.verified})
    if checked:
        parts.append("verified by " + " and ".join(checked))
    return ", ".join(parts) + "; " + _fetched(report.transfer, outcomes)


def _fetched(transfer: Transfer | None, outcomes: Iterable[Outcome]) -> str:
    count = transfer.bytes if transfer else sum(outcome.fetched for outcome in outcomes)
    if not count:
        return "nothing to fetch"
    text = f"fetched {show_bytes(count)}"
    if transfer and transfer.seconds > 0:
        text += f" in {show_seconds(transfer.seconds)} ({show_rate(transfer.bytes / transfer.seconds)})"
    if transfer and transfer.retries:
        text += f", {transfer.retries} {'retry' if transfer.retries == 1 else 'retries'}"
    repaired = sum(outcome.action is Action.REPAIRED for outcome in outcomes)
    return text + (f", {_count(repaired, 'file')} repaired" if repaired else "")


def _moving(progress: Snapshot) -> str:
    return (f"{clean(progress.phase, 40)}: " if progress.phase else "") + progress_text(progress)


def progress_text(progress: Snapshot) -> str:
    """``4.2 GiB of 16.1 GiB (26%), 61.3 MiB/s, eta 3m19s, 5/14 files``; what is not known is left out."""
    if progress.total is None:
        return f"{show_bytes(progress.done)}, {show_rate(progress.rate)}"
    percent = 100 if progress.total == 0 else min(100, int(100 * progress.done / progress.total))
    parts = [f"{show_bytes(progress.done)} of {show_bytes(progress.total)} ({percent}%)"]
    parts.append(show_rate(progress.rate))
    if progress.eta is not None:
        parts.append(f"eta {show_seconds(progress.eta)}")
    if progress.files_total is not None:
        parts.append(f"{progress.files}/{progress.files_total} files")
    return ", ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
