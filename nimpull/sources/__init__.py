"""Model URIs to listings, artifacts to places: NGC, the Hub, DataStore, S3, web servers, a directory."""

from nimpull.sources.aws import boto_signer
from nimpull.sources.huggingface import HubSource
from nimpull.sources.local import LocalSource
from nimpull.sources.ngc import NgcSource
from nimpull.sources.nim_metadata import NimMetadata
from nimpull.sources.repository_override import MirrorSource
from nimpull.sources.s3 import S3Source
from nimpull.sources.web import WebSource

__all__ = [
    "HubSource",
    "LocalSource",
    "MirrorSource",
    "NgcSource",
    "NimMetadata",
    "S3Source",
    "WebSource",
    "boto_signer",
]
