"""Model URIs to listings, artifacts to places: NGC, the Hub and DataStore, a mirror, a directory."""

from nimpull.sources.huggingface import HubSource
from nimpull.sources.local import LocalSource
from nimpull.sources.mirror import MirrorSource
from nimpull.sources.ngc import NgcSource

__all__ = ["HubSource", "LocalSource", "MirrorSource", "NgcSource"]
