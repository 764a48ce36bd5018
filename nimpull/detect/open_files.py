"""How many files and sockets this process may have open."""

from __future__ import annotations

import resource
from contextlib import suppress


def open_files() -> int | None:
    """The limit, raised from the soft to the hard one where that may be; None = there is none (getrlimit(2)).

    The soft limit is kept low for select(2), which is not used here on descriptors of files and connections.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # more than the kernel grants
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return None if soft == resource.RLIM_INFINITY else soft
