"""Model URIs to listings, artifacts to places: NGC, the Hugging Face Hub and DataStore, a directory."""

from nimpull.sources.huggingface import HubSource
from nimpull.sources.local import LocalSource
from nimpull.sources.ngc import NgcSource

__all__ = ["HubSource", "LocalSource", "NgcSource"]
