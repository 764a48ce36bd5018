"""A NIMCache file read: the one object of that kind, and what its spec says beside the source."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from nimpull.core.names import Url, display
from nimpull.core.nimcache.fields import Fields, refuse
from nimpull.core.nimcache.source import parse_source
from nimpull.core.nimcache.values import VARIABLE, EnvVariable, NimCache, Proxy
from nimpull.core.units import parse_quantity
from nimpull.core.yamltext import load_yaml
from nimpull.errors import UsageError

KIND: Final = "NIMCache"
GROUP: Final = "apps.nvidia.com/"
MAX_BYTES: Final = 2 << 20  # an object in etcd is 1.5 MiB at most
MAX_DOCUMENTS: Final = 200
_DOCUMENT: Final = re.compile(rb"^---(?=\s|$)", re.MULTILINE)
_ACCESS_MODES: Final = ("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod")
#: What the webhook takes in spec.proxy.noProxy: a host or domain suffix, an address with port, a network.
_NO_PROXY: Final = re.compile(
    r"\.?[a-zA-Z0-9.-]+|(\d{1,3}\.){3}\d{1,3}(:\d+|/\d{1,2})?|\[[0-9a-fA-F:]+\](:\d+|/\d{1,3})?"
)
#: Every field of spec, so that a misspelt one can be told.
_SPEC: Final = (
    "source",
    "storage",
    "resources",
    "tolerations",
    "nodeSelector",
    "userID",
    "groupID",
    "certConfig",
    "env",
    "runtimeClassName",
    "proxy",
    "initContainers",
)


def parse_nimcache(data: bytes) -> NimCache:
    """The one NIMCache in a YAML or JSON file; other documents beside it are passed over.

    Raises UsageError with the field and the rule, in the API server's words where it has a rule.
    """
    document = _the_nimcache(data)
    notes: list[str] = []
    root = Fields(document, "", notes)
    metadata = root.section("metadata")
    spec = root.section("spec", required=True)
    spec.known(_SPEC)
    if spec.has("certConfig"):
        refuse(
            "spec.certConfig",
            "Deprecated field 'CertConfig' is used. Please migrate to 'Proxy' field on NIMCache.",
            "Name the ConfigMap in spec.proxy.certConfigMap.",
        )
    metadata.check("name", "namespace")
    for number in ("userID", "groupID"):
        spec.integer(number)
    return NimCache(
        source=parse_source(spec.section("source", required=True)),
        room=_room(spec.section("storage")),
        env=_env(spec.sections("env")),
        proxy=_proxy(spec.section("proxy")) if spec.has("proxy") else None,
        notes=tuple(notes),
    )


def _the_nimcache(data: bytes) -> Mapping[str, object]:
    if len(data) > MAX_BYTES:
        raise UsageError(f"a NIMCache file of {len(data)} bytes is over the limit of {MAX_BYTES} bytes")
    parts = _DOCUMENT.split(data)
    if len(parts) > MAX_DOCUMENTS:
        raise UsageError(f"more than {MAX_DOCUMENTS} YAML documents in one file")
    found = []
    for before, part in enumerate(parts):
        # blank lines in front keep the line numbers of the whole file in messages
        lines = sum(earlier.count(b"\n") for earlier in parts[:before])
        loaded: object = load_yaml(b"\n" * lines + part, what="NIMCache file", error=UsageError)
        if isinstance(loaded, dict) and loaded.get("kind") == KIND:
            found.append(loaded)
    if len(found) != 1:
        raise UsageError(
            f"the file holds {len(found) or 'no'} NIMCache{'s' if found else ''}",
            hint=f"Give a file with exactly one object of kind: {KIND}.",
        )
    version = found[0].get("apiVersion")
    if not isinstance(version, str) or not version.startswith(GROUP):
        raise UsageError(f"apiVersion: Invalid value: “{display(version, 80)}” is not {GROUP}v1alpha1")
    return found[0]


def _room(storage: Fields) -> int | None:
    storage.known(("pvc", "hostPath"))
    storage.check("hostPath")
    pvc = storage.section("pvc")
    pvc.check("name")
    pvc.known(("create", "name", "storageClass", "size", "volumeAccessMode", "subPath", "annotations"))
    if not storage.has("pvc") and not storage.has("hostPath"):
        storage.note_refusal("NIMCache.Spec.Storage must not be empty")
    if pvc.boolean("create") is False and not pvc.text("name"):
        pvc.note_refusal("NIMCache.Spec.Storage.PVC.Name must be defined when PVC.Create is false")
    mode = pvc.text("volumeAccessMode")
    if mode and mode not in _ACCESS_MODES:
        pvc.note_refusal(
            "NIMCache.Spec.Storage.PVC.VolumeAccessMode must be "
            "'ReadWriteOnce', 'ReadOnlyMany', or 'ReadWriteMany'"
        )
    sub_path = pvc.text("subPath")
    if sub_path.startswith("/") or ".." in sub_path.split("/") or "\0" in sub_path:
        refuse(pvc.at("subPath"), "Invalid value: must be a relative path and must not contain '..'")
    if not pvc.text("size"):
        return None
    try:
        return parse_quantity(pvc.text("size"))
    except ValueError as error:
        refuse(pvc.at("size"), f"Invalid value: “{display(pvc.text('size'), 60)}” is {error}")


def _env(entries: tuple[Fields, ...]) -> tuple[EnvVariable, ...]:
    variables: list[EnvVariable] = []
    for entry in entries:
        entry.known(("name", "value", "valueFrom"))
        name = entry.text("name")
        if not name:
            refuse(entry.at("name"), "Required value")
        if "=" in name or "\0" in name or "\0" in entry.text("value"):
            refuse(entry.at("name"), "Invalid value: a valid environment variable name must not contain '='")
        reference = ""
        if entry.has("valueFrom"):
            reference = _reference(entry.section("valueFrom"))
            entry.notes.append(
                f"{name} comes from {reference} in the cluster; here, set it in the environment"
            )
        value = entry.text("value")
        earlier = {variable.name for variable in variables}
        entry.notes.extend(
            f"{name}: $({display(found[2], 80)}) stays as it is, no earlier entry of spec.env has that name"
            for found in VARIABLE.finditer(value)
            if found[1] != "$" and found[2] not in earlier
        )
        variables.append(EnvVariable(name, value, reference))
    return tuple(variables)


def _reference(origin: Fields) -> str:
    for name, noun in (("secretKeyRef", "secret"), ("configMapKeyRef", "config map")):
        if origin.has(name):
            target = origin.section(name)
            return f"{noun} {display(target.text('name'), 100)}, key {display(target.text('key'), 100)}"
    return "a field of the pod"


def _proxy(proxy: Fields) -> Proxy:
    proxy.known(("httpProxy", "httpsProxy", "noProxy", "certConfigMap"))
    proxy.check("certConfigMap")
    for name, go_name in (("httpsProxy", "HttpsProxy"), ("httpProxy", "HttpProxy")):
        if proxy.text(name) and not re.match(r"https?://", proxy.text(name)):
            refuse(proxy.at(name), f"Proxy.{go_name} must start with http:// or https://")
    for token in proxy.text("noProxy").split(","):
        if token.strip() and not _NO_PROXY.fullmatch(token.strip()):
            refuse(proxy.at("noProxy"), f'invalid NO_PROXY token: "{display(token.strip(), 120)}"')
    http, https = proxy.text("httpProxy"), proxy.text("httpsProxy")
    return Proxy(
        http=Url(http) if http else None,
        https=Url(https) if https else None,
        no_proxy=proxy.text("noProxy"),
    )
