"""nimpull with tiny limits, so that a repository of a megabyte takes every step of a large one."""

from __future__ import annotations

from functools import partial

import nimpull.core.limits
import nimpull.store.ingest
import nimpull.wiring.fetch_limits
from nimpull.__main__ import main

SMALL = 8 << 10  # bytes; files above are fetched in segments
SEGMENT = 32 << 10  # bytes of one, and of what one line of the journal covers
CONNECTIONS = 2
AHEAD = 2  # blocks that wait for the file's hash
#: Bytes that a kill may cost: segments on their way, ahead of the hash, and after the journal's last line.
IN_FLIGHT = (CONNECTIONS + AHEAD + 1) * SEGMENT
BATCH = 10  # small files of one commit: some are synced one by one, some by one call for all
FLUSH = 0.3  # seconds between two flushes of what is journaled

if __name__ == "__main__":
    limits = partial(
        nimpull.core.limits.FetchLimits,
        connections=CONNECTIONS,
        start=CONNECTIONS,
        chunk=SEGMENT,
        journal=SEGMENT,
        pool=AHEAD << 20,
        small=SMALL,
        batch_files=BATCH,
    )
    setattr(nimpull.wiring.fetch_limits, "FetchLimits", limits)  # noqa: B010 - to mypy a class is not for replacing
    setattr(nimpull.store.ingest, "FLUSH_INTERVAL", FLUSH)  # noqa: B010 - it is Final
    main()
