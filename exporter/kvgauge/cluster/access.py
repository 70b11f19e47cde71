"""What a request wants to read, as an authoriser is asked for it, and the refusal."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import Request


@dataclass(frozen=True, slots=True)
class Attributes:
    """What a SubjectAccessReview asks of a read. `name` is "*" for all objects of a kind."""

    verb: str
    group: str
    version: str
    resource: str
    subresource: str
    namespace: str
    name: str


class Denied(Exception):  # noqa: N818 - it is an answer, not an error
    """Whoever asks may not read that, or it can't be found out who it is. The message tells nothing of what is there.

    `code` is the HTTP status: 401, 403, or 503 where the API server could not be asked.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


Authorize = Callable[[Request, Attributes | None], Awaitable[None]]
"""Lets a read pass or raises Denied. Without attributes it is a discovery read, which everybody known may do."""
