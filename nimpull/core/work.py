"""How the files of a pull are cut into units of work, so that any number of pods share them.

Every pod cuts alike, also one that wants other files of the same model: the unit of a file follows from its
identity alone. A large file is a unit of its own; the small files of a repository at one revision fall into a
fixed number of bundles, by a hash of their names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from nimpull.core.artifacts import Artifact

LARGE: Final = 1 << 20  # bytes: from here on a file takes longer than its claim, also on a slow volume
#: Bundles of small files in one repository: enough for ten pods, few enough that claiming all of them
#: costs one pod a tenth of a second on a network volume.
BUNDLES: Final = 32
_GOLDEN: Final = 0.618033988749895  # multiples of it, modulo 1, spread evenly however many there are


@dataclass(frozen=True, slots=True)
class WorkUnit:
    """``name``: 32 hex digits, by which all pods know it; ``artifacts``: those of it that this run wants."""

    name: str
    artifacts: tuple[Artifact, ...]

    @property
    def size(self) -> int:
        """Bytes, as far as the listing says."""
        return sum(artifact.size or 0 for artifact in self.artifacts)


def units_of(artifacts: Iterable[Artifact]) -> tuple[WorkUnit, ...]:
    """The largest first: what is begun last must not be what takes longest."""
    units: dict[str, list[Artifact]] = {}
    for artifact in artifacts:
        units.setdefault(_unit_name(artifact), []).append(artifact)
    found = (WorkUnit(name, tuple(those)) for name, those in units.items())
    # The name decides between equals, so that all pods have one order.
    return tuple(sorted(found, key=lambda unit: (-unit.size, unit.name)))


def _unit_name(artifact: Artifact) -> str:
    identity = artifact.identity
    # A file of unknown size may be large: it is a unit of its own.
    if artifact.size is not None and artifact.size < LARGE:
        bundle = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:4]) % BUNDLES
        identity = f"{artifact.uri.repo} bundle {bundle} of {BUNDLES}"
    return hashlib.sha256(identity.encode()).hexdigest()[:32]


def from_place(units: Sequence[WorkUnit], pod: str, index: int | None) -> tuple[WorkUnit, ...]:
    """The same units, beginning where this pod begins: pods that start together meet few claims of others.

    ``index``: of the pod in its Job (``JOB_COMPLETION_INDEX``), None = not said: then its name decides.
    """
    if index is None:
        fraction = int.from_bytes(hashlib.sha256(pod.encode()).digest()[:4]) / (1 << 32)
    else:
        # Not index / count: how many pods there will be is not known.
        fraction = index * _GOLDEN % 1
    start = int(fraction * len(units))
    return (*units[start:], *units[:start])
