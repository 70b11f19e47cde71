"""Who may read what, and how often the API server is asked."""

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import pytest
from starlette.requests import Request

from kvgauge.cluster.access import Attributes, Denied
from kvgauge.cluster.authentication import Authenticator
from kvgauge.cluster.authorization import Authorizer

from .asking import HEADER, READ, FakeClock, FakeReviews, request, with_token


def asks(user: str = "alice", *headers: tuple[str, str]) -> Request:
    return request(("X-Remote-User", user), *headers, peer="front-proxy-client")


def authorizer(reviews: FakeReviews, clock: FakeClock | None = None) -> Authorizer:
    authenticator = Authenticator(reviews.whose_token, clock=clock or FakeClock())
    authenticator.request_header = HEADER
    return Authorizer(authenticator, reviews.allows, clock=clock or FakeClock())


async def outcome(asking: Coroutine[Any, Any, None]) -> int:
    """200, or the code of the refusal."""
    try:
        await asking
    except Denied as denied:
        return denied.code
    return 200


def test_a_hundred_same_questions_at_once_are_one() -> None:
    async def run() -> None:
        reviews = FakeReviews()
        reviews.open.clear()
        authorize = authorizer(reviews)
        asking = [asyncio.create_task(outcome(authorize(asks(), READ))) for _ in range(100)]
        await reviews.begun.wait()
        reviews.open.set()
        assert await asyncio.gather(*asking) == [200] * 100
        assert len(reviews.asked) == 1

    asyncio.run(run())


@pytest.mark.parametrize("first", [True, False], ids=["whoever asked", "another"])
def test_a_request_that_is_cancelled_leaves_the_others_their_answer(first: bool) -> None:
    async def run() -> None:
        reviews = FakeReviews()
        reviews.open.clear()
        authorize = authorizer(reviews)
        asking = [asyncio.create_task(outcome(authorize(asks(), READ))) for _ in range(10)]
        await reviews.begun.wait()
        gone = asking.pop(0 if first else 5)
        gone.cancel()
        await asyncio.wait({gone})
        reviews.open.set()
        assert await asyncio.gather(*asking) == [200] * 9
        assert len(reviews.asked) == 1

    asyncio.run(run())


def test_an_answer_that_nobody_waits_for_any_more_is_kept() -> None:
    async def run() -> None:
        reviews = FakeReviews()
        reviews.open.clear()
        authorize = authorizer(reviews)
        asking = asyncio.create_task(outcome(authorize(asks(), READ)))
        await reviews.begun.wait()
        asking.cancel()
        await asyncio.wait({asking})
        reviews.open.set()
        assert await outcome(authorize(asks(), READ)) == 200
        assert len(reviews.asked) == 1

    asyncio.run(run())


def test_answers_are_remembered_for_a_while_a_refusal_for_less() -> None:
    async def run() -> None:
        clock, reviews = FakeClock(), FakeReviews()
        authorize = authorizer(reviews, clock)
        asked = []
        for may, after in ((True, 0), (False, 9.9), (False, 0.2), (True, 1.9), (True, 0.2), (False, 0)):
            reviews.may = may
            clock.seconds += after
            asked.append((await outcome(authorize(asks(), READ)), len(reviews.asked)))
        assert asked == [(200, 1), (200, 1), (403, 2), (403, 2), (200, 3), (200, 3)]

    asyncio.run(run())


@pytest.mark.parametrize(
    "other",
    [
        (asks("bob"), READ),
        (asks("alice", ("X-Remote-Group", "dev")), READ),
        (asks("alice", ("X-Remote-Extra-Scopes", "a")), READ),
        (asks("alice", ("X-Remote-Uid", "1")), READ),
        *(
            (asks(), replace(READ, **{name: "other"}))
            for name in ("verb", "group", "version", "resource", "subresource", "namespace", "name")
        ),
    ],
)
def test_whatever_differs_is_asked_anew(other: tuple[Request, Attributes]) -> None:
    async def run() -> None:
        reviews = FakeReviews()
        authorize = authorizer(reviews)
        assert await outcome(authorize(asks(), READ)) == 200
        reviews.may = False
        assert await outcome(authorize(*other)) == 403
        assert await outcome(authorize(asks(), READ)) == 200
        assert len(reviews.asked) == 2

    asyncio.run(run())


