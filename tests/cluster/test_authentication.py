"""Who is believed to be whom."""

import asyncio
import gc
import logging
import traceback
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from kvgauge.cluster.access import Denied
from kvgauge.cluster.authentication import Authenticator, Identity, RequestHeader, request_header_of

from .asking import ALICE, HEADER, TOKEN, FakeClock, FakeReviews, request, with_token

PROXY = "front-proxy-client"
USER = ("X-Remote-User", "alice")


def identify(told: Request, header: RequestHeader | None = HEADER, reviews: FakeReviews | None = None) -> Identity:
    async def run() -> Identity:
        authenticator = Authenticator((reviews or FakeReviews()).whose_token)
        authenticator.request_header = header
        return await authenticator.identify(told)

    return asyncio.run(run())


def refusal(told: Request, header: RequestHeader | None = HEADER, reviews: FakeReviews | None = None) -> int:
    with pytest.raises(Denied) as raised:
        identify(told, header, reviews)
    return raised.value.code


def test_the_front_proxy_tells_user_groups_uid_and_extra() -> None:
    told = request(
        USER,
        ("X-Remote-Group", "dev"),
        ("X-Remote-Group", "system:authenticated"),
        ("X-Remote-Uid", "42"),
        ("X-Remote-Extra-Scopes", "a"),
        ("x-remote-extra-scopes", "b"),
        ("X-REMOTE-EXTRA-example.org%2FRole", "c d"),
        ("X-Remote-Extra", "no prefix"),
        ("X-Other", "nothing"),
        peer=PROXY,
    )
    extra = {"scopes": ("a", "b"), "example.org/role": ("c d",)}
    assert identify(told) == Identity("alice", ("dev", "system:authenticated"), extra, "42")


def test_a_name_is_read_as_the_api_server_writes_it() -> None:
    assert identify(request(("X-Remote-User", "jürgen"), peer=PROXY)).user == "jürgen"
    broken = request(peer=PROXY)
    broken.scope["headers"].append((b"x-remote-user", b"j\xfcrgen"))
    assert refusal(broken) == 401


@pytest.mark.parametrize("header", [HEADER, None], ids=["configured", "no settings"])
@pytest.mark.parametrize("peer", [None, "somebody", "", "Front-Proxy-Client"])
@pytest.mark.parametrize("forged", [USER, ("X-Remote-Group", "system:masters"), ("X-Remote-Extra-A", "b")])
@pytest.mark.parametrize("token", [(), (("Authorization", f"Bearer {TOKEN}"),)], ids=["", "with a token"])
def test_who_may_not_speak_for_others_is_turned_away(
    header: RequestHeader | None, peer: str | None, forged: tuple[str, str], token: tuple[tuple[str, str], ...]
) -> None:
    reviews = FakeReviews()
    assert refusal(request(forged, *token, peer=peer), header, reviews) == 403
    assert reviews.asked == []


def test_without_settings_not_even_the_right_name_is_believed() -> None:
    assert refusal(request(USER, peer=PROXY), None) == 403


def test_other_header_names_are_believed_where_the_cluster_says_so() -> None:
    header = replace(HEADER, username_headers=("X-User",), group_headers=("X-Groups", "X-More"))
    told = request(("X-User", "bob"), ("X-More", "b"), ("X-Groups", "a"), USER, peer=PROXY)
    assert identify(told, header) == Identity("bob", ("a", "b"))
    assert refusal(request(("X-User", "bob")), header) == 403


@pytest.mark.parametrize("peer", ["", "anybody"])
def test_no_allowed_names_are_all_names(peer: str) -> None:
    anybody = replace(HEADER, allowed_names=())
    assert identify(request(USER, peer=peer), anybody).user == "alice"
    # But there must be a certificate.
    assert refusal(request(USER), anybody) == 403


@pytest.mark.parametrize(
    "headers",
    [
        [USER, USER],
        [USER, ("X-Remote-User", "bob")],
        [("X-Remote-User", "")],
        [("X-Remote-Group", "system:masters")],
        [USER, ("X-Remote-Uid", "1"), ("X-Remote-Uid", "2")],
    ],
)
def test_a_front_proxy_that_names_not_just_one_user_is_not_believed(headers: list[tuple[str, str]]) -> None:
    assert refusal(request(*headers, peer=PROXY)) == 401


