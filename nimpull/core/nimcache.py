"""A ``NIMCache`` (apps.nvidia.com/v1alpha1) as values, under the rules and messages of its CRD and webhook.

What the cluster would refuse but what does not matter for a download here (a missing ``modelPuller``, say)
is a note, not an error. Source of the rules: the CRD's validation markers and the operator's webhook.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NoReturn

from nimpull.core.criteria import Criteria, GpuCriterion
from nimpull.core.names import ModelUri, Url, display
from nimpull.core.units import parse_quantity
from nimpull.core.yamltext import load_yaml
from nimpull.errors import UsageError

KIND: Final = "NIMCache"
GROUP: Final = "apps.nvidia.com/"
MAX_BYTES: Final = 2 << 20  # an object in etcd is 1.5 MiB at most
MAX_DOCUMENTS: Final = 200
_DOCUMENT: Final = re.compile(rb"^---(?=\s|$)", re.MULTILINE)
_TRUE: Final = frozenset({"true", "yes", "on"})
_FALSE: Final = frozenset({"false", "no", "off"})
_VARIABLE: Final = re.compile(r"\$(\$|\(([^)]*)\))")
_HF_ENDPOINT: Final = r"^https?://.*$"
_DATASTORE_ENDPOINT: Final = r"^https?://.*/v1/hf/?$"
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


@dataclass(frozen=True, slots=True)
class NgcSource:
    """``spec.source.ngc``: ``model`` as criteria over a manifest, or a ``modelEndpoint`` (universal NIM)."""

    auth_secret: str
    model_puller: str
    pull_secret: str
    criteria: Criteria
    endpoint: ModelUri | None = None


@dataclass(frozen=True, slots=True)
class HubSource:
    """``spec.source.hf`` or ``.dataStore`` (``kind`` says which); ``uri`` has the revision, else ``main``."""

    kind: str
    endpoint: Url
    uri: ModelUri
    auth_secret: str
    model_puller: str
    pull_secret: str


@dataclass(frozen=True, slots=True)
class Storage:
    """``spec.storage``. ``size`` in bytes, None = not given; ``sub_path`` is relative and stays below."""

    size: int | None = None
    sub_path: str = ""
    claim: str = ""
    host_path: str = ""


@dataclass(frozen=True, slots=True)
class EnvVariable:
    """One of ``spec.env``; ``reference``: where the cluster reads it (``secret extra, key token``)."""

    name: str
    value: str = field(default="", repr=False)
    reference: str = ""


@dataclass(frozen=True, slots=True)
class Proxy:
    """``spec.proxy``; the URLs redact their credentials when shown."""

    http: Url | None = None
    https: Url | None = None
    no_proxy: str = ""
    cert_config_map: str = ""


@dataclass(frozen=True, slots=True)
class NimCache:
    """``notes``: what the cluster would refuse or do differently, in plain words."""

    name: str
    namespace: str
    source: NgcSource | HubSource
    storage: Storage
    env: tuple[EnvVariable, ...] = ()
    proxy: Proxy | None = None
    user_id: int | None = None
    group_id: int | None = None
    notes: tuple[str, ...] = ()

    def environment(self, own: Mapping[str, str] | None = None) -> dict[str, str]:
        """Variables for the pull: ``spec.env``, and over it ``spec.proxy``'s, as in the caching Job.

        With a proxy all seven are set, "" for what is not given. Variables that the cluster reads from a
        secret or a config map are left to ``own``, the caller's environment; ``$(NAME)`` is an earlier entry.
        """
        own, variables, known = own or {}, dict[str, str](), dict[str, str]()
        for item in self.env:
            if not item.reference:
                variables[item.name] = known[item.name] = expand(item.value, known)
            elif item.name in own:
                known[item.name] = own[item.name]
        if self.proxy:
            variables["NIM_SDK_USE_NATIVE_TLS"] = "1"
            http = self.proxy.http.reveal() if self.proxy.http else ""
            https = self.proxy.https.reveal() if self.proxy.https else ""
            for name, value in (("https", https), ("http", http), ("no", self.proxy.no_proxy)):
                variables[f"{name.upper()}_PROXY"] = variables[f"{name}_proxy"] = value
        return variables


def expand(text: str, known: Mapping[str, str]) -> str:
    """``$(NAME)`` in the value of a container's variable; ``$$`` is a dollar sign.

    A name that is not known stays as it is written (Kubernetes API, EnvVar.value).
    """
    return _VARIABLE.sub(lambda found: "$" if found[1] == "$" else known.get(found[2], found[0]), text)


def parse_nimcache(data: bytes) -> NimCache:
    """The one NIMCache in a YAML or JSON file; other documents beside it are passed over.

    Raises UsageError with the field and the rule, in the API server's words where it has a rule.
    """
    document = _the_nimcache(data)
    notes: list[str] = []
    root = _Fields(document, "", notes)
    metadata = root.section("metadata")
    spec = root.section("spec", required=True)
    spec.known(_SPEC)
    if spec.has("certConfig"):
        _refuse(
            "spec.certConfig",
            "Deprecated field 'CertConfig' is used. Please migrate to 'Proxy' field on NIMCache.",
            "Name the ConfigMap in spec.proxy.certConfigMap.",
        )
    name = metadata.text("name")
    return NimCache(
        name=name,
        namespace=metadata.text("namespace"),
        source=_source(spec.section("source", required=True)),
        storage=_storage(spec.section("storage"), name),
        env=_env(spec.sections("env")),
        proxy=_proxy(spec.section("proxy")) if spec.has("proxy") else None,
        user_id=spec.integer("userID"),
        group_id=spec.integer("groupID"),
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


def _refuse(path: str, rule: str, hint: str = "") -> NoReturn:
    raise UsageError(
        f"{path}: {rule}", hint=hint or f"Correct {path} in the NIMCache; the cluster would refuse it too."
    )


# -- reading fields ------------------------------------------------------------------------------------


class _Fields:
    """An object of the document that knows its path; every value is text until asked for as something."""

    def __init__(self, content: Mapping[str, object], path: str, notes: list[str]) -> None:
        self._content = content
        self.path = path
        self.notes = notes

    def at(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name

    def has(self, name: str) -> bool:
        return self._content.get(name) is not None

    def known(self, names: Iterable[str]) -> None:
        """A misspelt field is dropped by the API server without a word; not here."""
        for name in sorted(set(self._content) - set(names)):
            self.notes.append(f'unknown field "{display(self.at(name), 200)}" has no effect')

    def text(self, name: str, default: str = "") -> str:
        value = self._content.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            _refuse(self.at(name), f"Invalid value: {self.at(name)} in body must be of type string")
        return value

    def cluster_wants(self, *names: str) -> None:
        for name in names:
            if not self.text(name):
                self.notes.append(f"a cluster would refuse this NIMCache: {self.at(name)}: Required value")

    def texts(self, name: str) -> tuple[str, ...]:
        values = self._list(name)
        texts = tuple(value for value in values if isinstance(value, str))
        if len(texts) != len(values):
            _refuse(self.at(name), f"Invalid value: {self.at(name)} in body must be an array of strings")
        return texts

    def boolean(self, name: str) -> bool | None:
        text = self.text(name).lower()
        if text and text not in _TRUE | _FALSE:
            _refuse(self.at(name), f"Invalid value: {self.at(name)} in body must be of type boolean")
        return text in _TRUE if text else None

    def integer(self, name: str) -> int | None:
        text = self.text(name)
        if text and not re.fullmatch(r"\d{1,18}", text, re.ASCII):
            _refuse(self.at(name), f"Invalid value: {self.at(name)} in body must be of type integer")
        return int(text) if text else None

    def section(self, name: str, *, required: bool = False) -> _Fields:
        value = self._content.get(name)
        if value is None and required:
            _refuse(self.at(name), "Required value")
        if value is not None and not isinstance(value, dict):
            _refuse(self.at(name), f"Invalid value: {self.at(name)} in body must be of type object")
        return _Fields(value or {}, self.at(name), self.notes)

    def sections(self, name: str) -> tuple[_Fields, ...]:
        values = self._list(name)
        for index, value in enumerate(values):
            if not isinstance(value, dict):
                path = f"{self.at(name)}[{index}]"
                _refuse(path, f"Invalid value: {path} in body must be of type object")
        return tuple(
            _Fields(value, f"{self.at(name)}[{index}]", self.notes)
            for index, value in enumerate(values)
            if isinstance(value, dict)
        )

    def _list(self, name: str) -> list[object]:
        value = self._content.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            _refuse(self.at(name), f"Invalid value: {self.at(name)} in body must be of type array")
        return list(value)


# -- source --------------------------------------------------------------------------------------------


def _source(source: _Fields) -> NgcSource | HubSource:
    source.known(("ngc", "dataStore", "hf"))
    given = [name for name in ("ngc", "dataStore", "hf") if source.has(name)]
    if len(given) != 1:
        _refuse(
            source.path,
            'Invalid value: "object": Exactly one of ngc, dataStore, or hf must be defined',
            f"This NIMCache defines {' and '.join(given) or 'none of them'}.",
        )
    if given == ["ngc"]:
        return _ngc(source.section("ngc"))
    pattern = _DATASTORE_ENDPOINT if given == ["dataStore"] else _HF_ENDPOINT
    return _hub(source.section(given[0]), given[0], pattern)


def _hub(hub: _Fields, name: str, pattern: str) -> HubSource:
    hub.known(
        (
            "endpoint",
            "namespace",
            "modelName",
            "datasetName",
            "revision",
            "authSecret",
            "modelPuller",
            "pullSecret",
        )
    )
    hub.cluster_wants("authSecret", "modelPuller", "pullSecret")
    if not hub.has("endpoint"):
        _refuse(hub.at("endpoint"), "Required value")
    endpoint = hub.text("endpoint")
    if not re.search(pattern, endpoint):
        _refuse(hub.at("endpoint"), f"Invalid value: {hub.at('endpoint')} in body should match '{pattern}'")
    namespace = hub.text("namespace", "default" if name == "dataStore" else "")
    if not hub.has("namespace") and name == "hf":
        _refuse(hub.at("namespace"), "Required value")
    if not namespace:
        _refuse(
            hub.at("namespace"),
            f'Invalid value: "": {hub.at("namespace")} in body should be at least 1 chars long',
        )
    if hub.has("modelName") == hub.has("datasetName"):
        _refuse(hub.path, 'Invalid value: "object": Exactly one of modelName or datasetName must be defined')
    prefix = "datasets/" if hub.has("datasetName") else ""
    repository = hub.text("modelName") or hub.text("datasetName")
    revision = hub.text("revision")
    uri = ModelUri.parse(f"hf://{prefix}{namespace}/{repository}{f':{revision}' if revision else ''}")
    if (uri.org, uri.name, uri.revision) != (namespace, repository, revision or "main"):
        _refuse(
            hub.path, f"Invalid value: “{display(repository, 120)}” is no repository, or no such revision"
        )
    return HubSource(
        name, Url(endpoint), uri, hub.text("authSecret"), hub.text("modelPuller"), hub.text("pullSecret")
    )


def _ngc(ngc: _Fields) -> NgcSource:
    ngc.known(("authSecret", "modelPuller", "pullSecret", "model", "modelEndpoint"))
    ngc.cluster_wants("authSecret", "modelPuller")
    if ngc.has("model") and ngc.has("modelEndpoint"):
        _refuse(
            ngc.path,
            "Invalid value: \"object\": Only one of 'model' or 'modelEndpoint' can be specified",
        )
    endpoint = ngc.text("modelEndpoint")
    return NgcSource(
        auth_secret=ngc.text("authSecret"),
        model_puller=ngc.text("modelPuller"),
        pull_secret=ngc.text("pullSecret"),
        criteria=_criteria(ngc.section("model")),
        endpoint=ModelUri.parse(endpoint) if endpoint else None,
    )


def _criteria(model: _Fields) -> Criteria:
    model.known(
        ("profiles", "precision", "engine", "tensorParallelism", "qosProfile", "gpus", "lora", "buildable")
    )
    profiles = model.texts("profiles")
    criteria = Criteria(
        profiles=profiles,
        all="all" in profiles,
        engine=model.text("engine"),
        precision=model.text("precision"),
        tensor_parallelism=model.text("tensorParallelism"),
        qos=model.text("qosProfile"),
        gpus=tuple(GpuCriterion(gpu.text("product"), gpu.texts("ids")) for gpu in model.sections("gpus")),
        lora=model.boolean("lora"),
        buildable=model.boolean("buildable"),
    )
    if criteria.all and len(profiles) != 1:
        _refuse(
            model.at("profiles"),
            "NIMCache.Spec.Source.NGC.Model.Profiles must only have a single entry when it contains 'all'",
        )
    if profiles and (criteria.restricts or model.has("gpus")):
        _refuse(
            model.path,
            "the rest of NIMCache.Spec.Source.NGC.Model fields must be empty when Model.Profiles is defined",
        )
    if criteria.qos not in ("", "latency", "throughput"):
        _refuse(
            model.at("qosProfile"),
            "NIMCache.Spec.Source.NGC.Model.QoSProfile must be 'latency', 'throughput', or empty",
        )
    return criteria


# -- storage, environment, proxy -----------------------------------------------------------------------


def _storage(storage: _Fields, name: str) -> Storage:
    storage.known(("pvc", "hostPath"))
    pvc = storage.section("pvc")
    pvc.known(("create", "name", "storageClass", "size", "volumeAccessMode", "subPath", "annotations"))
    if not storage.has("pvc") and not storage.has("hostPath"):
        storage.notes.append("a cluster would refuse this NIMCache: NIMCache.Spec.Storage must not be empty")
    if pvc.boolean("create") is False and not pvc.text("name"):
        storage.notes.append(
            "a cluster would refuse this NIMCache: "
            "NIMCache.Spec.Storage.PVC.Name must be defined when PVC.Create is false"
        )
    mode = pvc.text("volumeAccessMode")
    if mode and mode not in _ACCESS_MODES:
        storage.notes.append(
            "a cluster would refuse this NIMCache: NIMCache.Spec.Storage.PVC.VolumeAccessMode must be "
            "'ReadWriteOnce', 'ReadOnlyMany', or 'ReadWriteMany'"
        )
    sub_path = pvc.text("subPath")
    if sub_path.startswith("/") or ".." in sub_path.split("/") or "\0" in sub_path:
        _refuse(pvc.at("subPath"), "Invalid value: must be a relative path and must not contain '..'")
    size = None
    if pvc.text("size"):
        try:
            size = parse_quantity(pvc.text("size"))
        except ValueError as error:
            _refuse(pvc.at("size"), f"Invalid value: “{display(pvc.text('size'), 60)}” is {error}")
    claim = pvc.text("name") or (f"{name}-pvc" if name else "")
    return Storage(size, sub_path, claim, storage.text("hostPath"))


def _env(entries: tuple[_Fields, ...]) -> tuple[EnvVariable, ...]:
    variables: list[EnvVariable] = []
    for entry in entries:
        entry.known(("name", "value", "valueFrom"))
        name = entry.text("name")
        if not name:
            _refuse(entry.at("name"), "Required value")
        if "=" in name or "\0" in name or "\0" in entry.text("value"):
            _refuse(entry.at("name"), "Invalid value: a valid environment variable name must not contain '='")
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
            for found in _VARIABLE.finditer(value)
            if found[1] != "$" and found[2] not in earlier
        )
        variables.append(EnvVariable(name, value, reference))
    return tuple(variables)


def _reference(origin: _Fields) -> str:
    for name, noun in (("secretKeyRef", "secret"), ("configMapKeyRef", "config map")):
        if origin.has(name):
            target = origin.section(name)
            return f"{noun} {display(target.text('name'), 100)}, key {display(target.text('key'), 100)}"
    return "a field of the pod"


def _proxy(proxy: _Fields) -> Proxy:
    proxy.known(("httpProxy", "httpsProxy", "noProxy", "certConfigMap"))
    for name, go_name in (("httpsProxy", "HttpsProxy"), ("httpProxy", "HttpProxy")):
        if proxy.text(name) and not re.match(r"https?://", proxy.text(name)):
            _refuse(proxy.at(name), f"Proxy.{go_name} must start with http:// or https://")
    for token in proxy.text("noProxy").split(","):
        if token.strip() and not _NO_PROXY.fullmatch(token.strip()):
            _refuse(proxy.at("noProxy"), f'invalid NO_PROXY token: "{display(token.strip(), 120)}"')
    http, https = proxy.text("httpProxy"), proxy.text("httpsProxy")
    return Proxy(
        http=Url(http) if http else None,
        https=Url(https) if https else None,
        no_proxy=proxy.text("noProxy"),
        cert_config_map=proxy.text("certConfigMap"),
    )
