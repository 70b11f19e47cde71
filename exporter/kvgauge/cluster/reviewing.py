"""TokenReview and SubjectAccessReview through the official client."""

import asyncio
from typing import TYPE_CHECKING

from kvgauge.cluster.access import Attributes, Denied
from kvgauge.cluster.authentication import Identity

if TYPE_CHECKING:
    from kubernetes.aio.client import ApiClient

_TIMEOUT_SECONDS = 5.0
TOKENS_AT_ONCE = 16
"""Whoever makes up tokens must not crowd out the questions of those who are known."""


class Reviewer:
    """Asks the API server who somebody is and what they may do. Anything but its answer is a Denied 503."""

    def __init__(self, client: "ApiClient", *, timeout_seconds: float = _TIMEOUT_SECONDS) -> None:
        from kubernetes.aio.client import AuthenticationV1Api, AuthorizationV1Api

        self._authentication = AuthenticationV1Api(client)
        self._authorization = AuthorizationV1Api(client)
        self._timeout_seconds = timeout_seconds
        self._turns = asyncio.Semaphore(TOKENS_AT_ONCE)

    async def whose_token(self, token: str) -> Identity | None:
        from kubernetes.aio.client import V1TokenReview, V1TokenReviewSpec

        review = V1TokenReview(
            api_version="authentication.k8s.io/v1", kind="TokenReview", spec=V1TokenReviewSpec(token=token)
        )
        try:
            async with asyncio.timeout(self._timeout_seconds), self._turns:
                answer = await self._authentication.create_token_review(review)
        except Exception:
            # The client's errors may carry the request, and with it the token: nothing of them is kept.
            raise Denied(503, "the API server could not be asked whose token that is") from None
        status = answer.status
        user = status.user if status is not None and status.authenticated else None
        name = user.username if user is not None else None
        if user is None or not name:
            return None
        extra = {key: tuple(values) for key, values in (user.extra or {}).items()}
        return Identity(name, tuple(user.groups or ()), extra, user.uid or "")

    async def allows(self, identity: Identity, attributes: Attributes) -> bool:
        from kubernetes.aio.client import V1ResourceAttributes, V1SubjectAccessReview, V1SubjectAccessReviewSpec

        wanted = V1ResourceAttributes(
            verb=attributes.verb,
            group=attributes.group,
            version=attributes.version,
            resource=attributes.resource,
            subresource=attributes.subresource or None,
            namespace=attributes.namespace or None,
            name=attributes.name or None,
        )
        spec = V1SubjectAccessReviewSpec(
            user=identity.user,
            groups=list(identity.groups) or None,
            extra={key: list(values) for key, values in identity.extra.items()} or None,
            uid=identity.uid or None,
            resource_attributes=wanted,
        )
        review = V1SubjectAccessReview(api_version="authorization.k8s.io/v1", kind="SubjectAccessReview", spec=spec)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                answer = await self._authorization.create_subject_access_review(review)
        except Exception:
            raise Denied(503, "the API server could not be asked what is allowed") from None
        return bool(answer.status is not None and answer.status.allowed and not answer.status.denied)
