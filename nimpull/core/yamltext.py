"""YAML as text, with limits: every scalar stays as it is written.

A manifest's ``tp: 010`` or ``gpu_device: 2330:10`` means those characters, so no YAML type is ever resolved
and no tag ever makes an object. Built from libyaml's events, so that size, depth and node limits hold while
parsing and an alias never copies what it names. To be imported where a file is read: PyYAML takes 20 ms.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from nimpull.core.names import display
from nimpull.core.yaml_values import PlainText, Yaml, YamlList, YamlMap
from nimpull.errors import ManifestError, NimpullError

MAX_BYTES: Final = 16 << 20
MAX_DEPTH: Final = 64
TOO_DEEP = f"nested more than {MAX_DEPTH} levels deep"
#: Nodes with every alias and merge key counted as if written out; the largest known manifest has 120,000.
MAX_NODES: Final = 500_000

_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})
_NULL_TAG: Final = "tag:yaml.org,2002:null"
_PYTHON_TAGS: Final = ("tag:yaml.org,2002:python/", "!python/", "!!python/")
_MERGE: Final = "<<"


def load_yaml(
    data: bytes,
    *,
    what: str = "manifest",
    error: type[NimpullError] = ManifestError,
    plain: bool = False,
) -> Yaml:
    """The first document of ``data`` (UTF-8, or UTF-16 with a byte order mark) as nested maps, lists and
    text.

    ``plain``: what stood without quotes is PlainText. null is None; a null key is dropped; ``<<`` merges as
    YAML 1.1 says, a map's own keys winning. Raises ``error`` naming the line: syntax, duplicate keys, keys
    that are not text, undefined or recursive aliases, ``!!python/…`` tags, or more than the limits above.
    """
    if len(data) > MAX_BYTES:
        raise error(
            f"{what}: {len(data)} bytes are more than the limit of {MAX_BYTES} bytes",
            hint="A model manifest is a few megabytes at most; check that this is the right file.",
        )
    builder = _Builder(what, error, plain)
    try:
        # Events, not nodes: PyYAML's composer would build the whole document before a limit could be seen.
        return builder.document(yaml.parse(data, Loader=yaml.CBaseLoader))
    except yaml.MarkedYAMLError as cause:
        line = cause.problem_mark.line + 1 if cause.problem_mark else 1
        # libyaml from 0.2.6 on counts levels itself, up to 1,000, and its scanner runs ahead of the events.
        too_deep = cause.problem == "exceeded maximum nesting depth"
        problem = TOO_DEEP if too_deep else display(cause.problem or "invalid YAML", 200)
        raise builder.failure(line, problem) from cause
    except yaml.reader.ReaderError as cause:
        line = data[: cause.position].count(b"\n") + 1
        raise builder.failure(line, f"{display(cause.reason, 100)} (byte {cause.position})") from cause


class _Builder:
    """One pass over the events of one document."""

    def __init__(self, what: str, error: type[NimpullError], plain: bool) -> None:
        self._what = what
        self._error = error
        self._plain = PlainText if plain else str
        self._nodes = 0
        #: anchor -> (value, nodes it stands for)
        self._anchors: dict[str, tuple[Yaml, int]] = {}
        self._open: set[str] = set()

    def failure(self, line: int, problem: str) -> NimpullError:
        return self._error(
            f"{self._what}, line {line}: {problem}",
            hint=f"Correct the {self._what}, or fetch it again if it was cut off.",
        )

    def document(self, events: Iterator[Event]) -> Yaml:
        for event in events:
            if isinstance(event, DocumentStartEvent):
                value = self._node(next(events), events, 0)
                next(events)  # the document's end: trailing junk is a syntax error of this document
                return value
        return None

    def _node(self, event: Event, events: Iterator[Event], depth: int) -> Yaml:
        if isinstance(event, AliasEvent):
            return self._alias(event)
        self._count(1, event)
        if isinstance(event, ScalarEvent):
            value = self._scalar(event)
            if event.anchor:
                self._anchors[event.anchor] = (value, 1)
            return value
        if not isinstance(event, (MappingStartEvent, SequenceStartEvent)):
            raise self.failure(_line(event), "a value is missing")
        if depth >= MAX_DEPTH:
            raise self.failure(_line(event), TOO_DEEP)
        self._refuse_python(event)
        # An alias counts as what it stands for, so that ten lines of aliases of aliases are not a billion
        # values.
        anchor, before = event.anchor, self._nodes
        if anchor:
            self._open.add(anchor)
            # An anchor that is given again hides the earlier one from its own beginning on (YAML 1.2, 7.1).
            self._anchors.pop(anchor, None)
        collection: YamlMap | YamlList
        if isinstance(event, MappingStartEvent):
            collection = self._mapping(event, events, depth + 1)
        else:
            collection = self._sequence(event, events, depth + 1)
        if anchor:
            self._open.discard(anchor)
            self._anchors[anchor] = (collection, self._nodes - before + 1)
        return collection

    def _alias(self, event: AliasEvent) -> Yaml:
        if event.anchor in self._open:
            raise self.failure(_line(event), f"anchor “{display(event.anchor, 60)}” contains itself")
        if event.anchor not in self._anchors:
            raise self.failure(_line(event), f"unknown anchor “{display(event.anchor, 60)}”")
        value, nodes = self._anchors[event.anchor]
        self._count(nodes, event)
        return value

    def _scalar(self, event: ScalarEvent) -> str | None:
        text: str = event.value
        tag = event.tag
        if tag is None:
            # Quotes make text of anything: "null" is a word, null is nothing.
            if event.style in (None, ""):
                return None if text in _NULLS else self._plain(text)
            return text
        self._refuse_python(event)
        return None if tag == _NULL_TAG else text

    def _sequence(self, start: SequenceStartEvent, events: Iterator[Event], depth: int) -> YamlList:
        items = YamlList(_line(start))
        for event in events:
            if isinstance(event, SequenceEndEvent):
                break
            items.append(self._node(event, events, depth))
            items.lines.append(_line(event))
        return items

    def _mapping(self, start: MappingStartEvent, events: Iterator[Event], depth: int) -> YamlMap:
        own = YamlMap(_line(start))
        merged: Yaml = None
        for event in events:
            if isinstance(event, MappingEndEvent):
                break
            line = _line(event)
            # In quotes it is a key like any other.
            is_merge = isinstance(event, ScalarEvent) and event.value == _MERGE and not event.style
            key = self._node(event, events, depth)
            value = self._node(next(events), events, depth)
            if isinstance(key, (YamlMap, YamlList)):
                raise self.failure(line, "a mapping key must be text")
            if key is None:
                continue
            # The operator refuses duplicates too. A merge key is in the table as well: only one may stand in
            # a map.
            if key in own.lines:
                raise self.failure(
                    line, f"key “{display(key, 100)}” is already defined at line {own.lines[key]}"
                )
            own.lines[key] = line
            if is_merge:
                merged = value
            else:
                own[key] = value
        if _MERGE in own.lines and _MERGE not in own:
            self._merge(own, merged, own.lines.pop(_MERGE), start)
        return own

    def _merge(self, own: YamlMap, merged: Yaml, line: int, start: Event) -> None:
        """Earlier maps of a merge list win over later ones, the map's own keys over all."""
        for other in merged if isinstance(merged, YamlList) else (merged,):
            if not isinstance(other, YamlMap):
                raise self.failure(line, "“<<” must name a map or a list of maps")
            self._count(len(other), start)
            for key, value in other.items():
                if key not in own:
                    own[key] = value
                    own.lines[key] = other.lines[key]

    def _refuse_python(self, event: Any) -> None:
        if event.tag and event.tag.startswith(_PYTHON_TAGS):
            raise self.failure(_line(event), f"the tag “{display(event.tag, 80)}” is not allowed")

    def _count(self, nodes: int, event: Event) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise self.failure(_line(event), f"more than {MAX_NODES} values (aliases counted in full)")


def _line(event: Event) -> int:
    mark = event.start_mark
    return mark.line + 1 if mark else 1
