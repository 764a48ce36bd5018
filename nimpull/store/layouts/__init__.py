"""Where committed files stand, as their consumers expect them.

``NgcHubLayout``: what a NIM container reads below ``NIM_CACHE_PATH``,
``ngc/hub/models--org--team--model/{blobs/<etag>,refs/<version>,snapshots/<version>/PATH}``.
``HuggingFaceHubLayout``: what huggingface_hub reads as its cache,
``<hub>/{models,datasets}--ns--name/{blobs/<etag>,refs/<revision>,snapshots/<commit>/PATH}``.
``LocalDirLayout``: what ``huggingface-cli download --local-dir`` leaves behind, plain files and
``.cache/huggingface/download/PATH.metadata`` beside them.
``WorkspaceLayout``: plain files at chosen places, for ``create-model-store``.
``NimCacheLayout``: the first two, by the scheme of the artifact.

All answer the same questions, see :class:`StoreLayout`.
"""

from nimpull.store.layouts.base import Found, How, StoredFile, StoreLayout
from nimpull.store.layouts.hub import HuggingFaceHubLayout, NgcHubLayout, NimCacheLayout
from nimpull.store.layouts.plain import LocalDirLayout, WorkspaceLayout

__all__ = [
    "Found",
    "How",
    "HuggingFaceHubLayout",
    "LocalDirLayout",
    "NgcHubLayout",
    "NimCacheLayout",
    "StoreLayout",
    "StoredFile",
    "WorkspaceLayout",
]
