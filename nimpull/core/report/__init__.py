"""What a run did, as one value in three sizes: the report file, the termination message, the closing line.

``contents`` is what a report holds, ``document`` its JSON, ``sentences`` its
words for people, ``termination`` what a pod leaves behind. :mod:`nimpull.wiring.report_writer` writes them
down; the contract is ``nimpull/report.schema.json``.
"""

from nimpull.core.report.contents import (
    Failure,
    MirrorSummary,
    Pause,
    PhaseSpan,
    PodShare,
    ProgressSummary,
    RateLine,
    Report,
    Repository,
    SelectionSummary,
    State,
    StoreSummary,
    Timeline,
    TransferSummary,
    seconds_by_phase,
)
from nimpull.core.report.document import artifact_rows, hardware_json, progress_json, to_bytes
from nimpull.core.report.sentences import CLOSING_LINE_LIMIT, closing_line, progress_text
from nimpull.core.report.termination import termination_message

__all__ = [
    "CLOSING_LINE_LIMIT",
    "Failure",
    "MirrorSummary",
    "Pause",
    "PhaseSpan",
    "PodShare",
    "ProgressSummary",
    "RateLine",
    "Report",
    "Repository",
    "SelectionSummary",
    "State",
    "StoreSummary",
    "Timeline",
    "TransferSummary",
    "artifact_rows",
    "closing_line",
    "hardware_json",
    "progress_json",
    "progress_text",
    "seconds_by_phase",
    "termination_message",
    "to_bytes",
]
