"""``spec.source``: NGC by criteria or endpoint, the Hub, a DataStore."""

from __future__ import annotations

import re
from typing import Final

from nimpull.core.criteria import Criteria, GpuCriterion
from nimpull.core.names import ModelUri, Url, display
from nimpull.core.nimcache.fields import Fields, refuse
from nimpull.core.nimcache.values import HubSource, NgcSource

_HF_ENDPOINT: Final = r"^https?://.*$"
_DATASTORE_ENDPOINT: Final = r"^https?://.*/v1/hf/?$"
_PULLING: Final = ("authSecret", "modelPuller", "pullSecret")
_HUB: Final = ("endpoint", "namespace", "modelName", "datasetName", "revision", *_PULLING)


def parse_source(source: Fields) -> NgcSource | HubSource:
    """Exactly one of the three. Raises UsageError."""
    source.known(("ngc", "dataStore", "hf"))
    given = [name for name in ("ngc", "dataStore", "hf") if source.has(name)]
    if len(given) != 1:
        refuse(
            source.path,
            'Invalid value: "object": Exactly one of ngc, dataStore, or hf must be defined',
            f"This NIMCache defines {' and '.join(given) or 'none of them'}.",
        )
    if given == ["ngc"]:
        return _ngc(source.section("ngc"))
    pattern = _DATASTORE_ENDPOINT if given == ["dataStore"] else _HF_ENDPOINT
    return _hub(source.section(given[0]), given[0], pattern)


def _hub(hub: Fields, name: str, pattern: str) -> HubSource:
    hub.known(_HUB)
    hub.cluster_wants(*_PULLING)
    if not hub.has("endpoint"):
        refuse(hub.at("endpoint"), "Required value")
    endpoint = hub.text("endpoint")
    if not re.search(pattern, endpoint):
        refuse(hub.at("endpoint"), f"Invalid value: {hub.at('endpoint')} in body should match '{pattern}'")
    namespace = hub.text("namespace", "default" if name == "dataStore" else "")
    if not hub.has("namespace") and name == "hf":
        refuse(hub.at("namespace"), "Required value")
    if not namespace:
        refuse(
            hub.at("namespace"),
            f'Invalid value: "": {hub.at("namespace")} in body should be at least 1 chars long',
        )
    if hub.has("modelName") == hub.has("datasetName"):
        refuse(hub.path, 'Invalid value: "object": Exactly one of modelName or datasetName must be defined')
    prefix = "datasets/" if hub.has("datasetName") else ""
    repository = hub.text("modelName") or hub.text("datasetName")
    revision = hub.text("revision")
    uri = ModelUri.parse(f"hf://{prefix}{namespace}/{repository}{f':{revision}' if revision else ''}")
    if (uri.org, uri.name, uri.revision) != (namespace, repository, revision or "main"):
        refuse(hub.path, f"Invalid value: “{display(repository, 120)}” is no repository, or no such revision")
    return HubSource(Url(endpoint), uri)


def _ngc(ngc: Fields) -> NgcSource:
    ngc.known((*_PULLING, "model", "modelEndpoint"))
    ngc.check("pullSecret")
    ngc.cluster_wants("authSecret", "modelPuller")
    if ngc.has("model") and ngc.has("modelEndpoint"):
        refuse(
            ngc.path,
            "Invalid value: \"object\": Only one of 'model' or 'modelEndpoint' can be specified",
        )
    endpoint = ngc.text("modelEndpoint")
    return NgcSource(
        criteria=_criteria(ngc.section("model")),
        endpoint=ModelUri.parse(endpoint) if endpoint else None,
    )


def _criteria(model: Fields) -> Criteria:
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
        refuse(
            model.at("profiles"),
            "NIMCache.Spec.Source.NGC.Model.Profiles must only have a single entry when it contains 'all'",
        )
    if profiles and (criteria.restricts or model.has("gpus")):
        refuse(
            model.path,
            "the rest of NIMCache.Spec.Source.NGC.Model fields must be empty when Model.Profiles is defined",
        )
    if criteria.qos not in ("", "latency", "throughput"):
        refuse(
            model.at("qosProfile"),
            "NIMCache.Spec.Source.NGC.Model.QoSProfile must be 'latency', 'throughput', or empty",
        )
    return criteria
