"""Who may read what: asked of the API server by SubjectAccessReview, and remembered for some seconds."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from starlette.requests import Request

from kvgauge.cluster.access import Attributes, Denied
from kvgauge.cluster.authentication import Authenticator, Identity

_ALLOWED_SECONDS, _DENIED_SECONDS = 10.0, 2.0
_GRACE_SECONDS = 60.0
"""For so long an answer that allowed outlives its time while the API server cannot be asked: an autoscaler that is
refused then would only add to the trouble."""
_MOST_ANSWERS = 4096

Allows = Callable[[Identity, Attributes], Awaitable[bool]]
"""Asks the API server. Raises Denied 503 when it cannot be asked."""
_Question = tuple[str, tuple[str, ...], str, Attributes]


class Authorizer:
    """What the routes of the metrics APIs ask before they tell anything."""

    def __init__(
        self, authenticator: Authenticator, allows: Allows, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._authenticator = authenticator
        self._allows = allows
        self._clock = clock
        self._answers: OrderedDict[_Question, tuple[float, bool]] = OrderedDict()
        self._asking: dict[_Question, asyncio.Future[bool]] = {}

    async def __call__(self, request: Request, attributes: Attributes | None) -> None:
        """Raises Denied. Discovery is for everybody who is known."""
        identity = await self._authenticator.identify(request)
        if attributes is None or identity.is_master:
            return
        if not await self._allowed(identity, attributes):
            raise Denied(403, "not allowed to read that")

    async def _allowed(self, identity: Identity, attributes: Attributes) -> bool:
        extra = repr(sorted(identity.extra.items()))
        question = identity.user, identity.groups, extra, attributes
        known = self._answers.get(question)
        now = self._clock()
        if known is not None and known[0] > now:
            return known[1]
        asking = self._asking.get(question)
        if asking is None:
            asking = self._asking[question] = asyncio.ensure_future(self._allows(identity, attributes))
            asking.add_done_callback(lambda _: self._asking.pop(question, None))
        try:
            allowed = await asyncio.shield(asking)
        except Denied:
            if known is not None and known[1] and known[0] + _GRACE_SECONDS > now:
                return True
            raise
        self._answers[question] = self._clock() + (_ALLOWED_SECONDS if allowed else _DENIED_SECONDS), allowed
        self._answers.move_to_end(question)
        while len(self._answers) > _MOST_ANSWERS:
            self._answers.popitem(last=False)
        return allowed
