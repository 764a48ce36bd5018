"""What a YAML document is read as (:mod:`nimpull.core.yamltext`): maps, lists and text, with their lines."""

from __future__ import annotations

from typing import TypeAlias

Yaml: TypeAlias = "YamlMap | YamlList | str | None"


class PlainText(str):
    """Text that stood without quotes: other readers may take it for a number or a boolean."""

    __slots__ = ()


class YamlMap(dict[str, Yaml]):
    """A mapping that knows its line (from 1) and the line of each key."""

    __slots__ = ("line", "lines")

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line = line
        self.lines: dict[str, int] = {}


class YamlList(list[Yaml]):
    """A sequence that knows its line (from 1) and the line of each item."""

    __slots__ = ("line", "lines")

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line = line
        self.lines: list[int] = []
