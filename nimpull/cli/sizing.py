"""Ask the sources for the sizes of profiles, and the store for what it has of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nimpull.cli.options import placed
from nimpull.cli.running import quiet_edges
from nimpull.core.artifacts import Artifact, Listing
from nimpull.core.manifest import Profile
from nimpull.core.names import ModelUri
from nimpull.core.plan import completed, distinct, needs_of, resolved
from nimpull.core.request import Request
from nimpull.core.sizes import Sizes
from nimpull.errors import ManifestError, NimpullError, SourceError, StoreError, TransferError, UsageError
from nimpull.settings import Settings

if TYPE_CHECKING:
    from nimpull.wiring.edges import Edges


def ask_sizes(profiles: Sequence[Profile], store: str, settings: Settings) -> Sizes:
    """What cannot be had is a note, not an error: the profiles can be listed without. Raises Cancelled."""
    with quiet_edges(placed(Request(store=store, dry_run=True), settings), settings) as edges:
        return _ask(profiles, edges)


def _ask(profiles: Sequence[Profile], edges: Edges) -> Sizes:
    causes: list[NimpullError] = []
    readable = _readable(profiles, causes)
    needs = needs_of(readable)
    listings: dict[ModelUri, Listing] = {}
    for uri, wanted in needs.repositories.items():
        try:
            listings[uri] = edges.list(uri, wanted, {})
        except (SourceError, UsageError) as error:  # this repository; another may answer
            causes.append(error)
        except TransferError as error:  # the way there: every other would wait as long for the same
            causes.append(error)
            break
    missing: list[Artifact] | None = None
    try:
        promised, volume = resolved(needs.promised, listings), edges.volume
        # With the manifest's digests, as a pull has them: the store is asked for the same files.
        complete = [
            completed(each, promised, edges.registries.endpoint(uri)) for uri, each in listings.items()
        ]
        layout = volume.places({}).first
        missing = [each for each in distinct(complete) if not (volume.exists and layout.committed(each))]
    except StoreError as error:
        causes.append(error)
    return Sizes.of(readable, listings, missing, _note(causes))


def _readable(profiles: Sequence[Profile], causes: list[NimpullError]) -> tuple[Profile, ...]:
    """Those whose files all have a source; ``causes`` gets what is wrong with the others."""
    readable = []
    for profile in profiles:
        try:
            needs_of((profile,))
        except ManifestError as error:
            causes.append(error)
        else:
            readable.append(profile)
    return tuple(readable)


def _note(causes: Sequence[NimpullError]) -> str:
    if not causes:
        return ""
    first = causes[0]
    more = f" (and {len(causes) - 1} more)" if len(causes) > 1 else ""
    return f"Some sizes are unknown: {first.reference}: {first.message}{more}. {first.hint}".strip()
