"""The fetch engine: artifacts in, verified and committed files out, with what an earlier run left reused.

Large files are streams, one a connection, hashed while they come; spare connections take segments of the
files in progress. Small files come whole and are committed in groups.
"""

from nimpull.fetch.fetcher import Fetcher
from nimpull.fetch.limits import FetchLimits

__all__ = ["FetchLimits", "Fetcher"]
