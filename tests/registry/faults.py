"""Scripted faults: a rule that says which answers, and an edit that says what goes wrong with them."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from tests.registry.content import Blob
from tests.registry.wire import Answer, Request, text

Edit = Callable[[Request, Answer], Answer]


@dataclass(slots=True)
class Fault:
    """Applies ``edit`` to the answers to matching requests.

    ``server``: ngc, hub or cdn ("" = any); ``path``: a regular expression searched in the raw target;
    ``skip`` matching requests pass first, then ``times`` are hit (None = all).
    """

    edit: Edit
    server: str = ""
    path: str = ""
    method: str = ""
    times: int | None = 1
    skip: int = 0
    hits: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __call__(self, request: Request, answer: Answer) -> Answer:
        if self.server and request.server != self.server:
            return answer
        if self.method and request.method != self.method:
            return answer
        if not re.search(self.path, request.target):
            return answer
        with self._lock:
            if self.skip:
                self.skip -= 1
                return answer
            if self.times is not None and self.hits >= self.times:
                return answer
            self.hits += 1
        return self.edit(request, answer)


def status(code: int, body: bytes = b"", kind: str = "text/plain", **headers: str) -> Edit:
    """Another status instead; ``retry_after="3"`` sets a header."""
    return lambda _request, _answer: text(code, body, kind, **headers)


def html(
    code: int = 200, body: bytes = b"<!doctype html><title>Log in</title>Welcome to the network"
) -> Edit:
    """What a captive portal or a proxy's login page answers."""
    return status(code, body, "text/html; charset=utf-8")


def corrupt(offset: int) -> Edit:
    """The byte at this offset of the file is inverted; length and headers stay right."""
    return lambda _request, answer: replace(answer, flip=offset)


def truncate(at: int, *, reset: bool = False) -> Edit:
    """The connection ends after ``at`` bytes of the body."""
    return lambda _request, answer: replace(answer, cut=at, reset=reset)


def stall(release: threading.Event, at: int = 0) -> Edit:
    """Nothing more after ``at`` bytes of the body until ``release`` is set."""
    return lambda _request, answer: replace(answer, hold=release, hold_at=at)


def slow(rate: int) -> Edit:
    """``rate`` bytes per second."""
    return lambda _request, answer: replace(answer, rate=rate)


def ignore_range(_request: Request, answer: Answer) -> Answer:
    """200 and the whole file, whatever range was asked for."""
    whole = answer.with_headers(content_range=None, accept_ranges=None)
    return replace(whole, status=200, start=0, end=answer.content.size) if answer.status == 206 else answer


def expired(_request: Request, _answer: Answer) -> Answer:
    """What CloudFront says to a presigned URL after its time."""
    return text(403, b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "application/xml")


def header(**headers: str | None) -> Edit:
    """``header(etag="unquoted", x_repo_commit=None)``: set, or drop with None."""
    return lambda _request, answer: answer.with_headers(**headers)


def redirect(location: str, code: int = 302) -> Edit:
    return lambda _request, _answer: text(code, Location=location)


def edit_json(change: Callable[[Any], Any]) -> Edit:
    """``change`` gets the document and returns another (or None after changing it in place)."""

    def edit(_request: Request, answer: Answer) -> Answer:
        value = answer.json
        changed = change(value)
        body = json.dumps(value if changed is None else changed).encode()
        return replace(answer, content=Blob(body), start=0, end=len(body))

    return edit


def drop_field(name: str) -> Edit:
    """The field is missing everywhere in the document."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strip(item) for key, item in value.items() if key != name}
        return [strip(item) for item in value] if isinstance(value, list) else value

    return edit_json(strip)
