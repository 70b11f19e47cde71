"""Requests as an authenticator sees them, and FAKES of what it asks: a clock and an API server that reviews."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.requests import Request

from kvgauge.cluster.access import Attributes, Denied
from kvgauge.cluster.authentication import PEER_NAME, Identity, RequestHeader

TOKEN = "eyJhbGciOiJub25lIn0.c2VjcmV0.of-somebody"
HEADER = RequestHeader(
    client_ca="PEM",
    allowed_names=("front-proxy-client",),
    username_headers=("X-Remote-User",),
    group_headers=("X-Remote-Group",),
    extra_prefixes=("X-Remote-Extra-",),
    uid_headers=("X-Remote-Uid",),
)
ALICE = Identity("alice", ("dev", "system:authenticated"))
READ = Attributes("get", "custom.metrics.k8s.io", "v1beta2", "pods", "kvgauge_load_ratio", "llm", "*")


def request(*headers: tuple[str, str], peer: str | None = None) -> Request:
    """`peer`: common name of the verified client certificate. Headers are in lower case, as uvicorn gives them."""
    return Request(
        {
            "type": "http",
            "method": "GET",
            "path": "/",
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers],
            "extensions": {} if peer is None else {PEER_NAME: {"common_name": peer}},
        }
    )


def with_token(token: str = TOKEN) -> Request:
    return request(("Authorization", f"Bearer {token}"))


@dataclass
class FakeClock:
    seconds: float = 1000.0

    def __call__(self) -> float:
        return self.seconds


@dataclass
class FakeReviews:
    """Knows tokens and who may read what. While `open` is not set, answers wait."""

    tokens: Mapping[str, Identity] = field(default_factory=lambda: {TOKEN: ALICE})
    may: bool = True
    away: bool = False
    asked: list[object] = field(default_factory=list)
    open: asyncio.Event = field(default_factory=asyncio.Event)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    """It was asked."""

    def __post_init__(self) -> None:
        self.open.set()

    async def whose_token(self, token: str) -> Identity | None:
        self.asked.append(token)
        self.begun.set()
        await self.open.wait()
        if self.away:
            raise Denied(503, "away")
        return self.tokens.get(token)

    async def allows(self, identity: Identity, attributes: Attributes) -> bool:
        self.asked.append((identity, attributes))
        self.begun.set()
        await self.open.wait()
        if self.away:
            raise Denied(503, "away")
        return self.may