@pytest.mark.parametrize(
    "headers",
    [
        [("X-Remote-User", "system:anonymous"), ("X-Remote-Group", "system:unauthenticated")],
        [("X-Remote-User", "system:anonymous")],
        [("X-Remote-User", "bob"), ("X-Remote-Group", "system:unauthenticated")],
    ],
)
def test_nobody_anonymous_is_known(headers: list[tuple[str, str]]) -> None:
    assert refusal(request(*headers, peer=PROXY)) == 401
    told = FakeReviews({TOKEN: Identity("system:anonymous", ("system:unauthenticated",))})
    assert refusal(with_token(), reviews=told) == 401


def test_the_front_proxy_is_heard_before_a_token() -> None:
    reviews = FakeReviews()
    told = request(("X-Remote-User", "bob"), ("Authorization", f"Bearer {TOKEN}"), peer=PROXY)
    assert identify(told, reviews=reviews).user == "bob"
    assert reviews.asked == []


def test_a_front_proxy_that_speaks_for_nobody_may_have_a_token() -> None:
    assert refusal(request(peer=PROXY)) == 401
    assert identify(request(("Authorization", f"Bearer {TOKEN}"), peer=PROXY)) == ALICE


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Authorization", f"Bearer {TOKEN}")] * 2,
        [("Authorization", f"Bearer {TOKEN}"), ("Authorization", "Basic YTpi")],
        [("Authorization", "Basic YTpi")],
        [("Authorization", "Bearer")],
        [("Authorization", "Bearer  ")],
        [("Authorization", TOKEN)],
        [("Authorization", "Bearer " + "a" * 16385)],
        [("Cookie", f"token={TOKEN}")],
    ],
)
def test_what_is_no_token_is_not_asked_about(headers: list[tuple[str, str]]) -> None:
    reviews = FakeReviews()
    assert refusal(request(*headers), reviews=reviews) == 401
    assert reviews.asked == []


def test_the_scheme_has_no_case() -> None:
    assert identify(request(("authorization", f"bearer   {TOKEN} "))) == ALICE


def test_tokens_are_asked_about_once_a_while() -> None:
    async def run() -> None:
        clock, reviews = FakeClock(), FakeReviews()
        authenticator = Authenticator(reviews.whose_token, clock=clock)
        assert await authenticator.identify(with_token()) == ALICE
        clock.seconds += 9.9
        assert await authenticator.identify(with_token()) == ALICE
        assert reviews.asked == [TOKEN]
        # It has expired meanwhile, and that is seen after ten seconds.
        reviews.tokens = {}
        clock.seconds += 0.2
        for _ in range(2):
            with pytest.raises(Denied) as raised:
                await authenticator.identify(with_token())
            assert raised.value.code == 401
        assert reviews.asked == [TOKEN] * 2
        reviews.tokens = {TOKEN: ALICE}
        clock.seconds += 2.1
        assert await authenticator.identify(with_token()) == ALICE
        assert reviews.asked == [TOKEN] * 3

    asyncio.run(run())


def test_another_token_is_another_question() -> None:
    async def run() -> None:
        reviews = FakeReviews({TOKEN: ALICE, TOKEN + "2": Identity("bob")})
        authenticator = Authenticator(reviews.whose_token)
        assert await authenticator.identify(with_token()) == ALICE
        assert await authenticator.identify(with_token(TOKEN + "2")) == Identity("bob")
        with pytest.raises(Denied):
            await authenticator.identify(with_token(TOKEN + "3"))

    asyncio.run(run())


def test_a_hundred_at_once_are_one_question() -> None:
    async def run() -> None:
        reviews = FakeReviews()
        reviews.open.clear()
        authenticator = Authenticator(reviews.whose_token)
        asking = [asyncio.create_task(authenticator.identify(with_token())) for _ in range(100)]
        await reviews.begun.wait()
        asking[0].cancel()
        await asyncio.wait(asking[:1])
        reviews.open.set()
        found = await asyncio.gather(*asking, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError)
        assert found[1:] == [ALICE] * 99
        assert reviews.asked == [TOKEN]

    asyncio.run(run())


def test_many_tokens_do_not_pile_up() -> None:
    async def run() -> None:
        reviews = FakeReviews({})
        authenticator = Authenticator(reviews.whose_token, clock=FakeClock())
        for number in range(1100):
            with pytest.raises(Denied):
                await authenticator.identify(with_token(f"{TOKEN}{number}"))
        before = len(reviews.asked)
        for number, asked in ((1099, 0), (1099 - 1023, 0), (0, 1)):
            with pytest.raises(Denied):
                await authenticator.identify(with_token(f"{TOKEN}{number}"))
            assert len(reviews.asked) == before + asked

    asyncio.run(run())


