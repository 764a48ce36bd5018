"""What answers of registries have in common: JSON, or a page from something between, and URLs that end."""

from __future__ import annotations

import json
import re
from calendar import timegm
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from nimpull.core.names import Url, display
from nimpull.core.reply import Reply
from nimpull.errors import AuthError, ForbiddenError, ListingError, NetworkError, NimpullError, NotFoundError

#: Seconds before its end from which a presigned URL is not handed out any more.
EXPIRY_MARGIN: Final = 60.0
_SAID: Final = 240  # characters of a server's own words in a message


def is_page(reply: Reply) -> bool:
    """HTML instead of an API's answer: a captive portal, a proxy's login or a wrong address."""
    kind = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind in ("text/html", "application/xhtml+xml") or reply.body[:64].lstrip().lower().startswith(
        (b"<!doctype html", b"<html")
    )


def page_error(reply: Reply) -> NimpullError:
    """For a web page where a registry should have answered."""
    if reply.status == 401 and reply.headers.get("www-authenticate", "").lower().startswith("basic"):
        return _no_login(reply)
    kind = display(reply.headers.get("content-type", "no content type"), 60)
    message = (
        f"{reply.url.authority} answers HTTP {reply.status} with a web page ({kind}), not as a registry does"
    )
    hint = (
        "Something on the way answers instead: a captive portal, a proxy that wants a login, or the endpoint "
        "is not a registry. Check the endpoint, HTTPS_PROXY and NO_PROXY."
    )
    return AuthError(message, hint=hint) if reply.status == 401 else NetworkError(message, hint=hint)


def read_json(reply: Reply) -> Any:
    """The document of a 2xx answer. Raises NetworkError for a page, ListingError for anything else."""
    if is_page(reply):
        raise page_error(reply)
    try:
        return json.loads(reply.body)
    except (ValueError, RecursionError) as error:
        kind = display(reply.headers.get("content-type", "no content type"), 60)
        raise ListingError(
            f"{reply.url} answers HTTP {reply.status} with {len(reply.body)} bytes of {kind} "
            "that are not JSON",
            hint="Check the endpoint; a proxy may have changed or cut the answer.",
        ) from error


def error_document(reply: Reply) -> Mapping[str, Any]:
    """The JSON object that explains a refusal; none where the answer is something else."""
    try:
        answer = read_json(reply)
    except NimpullError:
        return {}
    return answer if isinstance(answer, dict) else {}


def said(text: object, *secrets: str) -> str:
    """The server's words for a message, ``: …`` or nothing; a secret that it echoes is taken out."""
    words = text if isinstance(text, str) else ""
    for secret in secrets:
        if secret:
            words = words.replace(secret, "(secret)")
    return f": {display(words.strip(), _SAID)}" if words.strip() else ""


def common_refusal(reply: Reply, what: str, words: str) -> NimpullError:
    """For the statuses that mean the same everywhere; ``words`` as :func:`said` makes them."""
    host = reply.url.authority
    if is_page(reply) and reply.status not in (404, 451):
        return page_error(reply)
    if reply.status == 451:
        return ForbiddenError(
            f"{host} may not give {what} here for legal reasons (HTTP 451){words}",
            hint="The model is not available in this region.",
        )
    if reply.status == 429:
        return NetworkError(
            f"{host} limits the rate of requests (HTTP 429) while reading {what}{words}",
            hint="Run again later; requests with a credential have a higher limit.",
        )
    if reply.status >= 500:
        return NetworkError(
            f"{host} fails with HTTP {reply.status} while reading {what}{words}",
            hint="Run again later; the service is in trouble.",
        )
    if reply.status == 404:
        return NotFoundError(
            f"{host} has no {what}{words}", hint="Check the name, the version and the endpoint."
        )
    return ListingError(
        f"{host} refuses to list {what} (HTTP {reply.status}){words}",
        hint="Check the model URI and the endpoint.",
    )


def web_refusal(reply: Reply, what: str, absent: str) -> NimpullError:
    """Of a plain web server, whose refusals are pages too; ``absent``: the hint where it has no ``what``."""
    if reply.status == 404:
        return NotFoundError(f"{reply.url.authority} has no {what}", hint=absent)
    if reply.status == 401:
        return _no_login(reply)
    if reply.status == 403:
        return ForbiddenError(
            f"{reply.url.authority} does not give {what} (HTTP 403)",
            hint="Check the rights of the files there, or the user in the address, if it names one.",
        )
    return common_refusal(reply, what, "")


def _no_login(reply: Reply) -> AuthError:
    return AuthError(
        f"{reply.url.authority} wants a user and a password (HTTP 401)",
        hint="They stand before the host's name in the address: https://USER:PASSWORD@HOST/PATH; "
        "if they do already, they are not the right ones.",
    )


def expiry(url: Url) -> float | None:
    """When a presigned URL ends, seconds since the epoch; None where it does not say.

    CloudFront writes ``Expires`` (epoch), S3 version 4 ``X-Amz-Date`` and ``X-Amz-Expires`` (seconds).
    """
    try:
        query = {name.lower(): values[0] for name, values in parse_qs(urlsplit(url.reveal()).query).items()}
        if "expires" in query:
            return float(_whole(query["expires"]))
        begun = datetime.strptime(query["x-amz-date"], "%Y%m%dT%H%M%SZ")  # UTC, as timegm reads it
        return float(timegm(begun.timetuple()) + _whole(query["x-amz-expires"]))
    except (KeyError, ValueError):
        return None


def length(reply: Reply) -> int | None:
    """Bytes of the file that a HEAD answered for; the Hub tells an LFS file's size in ``X-Linked-Size``."""
    for name in ("x-linked-size", "content-length"):
        if name in reply.headers and (name != "content-length" or reply.status == 200):
            with suppress(ValueError):
                return _whole(reply.headers[name])
    return None


def unquoted(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')


def _whole(text: str) -> int:
    """From a header or a query. Raises ValueError, also for 10^18 and more: that is no size and no time."""
    if not re.fullmatch(r"\d{1,18}", text, re.ASCII):
        raise ValueError(f"not a number: {text[:20]!r}")
    return int(text)
