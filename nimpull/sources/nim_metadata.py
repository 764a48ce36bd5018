"""NIM's metadata service: what a published NIM needs, asked without a key and without its image."""

from __future__ import annotations

from urllib.parse import urlencode

from nimpull.core.names import Url, display
from nimpull.core.ports import Api
from nimpull.core.published_profiles import PublishedProfile, parse_metadata
from nimpull.sources.answers import common_refusal, read_json


class NimMetadata:
    """``GET /v2/nim/metadata?resourceId=…&tag=…`` of NGC's API. Thread-safe."""

    def __init__(self, api: Api, endpoint: Url) -> None:
        self._api = api
        self._base = endpoint.reveal().rstrip("/")

    def profiles(self, resource: str, tag: str) -> tuple[PublishedProfile, ...] | None:
        """None where the service does not know this NIM (404), as is normal for older ones. Raises
        NetworkError, ListingError and the like."""
        query = urlencode({"resourceId": resource, "tag": tag}, safe="/")
        url = Url(f"{self._base}/v2/nim/metadata?{query}")
        reply = self._api.request("GET", url, headers={"Accept": "application/json"})
        if reply.status == 404:
            return None
        if reply.status != 200:
            raise common_refusal(reply, f"metadata of {display(resource, 200)}:{display(tag, 80)}", "")
        return parse_metadata(read_json(reply))
