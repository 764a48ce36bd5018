"""What a run did, as one value in three sizes: the report file, the termination message, the closing line.

``values`` is what a report holds, ``document`` its JSON, ``sentences`` its words for people, ``termination``
what a pod leaves behind. :mod:`nimpull.wiring.report_writer` writes them down; the contract is
``nimpull/report.schema.json``.
"""

from nimpull.core.report.document import hardware_json, progress_json, to_json, to_text
from nimpull.core.report.sentences import CLOSING_LINE_LIMIT, closing_line, progress_text
from nimpull.core.report.termination import termination_message
from nimpull.core.report.values import (
    CachedProfile,
    Failure,
    ProgressSummary,
    Report,
    Repository,
    SelectionSummary,
    State,
    StoreSummary,
    TransferSummary,
)

__all__ = [
    "CLOSING_LINE_LIMIT",
    "CachedProfile",
    "Failure",
    "ProgressSummary",
    "Report",
    "Repository",
    "SelectionSummary",
    "State",
    "StoreSummary",
    "TransferSummary",
    "closing_line",
    "hardware_json",
    "progress_json",
    "progress_text",
    "termination_message",
    "to_json",
    "to_text",
]
