"""What the web address of a registry names: people copy it from the browser, and NIMCaches hold it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

from nimpull.core.names import ModelUri, Url, display
from nimpull.errors import UsageError

NGC_API: Final = "https://api.ngc.nvidia.com"
HUBS: Final = ("https://huggingface.co", "https://hf.co")
_CATALOG: Final = "https://catalog.ngc.nvidia.com"
#: NGC's REST paths of a model (its API reference, /v2): of an organization, then a guest's.
_OWNER: Final = r"org/(?P<org>[^/]+)(?:/team/(?P<team>[^/]+))?"
_NAME: Final = r"(?P<name>(?!versions(?:/|$))[^/]+)"
_VERSION: Final = r"(?:/versions(?:/(?P<version>[^/]+)(?:/zip|/files(?:/(?P<path>.+))?)?)?)?/?"
_FILES: Final = r"/(?P<version>[^/]+)/files(?P<path>)/?"
_NGC_PATHS: Final = tuple(
    re.compile(pattern)
    for pattern in (
        rf"/v2/{_OWNER}/models/{_NAME}{_VERSION}",
        rf"/v2/{_OWNER}/models/{_NAME}{_FILES}",
        rf"/v2/models/{_OWNER}/{_NAME}{_FILES}",
        rf"/v2/models/(?P<org>[^/]+)(?:/(?P<team>[^/]+))?/{_NAME}{_VERSION}",
    )
)
_CATALOG_PATH: Final = re.compile(
    r"/orgs/(?P<org>[^/]+)(?:/teams/(?P<team>[^/]+))?/models/(?P<name>[^/]+)(?:/.*)?"
)
_HUB_PATH: Final = re.compile(
    r"/(?P<kind>datasets/)?(?P<owner>[^/]+)/(?P<name>[^/]+)"
    r"(?:/(?:tree|resolve|blob)/(?P<revision>[^/]+)(?:/(?P<path>.+))?)?/?"
)


def as_model(uri: ModelUri, *, ngc: Iterable[str] = (), hubs: Iterable[str] = ()) -> ModelUri:
    """An ``http(s)`` address of NGC's API, its catalog or a Hub as ngc:// or hf://; any other URI as it is.

    ``ngc`` and ``hubs``: endpoints that are used beside the public ones. Raises UsageError for an address of
    theirs that names no model.
    """
    if uri.scheme not in ("http", "https"):
        return uri
    address = f"{uri.scheme}://{uri.name}/{uri.location}" + (f"?{uri.query}" if uri.query else "")
    for base in (*ngc, NGC_API):
        if (path := _below(address, base)) is not None:
            return _ngc(path, address)
    if (path := _below(address, _CATALOG)) is not None:
        return _catalog(path, address)
    for base in (*hubs, *HUBS):
        if (path := _below(address, base)) is not None:
            return _hub(path, address)
    return uri


def _below(address: str, base: str) -> str | None:
    """The path of ``address`` below ``base``, None where it is another place. The scheme does not matter."""
    here, there = Url(address), Url(base)
    # Mirrors have the API below a path of their own (Artifactory: /artifactory/api/nimmodel/…).
    prefix = urlsplit(base).path.rstrip("/")
    path = urlsplit(address).path
    if here.authority != there.authority or not path.startswith(f"{prefix}/"):
        return None
    return path.removeprefix(prefix)


def _ngc(path: str, address: str) -> ModelUri:
    for pattern in _NGC_PATHS:
        if found := pattern.fullmatch(path):
            return _named(address, **found.groupdict())
    raise _unknown(address, "https://api.ngc.nvidia.com/v2/models/ORG/TEAM/MODEL/versions/VERSION")


def _catalog(path: str, address: str) -> ModelUri:
    found = _CATALOG_PATH.fullmatch(path)
    if not found:
        raise _unknown(
            address, "https://catalog.ngc.nvidia.com/orgs/ORG/teams/TEAM/models/MODEL?version=VERSION"
        )
    # The catalog's page names the version in its query; without one it is the latest.
    version = parse_qs(urlsplit(address).query).get("version", [None])[0]
    return _named(address, **found.groupdict(), version=version)


def _named(
    address: str, *, org: str, team: str | None, name: str, version: str | None, path: str | None = None
) -> ModelUri:
    names = "/".join(unquote(part) for part in (org, team, name) if part)
    revision = f":{unquote(version)}" if version else ""
    try:
        uri = ModelUri.parse(f"ngc://{names}{revision}")
    except UsageError as error:
        raise _unknown(address, "ngc://org/team/model:version") from error
    return replace(uri, path=unquote(path or ""))


def _hub(path: str, address: str) -> ModelUri:
    found = _HUB_PATH.fullmatch(path)
    try:
        # Pages of the Hub that have the form of a repository's address.
        if found and found["owner"] not in ("api", "datasets", "spaces"):
            name = f"{found['kind'] or ''}{unquote(found['owner'])}/{unquote(found['name'])}"
            uri = ModelUri.parse(f"hf://{name}")
            revision = unquote(found["revision"] or "") or uri.revision
            return replace(uri, revision=revision, path=unquote(found["path"] or ""))
    except UsageError as error:
        raise _unknown(address, "https://huggingface.co/NAMESPACE/NAME") from error
    raise _unknown(address, "https://huggingface.co/NAMESPACE/NAME")


def _unknown(address: str, form: str) -> UsageError:
    return UsageError(
        f"no model that can be pulled has the address {display(Url(address), 300)}",
        hint=f"The form is {form}.",
    )
