"""The termination message of a pod: the report without its long lists, in what Kubernetes keeps of it."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from nimpull.core.redaction import clean
from nimpull.core.report.contents import Report
from nimpull.core.report.document import without_artifacts

#: Bytes per container; Kubernetes, "Determine the Reason for Pod Failure".
TERMINATION_MESSAGE_LIMIT: Final = 4096
#: What goes first where it does not fit. The condition of a failure repeats the error's message.
_EXPENDABLE: Final = (
    "notes", "hardware", "tags", "source", "profiles", "conditions", "progress", "transfer", "store",
    "mirror",
)  # fmt: skip


def termination_message(report: Report, limit: int = TERMINATION_MESSAGE_LIMIT) -> bytes:
    """The report without its long lists, as one line of valid JSON in at most ``limit`` bytes.

    What does not fit goes in the order of the table above, and ``truncated`` says so; then the hint, then the
    tail of the message. State and reference always stay. Raises ValueError for a limit too small for these
    (under 256 bytes).
    """
    if limit < 256:
        raise ValueError("a termination message needs 256 bytes at least")
    document = without_artifacts(report)
    for name in ("selection", "timeline", "pods"):
        document.pop(name, None)
    if report.mirror:
        document["mirror"] = {**document["mirror"]}
        for name in ("objects", "marks"):
            document["mirror"].pop(name)
    if report.hardware:
        counts = Counter(clean(gpu.product or gpu.device_id or "unknown", 80) for gpu in report.hardware.gpus)
        document["hardware"] = {"origin": report.hardware.origin.value, "gpus": counts}
    # "": as it is; then one part after the other goes until it fits.
    for name in ("", *_EXPENDABLE):
        if name:
            _drop(document, name)
        text = _compact(document)
        if len(text) <= limit:
            return text
    return _cut_message(document, limit)


def _drop(document: dict[str, Any], name: str) -> None:
    document["truncated"] = True
    status = document["status"]
    if name == "tags":
        status["profiles"] = [{"name": profile["name"]} for profile in status["profiles"]]
    elif name in status:
        status[name] = []
    else:
        document.pop(name, None)


def _cut_message(document: Mapping[str, Any], limit: int) -> bytes:
    """Only the state and the error: the hint goes before the message is cut to what fits."""
    kept = {name: document[name] for name in ("schemaVersion", "status", "truncated")}
    if "error" not in document:
        return _compact(kept)
    error = document["error"]
    message = error["message"]

    def shortened(length: int) -> bytes:
        text = message if length == len(message) else message[:length] + "…"
        return _compact({**kept, "error": {**error, "hint": "", "message": text}})

    # the longest prefix that fits; escapes make its size in bytes no simple count
    fitting = bisect_right(range(len(message) + 1), limit, key=lambda length: len(shortened(length)))
    return shortened(max(0, fitting - 1))


def _compact(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
