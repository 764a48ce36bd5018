"""A NIMCache file read: the one object of that kind, checked by its CRD, and what it means for a pull."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NoReturn

from nimpull.core.criteria import YAML_TRUE, Criteria
from nimpull.core.names import ModelUri, Url, display
from nimpull.core.nimcache.schema import UNKNOWN, Finding, check
from nimpull.core.nimcache.values import VARIABLE, EnvVariable, HubRepository, NgcModels, NimCache
from nimpull.core.units import parse_quantity
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

#: An object of a document that passed :func:`nimpull.core.nimcache.schema.check`; None stands for no field.
Object = Mapping[str, Any]


def parse_nimcache(data: bytes, *, lenient: bool = False) -> NimCache:
    """The one NIMCache in a YAML or JSON file; other documents beside it are passed over.

    Raises UsageError for what the CRD refuses, in the API server's words. ``lenient``: unknown fields, and
    required ones that a pull here can do without, are notes. What only the operator's webhook refuses, which
    a cluster may have or not, is a note always.
    """
    document = _the_nimcache(data)
    notes: list[str] = []
    # a misspelt field is the cause of a missing one
    findings = sorted([*check(document), *_unnamed(document)], key=lambda each: each.rule != UNKNOWN)
    if lenient:
        notes += (f"{finding}. {finding.hint}".rstrip(". ") for finding in findings if finding.pardonable)
        findings = [finding for finding in findings if not finding.pardonable]
    spec = document.get("spec") or {}
    # Rules over fields that are missing or of the wrong type would only repeat what was found.
    if not findings:
        findings = list(_rules(spec.get("source") or {}))
    if findings:
        _refuse(findings)
    notes += (f"the operator's webhook would refuse this NIMCache: {rule}" for rule in _webhook(spec))
    return NimCache(
        source=_source(spec["source"], notes),
        room=_room((spec.get("storage") or {}).get("pvc") or {}, notes),
        env=_env(spec.get("env") or (), notes),
        proxy=_proxy(spec["proxy"]) if spec.get("proxy") is not None else None,
        notes=tuple(notes),
    )


def _unnamed(document: Object) -> Iterator[Finding]:
    metadata = document.get("metadata") or {}
    if isinstance(metadata, dict) and not _given(metadata, "name", "generateName"):
        yield Finding("metadata.name", "Required value", pardonable=True)


def _refuse(findings: Sequence[Finding]) -> NoReturn:
    first, *others = findings
    more = f" (and {len(others)} more: {', '.join(each.path for each in others[:5])})" if others else ""
    hint = first.hint or f"Correct {first.path} in the NIMCache; the cluster would refuse it too."
    pardon = " With --lenient it is only told." if first.pardonable else ""
    raise UsageError(f"{first}{more}", hint=f"{hint}{pardon}")


def _the_nimcache(data: bytes) -> Object:
    if len(data) > MAX_BYTES:
        raise UsageError(f"a NIMCache file of {len(data)} bytes is over the limit of {MAX_BYTES} bytes")
    from nimpull.core.yamltext import load_yaml

    # Split here, because the reader takes the first document of a text, and errors must name the line of the
    # file.
    parts = _DOCUMENT.split(data)
    if len(parts) > MAX_DOCUMENTS:
        raise UsageError(f"more than {MAX_DOCUMENTS} YAML documents in one file")
    found = []
    for before, part in enumerate(parts):
        # blank lines in front keep the line numbers of the whole file in messages
        lines = sum(earlier.count(b"\n") for earlier in parts[:before])
        loaded: object = load_yaml(b"\n" * lines + part, what="NIMCache file", error=UsageError, plain=True)
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


# -- rules over several fields -----------------------------------------------------------------------------


def _given(parent: Object, *names: str) -> tuple[str, ...]:
    return tuple(name for name in names if parent.get(name) is not None)


def _rules(source: Object) -> Iterator[Finding]:
    """The CRD's rules in CEL, and what no pull can do without even where it is pardoned."""
    of = _given(source, "ngc", "dataStore", "hf")
    if len(of) != 1:
        hint = f"This NIMCache defines {' and '.join(of) or 'none of them'}."
        yield _broken("spec.source", "Exactly one of ngc, dataStore, or hf must be defined", hint)
        return
    path, body = f"spec.source.{of[0]}", source[of[0]]
    if of == ("ngc",):
        if len(_given(body, "model", "modelEndpoint")) == 2:
            yield _broken(path, "Only one of 'model' or 'modelEndpoint' can be specified")
        return
    if len(_given(body, "modelName", "datasetName")) != 1:
        yield _broken(path, "Exactly one of modelName or datasetName must be defined")
    for name in ("endpoint", *(("namespace",) if of == ("hf",) else ())):
        if not body.get(name):
            yield Finding(f"{path}.{name}", "Required value")


def _broken(path: str, rule: str, hint: str = "") -> Finding:
    return Finding(path, f'Invalid value: "object": {rule}', hint)


