"""The fetch engine: artifacts in, verified and committed files out, with what an earlier run left reused.

Large files come in segments and are hashed while they come. Small files come whole and are committed in
groups.
"""

from nimpull.core.limits import FetchLimits
from nimpull.fetch.fetcher import Batch, Fetcher

__all__ = ["Batch", "FetchLimits", "Fetcher"]
