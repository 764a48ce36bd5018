"""Shows a run while it happens: a bar on a terminal, a line per interval in a pod's log, or JSON lines.

The fetch workers call :class:`Progress` once per block written; that call only counts. A thread of its own
writes, so that a slow reader of the log, or one that went away, never holds up the download.
"""

from nimpull.progress.shown import Mode, Progress, choose_mode

__all__ = ["Mode", "Progress", "choose_mode"]
