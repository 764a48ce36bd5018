"""The fields of a NIMCache as its CRD (``nimcaches.apps.nvidia.com``, v1alpha1) has them; a check by them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final, TypeAlias

from nimpull.core.names import display
from nimpull.core.yaml_values import PlainText


@dataclass(frozen=True, slots=True)
class Scalar:
    """``kind``: "string", "integer", "boolean", "quantity" (text or integer). ``shortest``: length."""

    kind: str = "string"
    shortest: int = 0
    pattern: str = ""


#: A scalar; a list as (its item,); a map by field name, where ``!`` marks a required field and ``*`` stands
#: for any name; None = not looked into.
Node: TypeAlias = "Scalar | tuple[Node] | Mapping[str, Node] | None"

TEXT: Final = Scalar()
NAME: Final = Scalar(shortest=1)
NUMBER: Final = Scalar("integer")
FLAG: Final = Scalar("boolean")
QUANTITY: Final = Scalar(
    "quantity",
    pattern=r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))"
    r"(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$",
)
TEXTS: Final[Node] = {"*": TEXT}
_KEY: Final[Node] = {"key!": TEXT, "name": TEXT, "optional": FLAG}
_ENV: Final[Node] = {
    "name!": TEXT,
    "value": TEXT,
    "valueFrom": {
        "configMapKeyRef": _KEY,
        "secretKeyRef": _KEY,
        "fieldRef": {"fieldPath!": TEXT, "apiVersion": TEXT},
        "fileKeyRef": {"key!": TEXT, "path!": TEXT, "volumeName!": TEXT, "optional": FLAG},
        "resourceFieldRef": {"resource!": TEXT, "containerName": TEXT, "divisor": QUANTITY},
    },
}


def _hub(pattern: str, namespace: Mapping[str, Node]) -> Node:
    return {
        "endpoint!": Scalar(pattern=pattern),
        **namespace,
        "modelName": TEXT,
        "datasetName": TEXT,
        "revision": NAME,
        "authSecret!": NAME,
        "modelPuller!": NAME,
        "pullSecret!": NAME,
    }


NIMCACHE: Final[Node] = {
    "apiVersion": TEXT,
    "kind": TEXT,
    "metadata": {"*": None},
    "status": {"*": None},
    "spec!": {
        "source!": {
            "ngc": {
                "authSecret!": TEXT,
                "modelPuller!": TEXT,
                "pullSecret": TEXT,
                "modelEndpoint": TEXT,
                "model": {
                    "profiles": (TEXT,),
                    "precision": TEXT,
                    "engine": TEXT,
                    "tensorParallelism": TEXT,
                    "qosProfile": TEXT,
                    "gpus": ({"product": TEXT, "ids": (TEXT,)},),
                    "lora": FLAG,
                    "buildable": FLAG,
                },
            },
            # the API server puts "default" in place of a namespace that is not there
            "dataStore": _hub(r"^https?://.*/v1/hf/?$", {"namespace": TEXT}),
            "hf": _hub(r"^https?://.*$", {"namespace!": NAME}),
        },
        "storage!": {
            "hostPath": TEXT,
            "pvc": {
                "create": FLAG,
                "name": TEXT,
                "storageClass": TEXT,
                "size": TEXT,
                "volumeAccessMode": TEXT,
                "subPath": TEXT,
                "annotations": TEXTS,
            },
        },
        "resources": {"cpu": QUANTITY, "memory": QUANTITY},
        "tolerations": (
            {"key": TEXT, "operator": TEXT, "value": TEXT, "effect": TEXT, "tolerationSeconds": NUMBER},
        ),
        "nodeSelector": TEXTS,
        "userID": NUMBER,
        "groupID": NUMBER,
        "certConfig": {"name!": TEXT, "mountPath!": TEXT},
        "env": (_ENV,),
        "runtimeClassName": TEXT,
        "proxy": {"httpProxy": TEXT, "httpsProxy": TEXT, "noProxy": TEXT, "certConfigMap": TEXT},
        "initContainers": (
            {
                "name!": TEXT,
                "image!": {"repository!": TEXT, "tag!": TEXT, "pullPolicy": TEXT, "pullSecrets": (TEXT,)},
                "command": (TEXT,),
                "args": (TEXT,),
                "env": (_ENV,),
                "workingDir": TEXT,
            },
        ),
    },
}


UNKNOWN: Final = "unknown field"
_KEYLESS: Final = "Older operators want a secret also for public models, later ones do not."


@dataclass(frozen=True, slots=True)
class Finding:
    """``rule``: the API server's words. ``pardonable``: a pull here can do without."""

    path: str
    rule: str
    hint: str = ""
    pardonable: bool = False

    def __str__(self) -> str:
        return f"{self.path}: {self.rule}"


