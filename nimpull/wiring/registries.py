"""Which source answers for a model URI: built on first use from what the environment says."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nimpull.core.names import ModelUri, Url
from nimpull.core.ports import Clock, Source
from nimpull.settings import Settings

if TYPE_CHECKING:
    from nimpull.sources.s3 import Sign
    from nimpull.transport import HttpApi


class Registries:
    """``api`` is asked for once a source needs the network."""

    def __init__(self, settings: Settings, clock: Clock, api: Callable[[], HttpApi]) -> None:
        self._settings = settings
        self._clock = clock
        self._api = api
        self._made: dict[str, Source] = {}

    def source(self, uri: ModelUri) -> Source:
        """NIM_REPOSITORY_OVERRIDE takes the place of both registries."""
        mirrored = self._settings.repository_override and uri.scheme in ("ngc", "hf")
        kind = "mirror" if mirrored else uri.scheme
        if kind not in self._made:
            self._made[kind] = self._make(kind)
        return self._made[kind]

    def _make(self, kind: str) -> Source:
        """``kind``: a scheme, or "mirror". A source is imported where it is wanted: all take 40 ms."""
        if kind == "file":
            from nimpull.sources.local import LocalSource

            return LocalSource()  # without the API: a directory needs no TLS
        settings, api = self._settings, self._api()
        match kind:
            case "mirror":
                from nimpull.sources.repository_override import MirrorSource

                override = settings.repository_override
                signed = override.partition("://")[0].lower() == "s3"
                return MirrorSource(api, override=override, sign=self._signer("s3") if signed else None)
            case "ngc":
                from nimpull.sources.ngc import NgcSource

                return NgcSource(
                    api,
                    api_endpoint=Url(settings.ngc_api),
                    auth_endpoint=Url(settings.ngc_auth),
                    key=settings.ngc_key,
                    clock=self._clock,
                )
            case "hf":
                from nimpull.sources.huggingface import HubSource

                endpoint = Url(settings.hf_endpoint)
                return HubSource(api, endpoint=endpoint, token=settings.hf_token, clock=self._clock)
            case "s3" | "gs":
                from nimpull.sources.s3 import S3Source

                return S3Source(api, sign=self._signer(kind))
        from nimpull.sources.web import WebSource

        return WebSource(api)

    def _signer(self, scheme: str) -> Sign:
        from nimpull.sources.aws import boto_signer

        settings = self._settings
        endpoint, region = settings.s3_endpoint, settings.s3_region
        if scheme == "gs":
            endpoint, region = self._gs_endpoint, region or "auto"  # it has none
        # boto3 takes one bundle, in place of the system's
        return boto_signer(endpoint, region, self._api().network.authorities.path)

    @property
    def _gs_endpoint(self) -> str:
        """Google Cloud Storage's XML API, which takes S3's requests, signed with an HMAC key."""
        return self._settings.s3_endpoint or "https://storage.googleapis.com"

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
