"""The webhook's HTTP side: an AdmissionReview in, the same review answered. Whatever comes in, a pod is never refused.

No authentication beyond TLS: the answer tells a caller nothing but what the caller has sent, and nothing is kept.
"""

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any, Literal

from fastapi import Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel
from starlette.applications import Starlette
from starlette.routing import Route

from kvgauge.cluster.injector.counting import Counts
from kvgauge.cluster.injector.patching import Outcome, inject
from kvgauge.cluster.injector.pods import Pod
from kvgauge.cluster.settings import InjectorSettings
from kvgauge.logs import logger

PATH = "/inject"
MAX_BODY_BYTES = 3 * 1024 * 1024
"""What the API server itself takes of a request."""
BODY_SECONDS = 5.0
"""The longest that the API server waits for an answer, as the chart sets it."""
_GROUP_VERSION = "admission.k8s.io/v1"
_MAX_WARNING_LENGTH = 250


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, alias_generator=to_camel)


class _Kind(_Part):
    group: str = ""
    version: str
    kind: str


class _Request(_Part):
    uid: str = Field(min_length=1, max_length=128)
    kind: _Kind
    operation: str
    sub_resource: str | None = None
    object: Any = None


class _Review(_Part):
    api_version: Literal["admission.k8s.io/v1"]
    kind: Literal["AdmissionReview"]
    request: _Request


class _UnusableError(Exception):
    """A request that is no AdmissionReview that could be answered."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def create_app(
    settings: InjectorSettings, counts: Counts, is_native: Callable[[], bool], *, body_seconds: float = BODY_SECONDS
) -> Starlette:
    """`is_native` tells whether the cluster keeps init containers running; `body_seconds` bounds the time that a body
    takes to come."""

    async def answer(request: Request) -> Response:
        with counts.timed():
            try:
                review = _review(await _body(request, body_seconds))
            except _UnusableError as error:
                counts.count("failed", "malformed")
                # What was not read of the body is not wanted any more either.
                return PlainTextResponse(f"{error.message}\n", error.status, headers={"Connection": "close"})
            return JSONResponse(_answered(review.request, settings, counts, is_native))

    async def livez(_request: Request) -> Response:
        return PlainTextResponse("ok\n")

    return Starlette(routes=[Route(PATH, answer, methods=["POST"]), Route("/livez", livez)])


async def _body(request: Request, seconds: float) -> bytes:
    """Raises _UnusableError for one that is too large, too slow or no JSON."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise _UnusableError(415, "content-type: should be application/json")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise _UnusableError(415, "content-encoding: should be identity")
    too_large = _UnusableError(413, f"body: larger than {MAX_BODY_BYTES} bytes")
    stated = request.headers.get("content-length", "0")
    if not stated.isdecimal() or len(stated) > 12 or int(stated) > MAX_BODY_BYTES:
        raise too_large
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                size += len(part)
                if size > MAX_BODY_BYTES:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise _UnusableError(408, f"body: not complete after {seconds:g} s") from None
    return b"".join(parts)


def _review(body: bytes) -> _Review:
    try:
        return _Review.model_validate_json(body)
    except ValidationError as error:
        # Of the complaint only where it is: the rest may quote a Secret.
        place = ".".join(str(part) for part in error.errors(include_url=False, include_input=False)[0]["loc"])[:100]
        where = place if place.isascii() and place.isprintable() else ""
        raise _UnusableError(400, f"not an AdmissionReview of {_GROUP_VERSION}: {where or 'body'}") from None


def _answered(
    request: _Request, settings: InjectorSettings, counts: Counts, is_native: Callable[[], bool]
) -> dict[str, object]:
    try:
        outcome = _outcome(request, settings, native=is_native())
    except ValidationError:
        outcome = Outcome("failed", "malformed", (), ("kvgauge: the pod cannot be read; it is left as it is",))
    except Exception as error:
        # The type alone: a message may quote the pod.
        logger.error("a pod could not be looked at: %s", type(error).__name__)
        outcome = Outcome("failed", "internal", (), ("kvgauge: internal error; the pod is left as it is",))
    counts.count(outcome.result, outcome.reason)
    response: dict[str, object] = {
        "uid": request.uid,
        "allowed": True,
        "auditAnnotations": {"result": outcome.result, "reason": outcome.reason},
    }
    if outcome.patch:
        patch = json.dumps(outcome.patch, separators=(",", ":")).encode()
        response |= {"patchType": "JSONPatch", "patch": base64.b64encode(patch).decode()}
    if outcome.warnings:
        response["warnings"] = [warning[:_MAX_WARNING_LENGTH] for warning in outcome.warnings]
    return {"apiVersion": _GROUP_VERSION, "kind": "AdmissionReview", "response": response}


def _outcome(request: _Request, settings: InjectorSettings, *, native: bool) -> Outcome:
    kind = request.kind
    if (kind.group, kind.version, kind.kind) != ("", "v1", "Pod") or request.sub_resource:
        return Outcome("skipped", "other_kind")
    if request.operation != "CREATE":
        return Outcome("skipped", "other_operation")
    return inject(Pod.model_validate(request.object), settings, native=native)
