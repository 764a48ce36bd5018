"""Which source answers for a model URI: built on first use from what the environment says."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

from nimpull.core.names import ModelUri, Url
from nimpull.core.ports import Clock, Source
from nimpull.settings import Settings

if TYPE_CHECKING:
    from nimpull.sources import LocalSource, NimMetadata
    from nimpull.sources.s3 import Sign
    from nimpull.transport import HttpApi


class Registries:
    """``api`` is asked for once a source needs the network."""

    def __init__(self, settings: Settings, clock: Clock, api: Callable[[], HttpApi]) -> None:
        self._settings = settings
        self._clock = clock
        self._api = api

    def source(self, uri: ModelUri) -> Source:
        """NIM_REPOSITORY_OVERRIDE takes the place of both registries."""
        match uri.scheme:
            case "ngc" | "hf" if self._settings.repository_override:
                return self._mirror
            case "ngc":
                return self._ngc
            case "hf":
                return self._hub_source
            case "s3" | "gs" as scheme:
                return self._s3 if scheme == "s3" else self._gs
            case "https" | "http":
                return self._web
        return self.local

    def endpoint(self, uri: ModelUri) -> str:
        """Of the registry that answers for ``uri``, without a secret; "" where the URI says it all.

        Two registries may have other files under one name: a store is complete for one of them.
        """
        settings = self._settings
        override = settings.repository_override if uri.scheme in ("ngc", "hf") else ""
        named = {
            "ngc": settings.ngc_api,
            "hf": settings.hf_endpoint,
            "s3": settings.s3_endpoint,
            "gs": self._gs_endpoint,
        }
        address = override or named.get(uri.scheme, "")
        shown = str(Url(address.rstrip("/"))) if address else ""
        # a bucket's name says which one only together with the server that it is asked of
        bucket = shown.lower().startswith("s3:") and settings.s3_endpoint
        return f"{shown} at {Url(settings.s3_endpoint.rstrip('/'))}" if bucket else shown

    @cached_property
    def _ngc(self) -> Source:
        from nimpull.sources import NgcSource

        settings = self._settings
        return NgcSource(
            self._api(),
            api_endpoint=Url(settings.ngc_api),
            auth_endpoint=Url(settings.ngc_auth),
            key=settings.ngc_key,
            clock=self._clock,
        )

    @cached_property
    def _mirror(self) -> Source:
        from nimpull.sources import MirrorSource

        override = self._settings.repository_override
        scheme = override.partition("://")[0].lower()
        return MirrorSource(self._api(), override=override, sign=self._sign if scheme == "s3" else None)

    def _signer(self, endpoint: str, region: str) -> Sign:
        from nimpull.sources import boto_signer

        # boto3 takes one bundle, in place of the system's
        return boto_signer(endpoint, region, self._api().network.authorities.path)

    @cached_property
    def _sign(self) -> Sign:
        return self._signer(self._settings.s3_endpoint, self._settings.s3_region)

    @cached_property
    def _s3(self) -> Source:
        from nimpull.sources import S3Source

        return S3Source(self._api(), sign=self._sign)

    @property
    def _gs_endpoint(self) -> str:
        """Google Cloud Storage's XML API, which takes S3's requests, signed with an HMAC key."""
        return self._settings.s3_endpoint or "https://storage.googleapis.com"

    @cached_property
    def _gs(self) -> Source:
        from nimpull.sources import S3Source

        region = self._settings.s3_region or "auto"  # it has none
        return S3Source(self._api(), sign=self._signer(self._gs_endpoint, region))

    @cached_property
    def _web(self) -> Source:
        from nimpull.sources import WebSource

        return WebSource(self._api())

    @cached_property
    def _hub_source(self) -> Source:
        from nimpull.sources import HubSource

        settings = self._settings
        return HubSource(
            self._api(), endpoint=Url(settings.hf_endpoint), token=settings.hf_token, clock=self._clock
        )

    @cached_property
    def metadata(self) -> NimMetadata:
        from nimpull.sources import NimMetadata

        return NimMetadata(self._api(), Url(self._settings.ngc_api))

    @cached_property
    def local(self) -> LocalSource:
        from nimpull.sources import LocalSource

        return LocalSource()
