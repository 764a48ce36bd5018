"""Which requests go over a kept line, and the lines that wait for the next one."""

from __future__ import annotations

import http.client
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from urllib3.connection import HTTPConnection

from nimpull.core.names import Url
from nimpull.transport.line import Line, Reply

#: An origin, and a target that can stand in a request as it is (RFC 3986): no user info, no dot segment.
_PLAIN: Final = re.compile(
    r"(https?://(?:[A-Za-z0-9.-]++|\[[0-9A-Fa-f:.]++\])(?::\d{1,5})?)"
    r"(/(?![^?]*/\.\.?(?:[/?]|$))(?!\.\.?(?:[/?]|$))"
    r"(?:[A-Za-z0-9!$&'()*+,/:;=@\[\]_.~-]++|%[0-9A-Fa-f]{2})*+"
    r"(?:\?(?:[A-Za-z0-9!$&'()*+,/:;=?@\[\]_.~-]++|%[0-9A-Fa-f]{2})*+)?)"
)
_NAME: Final = re.compile(r"(?!host$)[!#$%&'*+.^_`|~0-9a-z-]+", re.IGNORECASE)
_VALUE: Final = re.compile(r"[\x21-\x7e\x80-\xff](?:[\x20-\x7e\x80-\xff\t]*[\x21-\x7e\x80-\xff])?")
_BLOCKS: Final = 64
#: urllib3-future, which installs itself in urllib3's place, has connections that show no socket.
SPEAKABLE: Final = issubclass(HTTPConnection, http.client.HTTPConnection)


@dataclass(slots=True)
class Route:
    """How an origin is reached. ``host``: its Host header; ``idle``: lines that wait for a request."""

    host: str
    connect: Callable[[], HTTPConnection]
    proxy: Url | None = None
    idle: list[Line] = field(default_factory=list)


class Lines:
    """Thread-safe. ``choose``: the route to a URL's origin, None where no line goes there."""

    def __init__(self, choose: Callable[[Url], Route | None], *, most: int, read_timeout: float) -> None:
        """``most``: idle lines kept per origin; ``read_timeout``: seconds of silence before a head."""
        self._choose = choose
        self._most = most
        self._read_timeout = read_timeout
        self._routes: dict[str, Route | None] = {}
        self._blocks: dict[tuple[tuple[str, str], ...], str] = {}
        self._closed = False

    def get(
        self, url: Url, headers: Mapping[str, str], waiting: Callable[[], None], *, fresh: bool
    ) -> tuple[Reply, Url | None] | None:
        """The answer to a GET, and the proxy it came through; None where the request is not plain enough.

        ``waiting`` is called about every tick, and may raise. ``fresh``: over a connection of its own. Raises
        what the wire raises.
        """
        plain = _PLAIN.fullmatch(url.reveal())
        if plain is None:
            return None
        origin, target = plain.groups()
        try:
            route = self._routes[origin]
        except KeyError:
            route = self._routes.setdefault(origin, self._choose(url) if SPEAKABLE else None)
        block = self._block(headers)
        if route is None or block is None:
            return None
        request = f"GET {target} HTTP/1.1\r\nHost: {route.host}\r\n{block}\r\n".encode("latin-1")
        return self._ask(route, request, waiting, fresh=fresh), route.proxy

    def _block(self, headers: Mapping[str, str]) -> str | None:
        """``header_block``, kept: thousands of small files are asked for with the same few headers."""
        key = tuple(headers.items())
        block = self._blocks.get(key)
        if block is None:
            block = header_block(headers)
            if block is not None:
                if len(self._blocks) >= _BLOCKS:
                    self._blocks.clear()
                self._blocks[key] = block
        return block

    def _ask(self, route: Route, request: bytes, waiting: Callable[[], None], *, fresh: bool) -> Reply:
        line = None if fresh else self._take(route)
        if line is not None:
            try:
                return line.ask(request, waiting)
            except (ConnectionError, ssl.SSLEOFError):
                line.drop()
                if line.answering:
                    raise
            except BaseException:
                line.drop()
                raise
            waiting()  # a server may end a kept connection at any time: this request it did not see
        line = Line(route.connect(), self._read_timeout, None if fresh else self._keeper(route))
        try:
            return line.ask(request, waiting)
        except BaseException:
            line.drop()
            raise

    def _take(self, route: Route) -> Line | None:
        try:
            return route.idle.pop()
        except IndexError:
            return None

    def _keeper(self, route: Route) -> Callable[[Line], None]:
        def keep(line: Line) -> None:
            if self._closed or len(route.idle) >= self._most:
                line.drop()
            else:
                route.idle.append(line)

        return keep

    def close(self) -> None:
        self._closed = True
        for route in tuple(self._routes.values()):
            while route is not None and (line := self._take(route)) is not None:
                line.drop()


def header_block(headers: Mapping[str, str]) -> str | None:
    """Header lines, None where one is not plain (RFC 9110, 5.5) or is not the caller's to set."""
    lines = []
    for name, value in headers.items():
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            return None
        lines.append(f"{name}: {value}\r\n")
    return "".join(lines)
