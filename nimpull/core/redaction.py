"""Text for a reader, without what must not reach one: controls, endless foreign text, credentials.

The credentials are a second line of defence: own messages never hold one, a library's might.
"""

from __future__ import annotations

import re
from typing import Final

from nimpull.core.names import FOREIGN_TEXT_LIMIT, display

MESSAGE_LIMIT: Final = 4000  # characters of an own message with its nearest misses

#: Query parameters, variables and fields whose value is a secret.
_NAMES: Final = (
    r"x-(?:amz|goog)-[a-z-]{1,40}|ssec-key|signature|sig|policy|key-pair-id|[a-z_]{0,40}token"
    r"|[a-z_-]{0,40}api[_-]?key|[a-z_]{0,40}password|[a-z_]{0,40}secret(?:_access_key)?"
)
_HEADERS: Final = r"(?:proxy-)?authorization|(?:set-)?cookie|x-api-key|x-[a-z-]{0,40}token"
#: Narrow on purpose: an own message about “a token: refused” must stay readable.
_SECRETS: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        (r"\b(https?://)[^\s/@]+@", r"\1…@"),
        (r"\b(https?://[^\s?\"'<>]*)\?[^\s\"'<>]*", r"\1?…"),
        (rf"\b({_HEADERS}):\s*[^\r\n,}}]+", r"\1: …"),
        (r"\b(bearer|basic)\s+(?=\S*[0-9=._])[a-z0-9._~+/=-]{8,}", r"\1 …"),
        (r"\b(nvapi-)[a-z0-9_-]{8,}", r"\1…"),
        (r"\b(hf_)[a-z0-9]{12,}", r"\1…"),
        (rf"\b({_NAMES})=[^\s&,;\"'}}\])]{{4,}}", r"\1=…"),
        (rf"([\"'](?:{_NAMES})[\"']\s?:\s?[\"'])[^\"']+", r"\1…"),
    )
)


def clean(text: object, limit: int = FOREIGN_TEXT_LIMIT) -> str:
    """Text that may quote a library or a server: escaped, cut at ``limit`` characters, no credentials."""
    # 512 more than is shown: a credential that the limit would cut in half is whole when it is looked for.
    return display(_without_secrets(str(text)[: limit + 512]), limit)


def prose(text: str) -> str:
    """An own message: its line breaks stay, each line is cleaned."""
    return "\n".join(clean(line, MESSAGE_LIMIT) for line in text[:MESSAGE_LIMIT].split("\n"))


def _without_secrets(text: str) -> str:
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text
