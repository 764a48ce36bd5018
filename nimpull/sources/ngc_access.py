"""Who asks NGC: an ``nvapi-`` key, a legacy key changed for a token, a ready token, or a guest."""

from __future__ import annotations

import json
import re
import threading
import uuid
from base64 import b64encode, urlsafe_b64decode
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlencode

from nimpull.core.names import ModelUri, Url
from nimpull.core.ports import Api, Clock
from nimpull.errors import AuthError, ListingError, NetworkError
from nimpull.sources.answers import is_page, page_error, read_json

_SCOPED_PREFIX: Final = "nvapi-"
_JWT: Final = re.compile(r"eyJ[\w-]*\.[\w-]+\.[\w-]*")
#: Seconds before its end from which a token is renewed, at most a quarter of its life.
_RENEWAL: Final = 300.0
_LONGEST: Final = 10 * 365 * 86_400.0  # seconds
KEY_HINT: Final = (
    "Set NGC_API_KEY to a key with access to the NGC catalog "
    "(NIMCache: spec.source.ngc.authSecret, secret key NGC_API_KEY)."
)


@dataclass(frozen=True, slots=True)
class Token:
    """``expires_at``: seconds since the epoch, None = not told."""

    value: str = field(repr=False)
    expires_at: float | None = None
    renew_at: float = float("inf")


class Access:
    """The headers that identify the caller. Thread-safe."""

    def __init__(self, api: Api, *, api_base: str, auth_base: str, key: str, clock: Clock) -> None:
        self._api = api
        self._api_base = api_base
        self._auth_base = auth_base
        self._key = key
        self._clock = clock
        self._guest_token = str(uuid.uuid4())  # any will do, as in ngcsdk
        self._tokens: dict[str, Token] = {}
        self._caller_org: str | None = None
        self._lock = threading.Lock()

    @property
    def keyed(self) -> bool:
        return bool(self._key)

    @property
    def renewable(self) -> bool:
        """Whether a 401 may only mean that the token has ended."""
        return self.keyed and not self._key.startswith(_SCOPED_PREFIX) and not _JWT.fullmatch(self._key)

    def headers(self, repo: ModelUri) -> dict[str, str]:
        """Raises AuthError if the key is refused, and what the transport raises."""
        if not self._key:
            return {"X-NGC-Guest-Token": self._guest_token}
        with self._lock:
            token = self._token(repo)
            org = self._organization() or repo.org
        return {"Authorization": f"Bearer {token.value}", "nv-ngc-org": org}

    def expires_at(self, repo: ModelUri) -> float | None:
        with self._lock:
            return self._token(repo).expires_at if self._key else None

    def renew(self) -> None:
        """Forget the tokens: the server said they are no good any more."""
        with self._lock:
            self._tokens.clear()

    def _token(self, repo: ModelUri) -> Token:
        if self._key.startswith(_SCOPED_PREFIX):
            return Token(self._key)
        if _JWT.fullmatch(self._key):
            return self._own_token()
        scope = f"{repo.org}/{repo.team}"
        known = self._tokens.get(scope)
        if known is None or self._clock.time() >= known.renew_at:
            known = self._tokens[scope] = self._exchange(repo)
        return known

    def _own_token(self) -> Token:
        payload = self._key.split(".")[1]
        try:
            claims = json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
            ends = float(claims["exp"])
        except (ValueError, KeyError, TypeError, OverflowError):
            return Token(self._key)  # the server will say whether it is good
        if ends <= self._clock.time():
            raise AuthError("the NGC token in NGC_API_KEY has expired", hint=KEY_HINT)
        return Token(self._key, ends)

    def _exchange(self, repo: ModelUri) -> Token:
        """``GET /token?service=ngc&scope=…`` with Basic ``$oauthtoken:KEY``, as for the NGC CLI."""
        scopes = [("service", "ngc"), ("scope", f"group/ngc:{repo.org}")]
        if repo.team:
            scopes.append(("scope", f"group/ngc:{repo.org}/{repo.team}"))
        basic = b64encode(f"$oauthtoken:{self._key}".encode()).decode()
        url = Url(f"{self._auth_base}/token?{urlencode(scopes, safe='/:')}")
        reply = self._api.request("GET", url, headers={"Authorization": f"Basic {basic}"})
        if is_page(reply):
            raise page_error(reply)
        if reply.status == 429 or reply.status >= 500:
            raise NetworkError(
                f"{url.authority} fails with HTTP {reply.status} while changing the NGC key for a token",
                hint="Run again later.",
            )
        if reply.status != 200:
            raise AuthError(f"{url.authority} refuses the NGC key (HTTP {reply.status})", hint=KEY_HINT)
        answer = read_json(reply)
        value = answer.get("token") if isinstance(answer, dict) else None
        if not isinstance(value, str) or not re.fullmatch(r"[\x21-\x7e]+", value):
            raise ListingError(
                f"{url.authority} answers the key without a token", hint="Check NGC_AUTH_ENDPOINT."
            )
        lasts = answer.get("expires_in")
        # a token of unknown, or unbelievable, life is used for its request only, as the NGC CLI does
        seconds = float(lasts) if isinstance(lasts, int | float) and 0 < lasts < _LONGEST else 0.0
        ends = self._clock.time() + seconds
        return Token(value, ends, ends - min(_RENEWAL, seconds / 4))

    def _organization(self) -> str:
        """The organization of an ``nvapi-`` key, for ``nv-ngc-org``; "" where the endpoint cannot tell.

        Some organizations answer "Org contex missing" to a request without it.
        """
        if not self._key.startswith(_SCOPED_PREFIX):
            return ""
        if self._caller_org is None:
            self._caller_org = self._ask_organization()
        return self._caller_org

    def _ask_organization(self) -> str:
        url = Url(f"{self._api_base}/v3/keys/get-caller-info")
        reply = self._api.request(
            "POST",
            url,
            headers={"Content-Type": "application/x-www-form-urlencoded"},
            body=urlencode({"credentials": self._key}).encode(),
        )
        if is_page(reply):
            raise page_error(reply)
        if reply.status == 401:
            raise AuthError(f"{url.authority} refuses the NGC key (HTTP 401)", hint=KEY_HINT)
        if reply.status != 200:
            return ""  # a mirror need not know this call
        answer = read_json(reply)
        name = answer.get("orgName") if isinstance(answer, dict) else None
        return name if isinstance(name, str) and re.fullmatch(r"[\w.-]+", name, re.ASCII) else ""
