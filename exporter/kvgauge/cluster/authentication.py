"""Who asks: the API server's front proxy on behalf of a user, or somebody with a bearer token.

The headers that name a user are believed only of a connection whose client certificate was signed by the request-header
CA and carries one of the names that are allowed; the CA is the only one that the TLS context accepts. Anybody else who
sends them is turned away, whatever else is sent.
"""

import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

from starlette.requests import Request

from kvgauge.cluster.access import Denied
from kvgauge.cluster.remembering import Keeping, Remembered

NAMESPACE, CONFIG_MAP = "kube-system", "extension-apiserver-authentication"
PEER_NAME = "kvgauge.peer_name"
"""Among the ASGI scope's extensions: `common_name` of the verified client certificate."""
_KNOWN, _UNKNOWN = Keeping(seconds=10.0), Keeping(seconds=2.0)
_MOST_TOKENS = 1024
_MOST_TOKEN_CHARACTERS = 16384
_ANONYMOUS, _UNAUTHENTICATED = "system:anonymous", "system:unauthenticated"


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
    uid_headers: tuple[str, ...] = ()

    def names(self, header: str) -> bool:
        """Whether a header, in lower case, tells something of a user."""
        whole = (*self.username_headers, *self.group_headers, *self.uid_headers)
        return any(header == name.lower() for name in whole) or any(
            header.startswith(prefix.lower()) for prefix in self.extra_prefixes
        )


_USUAL = RequestHeader("", (), ("X-Remote-User",), ("X-Remote-Group",), ("X-Remote-Extra-",), ("X-Remote-Uid",))
"""What names a user where the cluster does not say; believed of nobody."""


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
        _names(data, "requestheader-uid-headers"),
    )


def _names(data: Mapping[str, str], key: str) -> tuple[str, ...]:
    try:
        names = json.loads(data.get(key) or "[]")
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{key} is no list of names")
    return tuple(names)


Review = Callable[[str], Awaitable[Identity | None]]
"""Asks the API server whose token that is; None for nobody's. Raises Denied 503 when it cannot be asked."""


class Authenticator:
    """`request_header` is set anew whenever the ConfigMap changes."""

    def __init__(self, review: Review, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.request_header: RequestHeader | None = None
        self._review = review
        self._tokens = Remembered[Identity | None](
            lambda identity: _UNKNOWN if identity is None else _KNOWN, most=_MOST_TOKENS, clock=clock
        )

    async def identify(self, request: Request) -> Identity:
        """Raises Denied. Nobody anonymous is told."""
        identity = self._told_by_front_proxy(request) or await self._told_by_token(request)
        if identity is None:
            raise Denied(401, "neither a client certificate of the front proxy nor a token")
        if identity.user == _ANONYMOUS or _UNAUTHENTICATED in identity.groups:
            raise Denied(401, "nothing is told to anybody anonymous")
        return identity

    def _told_by_front_proxy(self, request: Request) -> Identity | None:
        header = self.request_header
        named = [name for name in request.headers if (header or _USUAL).names(name)]
        if not named:
            return None
        peer = request.scope.get("extensions", {}).get(PEER_NAME, {}).get("common_name")
        if header is None or peer is None or (header.allowed_names and peer not in header.allowed_names):
            raise Denied(403, "the connection may not speak for others")
        return _told_by_headers(request, header)

    async def _told_by_token(self, request: Request) -> Identity | None:
        token = _bearer(request)
        if token is None:
            return None
        # The token itself is not kept.
        identity = await self._tokens.get(hashlib.sha256(token.encode()).digest(), lambda: self._review(token))
        if identity is None:
            raise Denied(401, "the token is not valid")
        return identity


def _told_by_headers(request: Request, header: RequestHeader) -> Identity:
    users, uids = list(_values(request, header.username_headers)), list(_values(request, header.uid_headers))
    if len(users) != 1 or not users[0] or len(uids) > 1:
        raise Denied(401, "the front proxy names no user, or several")
    extra: dict[str, list[str]] = {}
    for prefix in header.extra_prefixes:
        for name in dict.fromkeys(request.headers):
            if name.startswith(prefix.lower()):
                extra.setdefault(unquote(name[len(prefix) :]), []).extend(_values(request, (name,)))
    return Identity(
        users[0],
        tuple(_values(request, header.group_headers)),
        {key: tuple(values) for key, values in extra.items()},
        "".join(uids),
    )


def _values(request: Request, names: tuple[str, ...]) -> Iterator[str]:
    """UTF-8, as the API server writes it. Raises Denied 401."""
    for name in names:
        for value in request.headers.getlist(name):
            try:
                yield value.encode("latin-1").decode()
            except UnicodeDecodeError:
                raise Denied(401, "the front proxy names a user in no known encoding") from None


def _bearer(request: Request) -> str | None:
    given = request.headers.getlist("authorization")
    if len(given) != 1:
        return None
    scheme, _, token = given[0].partition(" ")
    token = token.strip()
    return token if scheme.lower() == "bearer" and 0 < len(token) <= _MOST_TOKEN_CHARACTERS else None
