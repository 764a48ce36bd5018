"""nimpull with claims that expire within seconds, as if it ran on the node that ``NODE`` names."""

from __future__ import annotations

import os
from typing import Any

import nimpull.store.claims
import nimpull.store.presence
import nimpull.store.sharing
import nimpull.wiring.report_writer
from nimpull.__main__ import main

EXPIRY = 2.0  # seconds

if __name__ == "__main__":
    quick: tuple[tuple[Any, str, object], ...] = (
        (nimpull.store.presence, "EXPIRY", EXPIRY),
        (nimpull.store.presence, "RENEWAL", EXPIRY / 5),
        (nimpull.store.presence, "_FRESH", EXPIRY / 20),
        (nimpull.store.presence, "this_process", lambda: f"{os.environ['NODE']}:1:{os.getpid()}:1"),
        (nimpull.store.sharing, "POLL", EXPIRY / 20),
        (nimpull.wiring.report_writer, "INTERVAL", 0.2),
    )
    for module, name, value in quick:
        if not hasattr(module, name):
            raise AttributeError(f"{module.__name__} has no {name}")
        setattr(module, name, value)
    main()
