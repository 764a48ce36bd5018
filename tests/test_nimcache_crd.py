"""NIMCaches by the hundred, held against the schema of the operator's CRD as jsonschema reads it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from nimpull.core.nimcache import parse_nimcache
from nimpull.errors import UsageError

#: openAPIV3Schema of nimcaches.apps.nvidia.com, v1alpha1, without its descriptions.
SCHEMA = json.loads((Path(__file__).parent / "nimcache_schema.json").read_text())
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)
SOURCES: dict[str, dict[str, Any]] = {
    "ngc": {
        "authSecret": "s",
        "modelPuller": "image",
        "pullSecret": "p",
        "model": {
            "precision": "fp16",
            "engine": "vllm",
            "tensorParallelism": "1",
            "qosProfile": "latency",
            "gpus": [{"product": "l40s", "ids": ["26b5"]}],
            "lora": False,
            "buildable": True,
            "profiles": [],
        },
    },
    "dataStore": {
        "endpoint": "http://ds/v1/hf",
        "namespace": "team",
        "modelName": "tiny",
        "revision": "main",
        "authSecret": "s",
        "modelPuller": "image",
        "pullSecret": "p",
    },
    "hf": {
        "endpoint": "https://huggingface.co",
        "namespace": "acme",
        "datasetName": "tiny",
        "revision": "v1",
        "authSecret": "s",
        "modelPuller": "image",
        "pullSecret": "p",
    },
}
KEY = {"name": "s", "key": "k", "optional": True}
ENV: list[dict[str, Any]] = [
    {"name": "A", "value": "1"},
    {"name": "B", "valueFrom": {"secretKeyRef": KEY}},
    {"name": "C", "valueFrom": {"configMapKeyRef": KEY}},
    {"name": "D", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}},
    {"name": "E", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}},
]
REST: dict[str, Any] = {
    "storage": {
        "hostPath": "/srv",
        "pvc": {
            "create": True,
            "name": "pvc",
            "storageClass": "",
            "size": "50Gi",
            "volumeAccessMode": "ReadWriteMany",
            "subPath": "a",
            "annotations": {"a": "b"},
        },
    },
    "resources": {"cpu": "500m", "memory": 1073741824},
    "tolerations": [{"key": "a", "operator": "Exists", "effect": "NoSchedule", "tolerationSeconds": 5}],
    "nodeSelector": {"a": "b"},
    "userID": 1000,
    "groupID": 2000,
    "certConfig": {"name": "ca", "mountPath": "/etc/ssl/certs"},
    "env": ENV,
    "runtimeClassName": "nvidia",
    "proxy": {
        "httpProxy": "http://p:1",
        "httpsProxy": "http://p:1",
        "noProxy": ".svc",
        "certConfigMap": "ca",
    },
    "initContainers": [
        {"name": "i", "image": {"repository": "r", "tag": "t"}, "command": ["c"], "args": ["a"], "env": ENV}
    ],
}
#: What stands in place of each value in turn.
VALUES: tuple[Any, ...] = (
    "",
    "x",
    "5",
    "true",
    5,
    -1,
    1.5,
    True,
    [],
    ["a"],
    [5],
    [{}],
    {},
    {"a": "b"},
    {"a": 5},
)
#: What the CRD takes and no registry could have.
NOTHING_TO_PULL = ("not a Hugging Face URI", "not a model URI", "is no repository")


def document(kind: str) -> dict[str, Any]:
    return {
        "apiVersion": "apps.nvidia.com/v1alpha1",
        "kind": "NIMCache",
        "metadata": {"name": "tiny"},
        "spec": deepcopy({"source": {kind: SOURCES[kind]}, **REST}),
    }


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*path, key)
        yield from places(item, (*path, key))


def changed(whole: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """With ``value`` at ``path``, or nothing there where it is ``...``."""
    made = deepcopy(whole)
    parent: Any = made
    for key in path[:-1]:
        parent = parent[key]
    if value is ...:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return made


def crd_takes(made: dict[str, Any]) -> bool:
    """With the defaults of the API server and the rules in CEL, which jsonschema does not know."""
    source = made["spec"].get("source")
    if isinstance(source, dict):
        for name, body in source.items():
            if name == "dataStore" and isinstance(body, dict):
                source = {**source, name: {"namespace": "default", **body}}
        made = {**made, "spec": {**made["spec"], "source": source}}
    if not VALIDATOR.is_valid(made):
        return False
    given = [name for name in ("ngc", "dataStore", "hf") if name in source]
    if len(given) != 1:
        return False
    body = source[given[0]]
    if given == ["ngc"]:
        return not ("model" in body and "modelEndpoint" in body)
    return ("modelName" in body) != ("datasetName" in body)


def verdict(made: dict[str, Any], **how: bool) -> str:
    """ "" where it is taken, else why not."""
    try:
        parse_nimcache(json.dumps(made).encode(), **how)
    except UsageError as error:
        return error.message
    return ""


@pytest.mark.parametrize("kind", SOURCES)
def test_every_change_of_a_field_is_judged_as_by_the_crd(kind: str) -> None:
    whole = document(kind)
    assert verdict(whole) == ""
    judged = {True: 0, False: 0}
    for path in places(whole["spec"], ("spec",)):
        for value in (..., *VALUES):
            made = changed(whole, path, value)
            taken, why = crd_takes(made), verdict(made)
            judged[taken] += 1
            if "unknown field" in why:
                continue  # the CRD drops it, kubectl refuses it
            if taken:
                assert not why or any(each in why for each in NOTHING_TO_PULL), (path, value)
            else:
                assert why, (path, value)
    assert min(judged.values()) > 100, judged


@pytest.mark.parametrize("kind", SOURCES)
def test_a_misspelt_field_is_refused_wherever_it_stands(kind: str) -> None:
    whole = document(kind)
    open_maps = ("annotations", "nodeSelector")
    for path in places(whole["spec"], ("spec",)):
        if isinstance(path[-1], str) and path[-2] not in open_maps:
            made = changed(changed(whole, path, ...), (*path[:-1], f"{path[-1]}x"), 1)
            assert "unknown field" in verdict(made), path
            assert "unknown field" not in verdict(made, lenient=True), path
