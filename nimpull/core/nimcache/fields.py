"""The fields of an object of the API, each with its path, refused in the API server's words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, NoReturn

from nimpull.core.names import display
from nimpull.errors import UsageError

_TRUE: Final = frozenset({"true", "yes", "on"})
_FALSE: Final = frozenset({"false", "no", "off"})


def refuse(path: str, rule: str, hint: str = "") -> NoReturn:
    """Raises UsageError. ``path``: of the field; ``rule``: the API server's words."""
    raise UsageError(
        f"{path}: {rule}", hint=hint or f"Correct {path} in the NIMCache; the cluster would refuse it too."
    )


class Fields:
    """An object of the document that knows its path; every value is text until asked for as something.

    ``notes``: shared by all fields of a document. What cannot be what it is asked for raises UsageError.
    """

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
            refuse(self.at(name), f"Invalid value: {self.at(name)} in body must be of type string")
        return value

    def check(self, *names: str) -> None:
        """What a pull has no use for must still be text, as the API server has it."""
        for name in names:
            self.text(name)

    def note_refusal(self, rule: str) -> None:
        """Of the cluster, for something that does not matter to a pull here."""
        self.notes.append(f"a cluster would refuse this NIMCache: {rule}")

    def cluster_wants(self, *names: str) -> None:
        for name in names:
            if not self.text(name):
                self.note_refusal(f"{self.at(name)}: Required value")

    def texts(self, name: str) -> tuple[str, ...]:
        values = self._list(name)
        texts = tuple(value for value in values if isinstance(value, str))
        if len(texts) != len(values):
            refuse(self.at(name), f"Invalid value: {self.at(name)} in body must be an array of strings")
        return texts

    def boolean(self, name: str) -> bool | None:
        text = self.text(name).lower()
        if text and text not in _TRUE | _FALSE:
            refuse(self.at(name), f"Invalid value: {self.at(name)} in body must be of type boolean")
        return text in _TRUE if text else None

    def integer(self, name: str) -> int | None:
        text = self.text(name)
        if text and not re.fullmatch(r"\d{1,18}", text, re.ASCII):
            refuse(self.at(name), f"Invalid value: {self.at(name)} in body must be of type integer")
        return int(text) if text else None

    def section(self, name: str, *, required: bool = False) -> Fields:
        value = self._content.get(name)
        if value is None and required:
            refuse(self.at(name), "Required value")
        if value is not None and not isinstance(value, dict):
            refuse(self.at(name), f"Invalid value: {self.at(name)} in body must be of type object")
        return Fields(value or {}, self.at(name), self.notes)

    def sections(self, name: str) -> tuple[Fields, ...]:
        values = self._list(name)
        for index, value in enumerate(values):
            if not isinstance(value, dict):
                path = f"{self.at(name)}[{index}]"
                refuse(path, f"Invalid value: {path} in body must be of type object")
        return tuple(
            Fields(value, f"{self.at(name)}[{index}]", self.notes)
            for index, value in enumerate(values)
            if isinstance(value, dict)
        )

    def _list(self, name: str) -> list[object]:
        value = self._content.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            refuse(self.at(name), f"Invalid value: {self.at(name)} in body must be of type array")
        return list(value)
