"""JSON lines, for programs that read along: every event but bytes, and ``progress`` once per interval."""

from __future__ import annotations

import json
from typing import Any

from nimpull.core.events import Event, Finished, Note, Phase, Planned, Waiting
from nimpull.core.names import display
from nimpull.core.report import progress_json
from nimpull.core.units import show_time
from nimpull.progress.stream import TextStream
from nimpull.progress.updates import Update, View


class JsonLines(View):
    """One JSON object a line."""

    def __init__(self, stream: TextStream) -> None:
        self._stream = stream

    def show(self, update: Update) -> None:
        records = [(time, _record(event)) for time, event in update.events]
        # Where the gap is: before what came after it.
        if update.dropped:
            records.insert(0, (update.time, {"event": "dropped", "lines": update.dropped}))
        if update.due or update.last:
            records.append((update.time, {"event": "progress", **progress_json(update.progress)}))
        objects = ({"time": show_time(time), **record} for time, record in records)
        self._stream.write("".join(json.dumps(each, separators=(",", ":")) + "\n" for each in objects))


def _record(event: Event) -> dict[str, Any]:
    match event:
        case Phase(name, detail):
            return {"event": "phase", "phase": display(name), "detail": display(detail)}
        case Planned(files, total, present, files_present):
            return {
                "event": "planned",
                "files": files,
                "bytesTotal": total,
                "bytesPresent": present,
                "filesPresent": files_present,
            }
        case Finished(outcome):
            return {
                "event": "finished",
                "path": display(outcome.artifact.path, 1024),
                "action": outcome.action.value,
                "size": outcome.size,
                "bytesFetched": outcome.fetched,
                "seconds": round(outcome.seconds, 3),
                "verifiedBy": display(outcome.verified),
            }
        case Waiting(reason, seconds):
            return {"event": "waiting", "reason": display(reason), "seconds": round(seconds, 3)}
        case Note(text, level):
            return {"event": "note", "level": display(level), "text": display(text, 2000)}
        case _:
            return {}