def check(value: object, node: Node = NIMCACHE, path: str = "") -> Iterator[Finding]:
    """What the API server would refuse. A null counts as not there: none of these fields is nullable.

    An unknown field is dropped by the API server without a word; kubectl refuses it, and so does this.
    """
    match node:
        case None:
            return
        case Scalar():
            yield from _scalar(value, node, path)
        case tuple():
            if not isinstance(value, list):
                yield _wrong(path, value, "array")
                return
            for index, item in enumerate(value):
                yield from check(item, node[0], f"{path}[{index}]")
        case _:
            if not isinstance(value, dict):
                yield _wrong(path, value, "object")
                return
            yield from _fields(value, node, path)


def _fields(value: Mapping[str, object], node: Mapping[str, Node], path: str) -> Iterator[Finding]:
    fields = {name.rstrip("!"): inner for name, inner in node.items()}
    for name in node:
        if name.endswith("!") and value.get(name[:-1]) is None:
            hint = _KEYLESS if name == "authSecret!" else ""
            yield Finding(_at(path, name[:-1]), "Required value", hint, pardonable=True)
    for name, item in value.items():
        # ... stands for no such field, because None is one that is not looked into.
        inner = fields.get(name, fields.get("*", ...))
        if inner is ...:
            close = get_close_matches(name, fields, 1)
            meant = f" Did you mean {close[0]}?" if close else ""
            yield Finding(_at(path, name), UNKNOWN, f"It has no effect.{meant}", pardonable=True)
        elif item is not None:
            yield from check(item, inner, _at(path, name))


def _scalar(value: object, node: Scalar, path: str) -> Iterator[Finding]:
    kind = kind_of(value)
    # The CRD says x-kubernetes-int-or-string: "512Mi" and 512 are both taken.
    taken = ("string", "integer") if node.kind == "quantity" else (node.kind,)
    if kind not in taken:
        yield _wrong(path, value, " or ".join(taken))
    elif kind == "string" and len(str(value)) < node.shortest:
        rule = f"{path} in body should be at least {node.shortest} chars long"
        yield Finding(path, f'Invalid value: "": {rule}')
    elif kind == "string" and node.pattern and not re.search(node.pattern, str(value)):
        # the value may hold a password
        yield Finding(path, f"Invalid value: {path} in body should match '{node.pattern}'")


def _at(path: str, name: str) -> str:
    shown = display(name, 100)
    return f"{path}.{shown}" if path else shown


def _wrong(path: str, value: object, wanted: str) -> Finding:
    found = kind_of(value)
    unquoted = wanted == "string" and found in ("integer", "number", "boolean")
    hint = f"Put it in quotes: '{display(value, 60)}'." if unquoted else ""
    rule = f'Invalid value: "{found}": {path} in body must be of type {wanted}: "{found}"'
    return Finding(path, rule, hint)


#: As the YAML reader of kubectl resolves what stands without quotes (YAML 1.1, with the octals of 1.2).
_BOOLEAN: Final = re.compile(r"y|yes|n|no|true|false|on|off", re.IGNORECASE)
_INTEGER: Final = re.compile(r"[-+]?(0b[01_]+|0x[0-9a-f_]+|0o[0-7_]+|[0-9][0-9_]*(\.0*)?)", re.IGNORECASE)
_FLOAT: Final = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)(e[-+]?[0-9]+)?|[-+]?\.inf|\.nan", re.IGNORECASE | re.ASCII
)


def kind_of(value: object) -> str:
    """The JSON type of a value of :func:`nimpull.core.yamltext.load_yaml` with ``plain``."""
    if isinstance(value, PlainText):
        for kind, form in (("boolean", _BOOLEAN), ("integer", _INTEGER), ("number", _FLOAT)):
            if form.fullmatch(value):
                return kind
    match value:
        case None:
            return "null"
        case str():
            return "string"
        case list():
            return "array"
    return "object"
