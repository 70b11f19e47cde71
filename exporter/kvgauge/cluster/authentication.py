"""Who asks: the API server's front proxy on behalf of a user, or somebody with a bearer token.

The headers that name a user are believed only of a connection whose client certificate was signed by the request-header
CA and carries one of the names that are allowed; the CA is the only one that the TLS context accepts. Anybody else who
sends them is turned away.
"""

import asyncio
import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

from starlette.requests import Request

from kvgauge.cluster.access import Denied

NAMESPACE, CONFIG_MAP = "kube-system", "extension-apiserver-authentication"
PEER_NAME = "kvgauge.peer_name"
"""Among the ASGI scope's extensions: `common_name` of the verified client certificate."""
MOST_GROUPS = 256
MOST_CHARACTERS = 4096
_KNOWN_SECONDS, _UNKNOWN_SECONDS = 10.0, 2.0
_MOST_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Identity:
    user: str
    groups: tuple[str, ...] = ()
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    uid: str = ""

    @property
    def is_master(self) -> bool:
        return "system:masters" in self.groups


@dataclass(frozen=True, slots=True)
class RequestHeader:
    """How the API server's front proxy tells who asks."""

    client_ca: str
    allowed_names: tuple[str, ...]
    """Common names of its certificate; none: any."""
    username_headers: tuple[str, ...]
    group_headers: tuple[str, ...]
    extra_prefixes: tuple[str, ...]


def request_header_of(data: Mapping[str, str]) -> RequestHeader | None:
    """The settings in the ConfigMap's data; None where it has no CA, and then no header is believed. Raises ValueError
    where it cannot be read."""
    client_ca = data.get("requestheader-client-ca-file", "").strip()
    if not client_ca:
        return None
    return RequestHeader(
        client_ca,
        _names(data, "requestheader-allowed-names"),
        _names(data, "requestheader-username-headers"),
        _names(data, "requestheader-group-headers"),
        _names(data, "requestheader-extra-headers-prefix"),
    )


def _names(data: Mapping[str, str], key: str) -> tuple[str, ...]:
    names = json.loads(data.get(key, "[]"))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{key} is no list of names")
    return tuple(names)


Review = Callable[[str], Awaitable[Identity | None]]
"""Asks the API server whose token that is; None for nobody's. Raises Denied 503 when it cannot be asked."""


class Authenticator:
    """`request_header` is set anew whenever the ConfigMap changes."""

    def __init__(self, review: Review, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.request_header: RequestHeader | None = None
        self._review = review
        self._clock = clock
        self._known: OrderedDict[bytes, tuple[float, Identity | None]] = OrderedDict()
        self._asking: dict[bytes, asyncio.Future[Identity | None]] = {}

    async def identify(self, request: Request) -> Identity:
        """Raises Denied."""
        header = self.request_header
        name = request.scope.get("extensions", {}).get(PEER_NAME, {}).get("common_name")
        if header is not None and name is not None and (not header.allowed_names or name in header.allowed_names):
            return _told_by_headers(request, header)
        token = _bearer(request)
        if token is not None:
            identity = await self._of_token(token)
            if identity is None:
                raise Denied(401, "the token is not valid")
            return identity
        if header is not None and any(request.headers.getlist(each) for each in header.username_headers):
            raise Denied(403, "the connection may not speak for others")
        raise Denied(401, "neither a client certificate of the front proxy nor a token")

    async def _of_token(self, token: str) -> Identity | None:
        key = hashlib.sha256(token.encode()).digest()
        known = self._known.get(key)
        if known is not None and known[0] > self._clock():
            return known[1]
        asking = self._asking.get(key)
        if asking is None:
            # Many requests with one token are one question.
            asking = self._asking[key] = asyncio.ensure_future(self._review(token))
            asking.add_done_callback(lambda _: self._asking.pop(key, None))
        identity = await asyncio.shield(asking)
        until = self._clock() + (_KNOWN_SECONDS if identity is not None else _UNKNOWN_SECONDS)
        self._known[key] = until, identity
        self._known.move_to_end(key)
        while len(self._known) > _MOST_TOKENS:
            self._known.popitem(last=False)
        return identity


def _told_by_headers(request: Request, header: RequestHeader) -> Identity:
    users = [value for name in header.username_headers for value in request.headers.getlist(name)]
    if len(users) != 1 or not users[0]:
        raise Denied(401, "the front proxy names no user, or several")
    groups = tuple(value for name in header.group_headers for value in request.headers.getlist(name))
    extra: dict[str, list[str]] = {}
    for name, value in request.headers.items():
        for prefix in header.extra_prefixes:
            if name.startswith(prefix.lower()):
                extra.setdefault(unquote(name[len(prefix) :]), []).append(value)
    size = len(users[0]) + sum(map(len, groups)) + sum(len(value) for values in extra.values() for value in values)
    if len(groups) > MOST_GROUPS or size > 16 * MOST_CHARACTERS:
        raise Denied(403, "too much is said of the user")
    return Identity(users[0], groups, {key: tuple(values) for key, values in extra.items()})


def _bearer(request: Request) -> str | None:
    given = request.headers.getlist("authorization")
    if len(given) != 1:
        return None
    scheme, _, token = given[0].partition(" ")
    token = token.strip()
    return token if scheme.lower() == "bearer" and 0 < len(token) <= 4 * MOST_CHARACTERS else None
