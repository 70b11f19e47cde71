"""Who may read what: asked of the API server by SubjectAccessReview, and remembered for some seconds."""

import hashlib
import time
from collections.abc import Awaitable, Callable

from starlette.requests import Request

from kvgauge.cluster.access import Attributes, Denied
from kvgauge.cluster.authentication import Authenticator, Identity
from kvgauge.cluster.remembering import Keeping, Remembered

_ALLOWED = Keeping(seconds=10.0, grace_seconds=60.0)
"""An autoscaler that is refused while the API server cannot be asked would only add to the trouble."""
_DENIED = Keeping(seconds=2.0)
_MOST_ANSWERS = 4096

Allows = Callable[[Identity, Attributes], Awaitable[bool]]
"""Asks the API server. Raises Denied 503 when it cannot be asked."""


class Authorizer:
    """What the routes of the metrics APIs ask before they tell anything."""

    def __init__(
        self, authenticator: Authenticator, allows: Allows, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._authenticator = authenticator
        self._allows = allows
        self._answers = Remembered[bool](lambda may: _ALLOWED if may else _DENIED, most=_MOST_ANSWERS, clock=clock)

    async def __call__(self, request: Request, attributes: Attributes | None) -> None:
        """Raises Denied. Discovery is for everybody who is known."""
        identity = await self._authenticator.identify(request)
        if attributes is None or identity.is_master:
            return
        question = identity.user, identity.uid, identity.groups, sorted(identity.extra.items()), attributes
        key = hashlib.sha256(repr(question).encode()).digest()
        if not await self._answers.get(key, lambda: self._allows(identity, attributes)):
            raise Denied(403, "not allowed to read that")
