"""What a fetch may use of the machine."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from nimpull.core.limits import FetchLimits
from nimpull.detect.process_limits import cpu_limit, memory_limit, open_files
from nimpull.settings import Settings

CONNECTIONS_PER_CPU: Final = 16  # one verifies what about thirty of a throttled CDN bring


def fetch_limits(settings: Settings) -> FetchLimits:
    """What was asked for, or what the control group's CPU allows, within its memory and the open files.

    Raises LimitError.
    """
    usual, cpus = FetchLimits(), cpu_limit()
    affordable = usual.connections if cpus is None else max(2, int(cpus * CONNECTIONS_PER_CPU))
    small = usual.small_connections // usual.connections * affordable
    limits = replace(
        usual,
        connections=min(usual.connections, affordable),
        small_connections=min(usual.small_connections, small),
        retry_budget=settings.retry_seconds,
    )
    if settings.connections:
        limits = limits.with_most(settings.connections)
    return limits.within(usable_memory(settings)).with_files(open_files())


def usable_memory(settings: Settings) -> int | None:
    """Bytes, by the control group or by what was asked for; None = no limit."""
    limits = (memory_limit(), settings.memory_limit)
    return min((limit for limit in limits if limit is not None), default=None)
