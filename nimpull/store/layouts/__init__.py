"""Where committed files stand, as their consumers expect them; all answer as :class:`StoreLayout` says.

``HubLayout``: what a NIM container reads below ``NIM_CACHE_PATH``,
``ngc/hub/models--org--team--model/{blobs/<etag>,refs/<version>,snapshots/<version>/PATH}``, and what
huggingface_hub reads as its cache,
``<hub>/{models,datasets}--ns--name/{blobs/<etag>,refs/<revision>,snapshots/<commit>/PATH}``.
``LocalDirLayout``: what ``huggingface-cli download --local-dir`` leaves behind, plain files and
``.cache/huggingface/download/PATH.metadata`` beside them.
``WorkspaceLayout``: plain files at chosen places, for ``create-model-store``.
"""

from nimpull.store.layouts.base import Found, FoundBy, StoreLayout
from nimpull.store.layouts.hub import HubLayout
from nimpull.store.layouts.plain import LocalDirLayout, WorkspaceLayout

__all__ = [
    "Found",
    "FoundBy",
    "HubLayout",
    "LocalDirLayout",
    "StoreLayout",
    "WorkspaceLayout",
]