def test_an_api_server_that_is_away_allows_nothing_new() -> None:
    async def run() -> None:
        reviews = FakeReviews(away=True)
        authorize = authorizer(reviews)
        assert await outcome(authorize(asks(), READ)) == 503
        reviews.away = False
        assert await outcome(authorize(asks(), READ)) == 200
        reviews.away = True
        assert await outcome(authorize(asks(), replace(READ, namespace="other"))) == 503

    asyncio.run(run())


def test_what_was_allowed_lives_on_for_a_while_then_no_more() -> None:
    async def run() -> None:
        clock, reviews = FakeClock(), FakeReviews()
        authorize = authorizer(reviews, clock)
        assert await outcome(authorize(asks(), READ)) == 200
        reviews.away = True
        clock.seconds += 10.1
        for seconds, asked in ((0.0, 2), (1.9, 2), (0.2, 3), (57.7, 4)):
            clock.seconds += seconds
            assert await outcome(authorize(asks(), READ)) == 200
            assert len(reviews.asked) == asked
        clock.seconds += 0.2
        assert await outcome(authorize(asks(), READ)) == 503
        # Back, and the answer has changed.
        reviews.away, reviews.may = False, False
        assert await outcome(authorize(asks(), READ)) == 403

    asyncio.run(run())


def test_a_refusal_does_not_live_on() -> None:
    async def run() -> None:
        clock, reviews = FakeClock(), FakeReviews(may=False)
        authorize = authorizer(reviews, clock)
        assert await outcome(authorize(asks(), READ)) == 403
        reviews.away = True
        clock.seconds += 2.1
        assert await outcome(authorize(asks(), READ)) == 503

    asyncio.run(run())


def test_a_permission_that_was_taken_away_ends_the_grace_too() -> None:
    async def run() -> None:
        clock, reviews = FakeClock(), FakeReviews()
        authorize = authorizer(reviews, clock)
        assert await outcome(authorize(asks(), READ)) == 200
        clock.seconds += 10.1
        reviews.may = False
        assert await outcome(authorize(asks(), READ)) == 403
        clock.seconds += 2.1
        reviews.away = True
        assert await outcome(authorize(asks(), READ)) == 503

    asyncio.run(run())


def test_masters_are_not_asked_about() -> None:
    async def run() -> None:
        reviews = FakeReviews(may=False, away=True)
        authorize = authorizer(reviews)
        masters = asks("system:kube-aggregator", ("X-Remote-Group", "system:masters"))
        assert await outcome(authorize(masters, READ)) == await outcome(authorize(masters, None)) == 200
        # No name of a group but that one.
        assert await outcome(authorize(asks("system:masters"), READ)) == 503
        assert reviews.asked != []

    asyncio.run(run())


def test_discovery_is_for_everybody_who_is_known_and_for_nobody_else() -> None:
    async def run() -> None:
        reviews = FakeReviews(may=False)
        authorize = authorizer(reviews)
        assert await outcome(authorize(asks("bob"), None)) == await outcome(authorize(with_token(), None)) == 200
        assert await outcome(authorize(with_token("wrong"), None)) == 401
        assert await outcome(authorize(request(), None)) == 401
        assert await outcome(authorize(request(("X-Remote-User", "bob")), None)) == 403

    asyncio.run(run())


def test_who_is_not_known_is_not_asked_about() -> None:
    async def run() -> None:
        reviews = FakeReviews({})
        authorize = authorizer(reviews)
        assert await outcome(authorize(with_token("wrong"), READ)) == 401
        assert reviews.asked == ["wrong"]

    asyncio.run(run())


def test_many_questions_do_not_pile_up() -> None:
    async def run() -> None:
        reviews = FakeReviews()
        authorize = authorizer(reviews)
        for number in range(4200):
            await authorize(asks(), replace(READ, name=f"pod-{number}"))
        for number, asked in ((4199, 4200), (4200 - 4096, 4200), (0, 4201)):
            await authorize(asks(), replace(READ, name=f"pod-{number}"))
            assert len(reviews.asked) == asked

    asyncio.run(run())