def _webhook(spec: Object) -> Iterator[str]:
    """What the operator's admission webhook refuses beyond the CRD; it is not installed everywhere."""
    yield from _webhook_ngc((spec.get("source") or {}).get("ngc") or {})
    storage = spec.get("storage") or {}
    pvc = storage.get("pvc") or {}
    if not _given(storage, "pvc", "hostPath"):
        yield "spec.storage must not be empty"
    if pvc.get("create") is not None and pvc["create"].lower() not in YAML_TRUE and not pvc.get("name"):
        yield "spec.storage.pvc.name must be defined when create is false"
    if (pvc.get("volumeAccessMode") or _ACCESS_MODES[0]) not in _ACCESS_MODES:
        yield f"spec.storage.pvc.volumeAccessMode must be one of {', '.join(_ACCESS_MODES)}"
    if spec.get("certConfig") is not None:
        yield "spec.certConfig is deprecated; name the ConfigMap in spec.proxy.certConfigMap"
    proxy = spec.get("proxy") or {}
    for name in _given(proxy, "httpsProxy", "httpProxy"):
        if not re.match(r"https?://|$", proxy[name]):
            yield f"spec.proxy.{name} must start with http:// or https://"
    for token in (proxy.get("noProxy") or "").split(","):
        if token.strip() and not _NO_PROXY.fullmatch(token.strip()):
            yield f'spec.proxy.noProxy: invalid NO_PROXY token: "{display(token.strip(), 120)}"'


def _webhook_ngc(ngc: Object) -> Iterator[str]:
    for name in ("authSecret", "modelPuller"):
        if ngc.get(name) == "":
            yield f"spec.source.ngc.{name}: Required value"
    model = ngc.get("model") or {}
    profiles = model.get("profiles") or ()
    if "all" in profiles and len(profiles) != 1:
        yield "spec.source.ngc.model.profiles must only have a single entry when it contains 'all'"
    if profiles and any(model[name] for name in model if name != "profiles"):
        yield "the rest of spec.source.ngc.model must be empty when profiles is defined"
    if (model.get("qosProfile") or "latency") not in ("latency", "throughput"):
        yield "spec.source.ngc.model.qosProfile must be 'latency', 'throughput', or empty"


# -- values ------------------------------------------------------------------------------------------------


def _source(source: Object, notes: list[str]) -> NgcModels | HubRepository:
    ngc: Object | None = source.get("ngc")
    if ngc is not None:
        endpoint = ngc.get("modelEndpoint")
        return NgcModels(
            criteria=Criteria.from_model_spec(ngc.get("model") or {}),
            endpoint=ModelUri.parse(endpoint) if endpoint else None,
        )
    # _rules has made sure that there is exactly one.
    name = "dataStore" if source.get("hf") is None else "hf"
    hub: Object = source[name]
    namespace, revision = hub.get("namespace"), hub.get("revision") or ""
    if namespace == "":
        notes.append(f'spec.source.{name}.namespace is empty: "default" is taken')
    owner = f"{'' if hub.get('datasetName') is None else 'datasets/'}{namespace or 'default'}"
    repository = hub.get("modelName") or hub.get("datasetName") or ""
    uri = ModelUri.parse(f"hf://{owner}/{repository}{f':{revision}' if revision else ''}")
    # What the fields hold is put into a URI: a name with "@", "/" or "?" in it would be another repository.
    if (uri.org, uri.name, uri.revision) != (namespace or "default", repository, revision or "main"):
        rule = f"“{display(repository, 120)}” is no repository, or no such revision"
        _refuse([Finding(f"spec.source.{name}", rule)])
    return HubRepository(Url(hub["endpoint"]), uri)


def _room(pvc: Object, notes: list[str]) -> int | None:
    sub_path = pvc.get("subPath") or ""
    if sub_path.startswith("/") or ".." in sub_path.split("/"):
        notes.append("a cluster would refuse the pod: spec.storage.pvc.subPath leads out of the volume")
    if not pvc.get("size"):
        return None
    try:
        return parse_quantity(pvc["size"])
    except ValueError as error:
        size = f"spec.storage.pvc.size “{display(pvc['size'], 60)}”"
        notes.append(f"a cluster would refuse the claim: {size} is {error}")
        return None


def _env(entries: Sequence[Object], notes: list[str]) -> tuple[EnvVariable, ...]:
    variables: list[EnvVariable] = []
    for index, entry in enumerate(entries):
        name, value = entry.get("name") or "", entry.get("value") or ""
        if not name or "=" in name or "\0" in name + value:
            where = f"spec.env[{index}].name"
            notes.append(f"a cluster would refuse the pod: {where} is no name of a variable; passed over")
            continue
        reference = ""
        if entry.get("valueFrom") is not None:
            reference = _reference(entry["valueFrom"])
            notes.append(f"{name} comes from {reference} in the cluster; here, set it in the environment")
        # Kubernetes expands only what is listed before; the rest stays as it is written.
        earlier = {variable.name for variable in variables}
        notes.extend(
            f"{name}: $({display(found[2], 80)}) stays as it is, no earlier entry of spec.env has that name"
            for found in VARIABLE.finditer(value)
            if found[1] != "$" and found[2] not in earlier
        )
        variables.append(EnvVariable(name, value, reference))
    return tuple(variables)


def _reference(origin: Object) -> str:
    for kind, noun in (("secretKeyRef", "secret"), ("configMapKeyRef", "config map")):
        if target := origin.get(kind):
            name, key = target.get("name") or "", target.get("key") or ""
            return f"{noun} {display(name, 100)}, key {display(key, 100)}"
    return "a field of the pod"


def _proxy(proxy: Object) -> dict[str, str]:
    fields = {"https": "httpsProxy", "http": "httpProxy", "no": "noProxy"}
    return {name: proxy.get(field) or "" for name, field in fields.items()}