def test_an_api_server_that_is_away_lets_nobody_in() -> None:
    async def run() -> None:
        clock, reviews = FakeClock(), FakeReviews(away=True)
        authenticator = Authenticator(reviews.whose_token, clock=clock)
        for _ in range(2):
            with pytest.raises(Denied) as raised:
                await authenticator.identify(with_token())
            assert raised.value.code == 503
        # A failure is no answer to remember.
        reviews.away = False
        assert await authenticator.identify(with_token()) == ALICE
        reviews.away = True
        assert await authenticator.identify(with_token()) == ALICE
        clock.seconds += 10.1
        with pytest.raises(Denied):
            await authenticator.identify(with_token())

    asyncio.run(run())


def test_a_token_is_told_nowhere(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.DEBUG)
    told: list[str] = []

    async def fails(token: str) -> Identity | None:
        raise OSError("no route")

    async def run() -> None:
        reviews = FakeReviews()
        for review in (FakeReviews({}).whose_token, FakeReviews(away=True).whose_token, fails, reviews.whose_token):
            authenticator = Authenticator(review)
            try:
                told.append(repr(await authenticator.identify(with_token())))
            except (Denied, OSError) as error:
                told.extend(["".join(traceback.format_exception(error)), repr(error), str(error)])
            told.append(repr(authenticator))
        # One whose only client has gone before it fails: its error is nobody's.
        reviews.open.clear()
        reviews.away = True
        authenticator = Authenticator(reviews.whose_token)
        asking = asyncio.create_task(authenticator.identify(with_token("b" + TOKEN)))
        await asyncio.sleep(0)
        told.extend(map(repr, asyncio.all_tasks()))
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        reviews.open.set()
        await asyncio.sleep(0.01)
        told.extend(map(repr, asyncio.all_tasks()))
        gc.collect()

    asyncio.run(run(), debug=True)
    assert len(told) > 10
    assert "was never retrieved" not in caplog.text
    for text in (*told, caplog.text, *capfd.readouterr()):
        assert TOKEN not in text
        assert TOKEN.split(".")[2] not in text


# The ConfigMap.

DATA = {
    "client-ca-file": "of other clients",
    "requestheader-client-ca-file": "PEM\n",
    "requestheader-allowed-names": '["front-proxy-client"]',
    "requestheader-username-headers": '["X-Remote-User"]',
    "requestheader-group-headers": '["X-Remote-Group"]',
    "requestheader-extra-headers-prefix": '["X-Remote-Extra-"]',
    "requestheader-uid-headers": '["X-Remote-Uid"]',
}


def test_settings_are_read_as_the_cluster_writes_them() -> None:
    assert request_header_of(DATA) == HEADER
    older = {key: text for key, text in DATA.items() if "uid" not in key} | {"requestheader-allowed-names": "[]"}
    assert request_header_of(older) == replace(HEADER, uid_headers=(), allowed_names=())


@pytest.mark.parametrize("data", [{}, {**DATA, "requestheader-client-ca-file": " \n"}, {"client-ca-file": "PEM"}])
def test_without_a_ca_of_the_front_proxy_there_are_no_settings(data: dict[str, str]) -> None:
    assert request_header_of(data) is None


@pytest.mark.parametrize("text", ["x", "{}", "1", '"X-Remote-User"', "[1]", '[""]', "null", "[" * 100_000])
def test_settings_that_are_no_lists_of_names_are_refused(text: str) -> None:
    for key in ("requestheader-allowed-names", "requestheader-extra-headers-prefix"):
        with pytest.raises(ValueError, match=f"^{key} is no list of names$"):
            request_header_of({**DATA, key: text})


@given(st.text(), st.sampled_from(sorted(DATA)))
def test_any_text_is_either_settings_or_an_error(text: str, key: str) -> None:
    try:
        found = request_header_of({**DATA, key: text})
    except ValueError:
        return
    assert found is None or "" not in found.extra_prefixes


@given(
    st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1), st.lists(st.sampled_from("abc"), min_size=1)),
)
def test_extra_keys_come_back_as_they_were_but_in_lower_case(extra: dict[str, list[str]]) -> None:
    from urllib.parse import quote

    told = request(
        USER,
        *((f"X-Remote-Extra-{quote(key, safe='')}", value) for key, values in extra.items() for value in values),
        peer=PROXY,
    )
    expected: dict[str, list[str]] = {}
    for key, values in extra.items():
        # What is escaped keeps its case, as in the API server.
        plain = "".join(letter.lower() if letter.isascii() else letter for letter in key)
        expected.setdefault(plain, []).extend(values)
    assert {key: list(values) for key, values in identify(told).extra.items()} == expected
