"""Who may connect over TLS, as whom, and what happens when certificates and CAs change meanwhile."""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest
from cryptography import x509

from kvgauge.cluster.authentication import PEER_NAME
from kvgauge.cluster.serving import Patience
from kvgauge.cluster.tls import Pair, ServingTls, self_signed
from kvgauge.complaints import InputError

from .certificates import Authority, authority, client_context
from .serving import connected, get, served

CUT = (OSError, EOFError)
"""What a client sees of a refusal: TLS 1.3 tells it only with the first bytes."""


def serving_tls(client_ca: str | None = None) -> ServingTls:
    return ServingTls(authority("serving").server(), client_ca)


def named(name: str) -> dict[str, object]:
    return {PEER_NAME: {"common_name": name}}


async def seen(port: int, pair: Pair | None = None, name: str = "") -> object:
    """The extensions in the scope; "cut" where the connection is refused."""
    try:
        answer = await get(port, client_context(pair), name=name)
    except CUT:
        return "cut"
    return answer.body["extensions"]


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        (lambda: authority("front").client("front-proxy"), named("front-proxy")),
        (lambda: authority("front").client("somebody"), named("somebody")),
        (lambda: authority("front").client(), named("")),
        (lambda: authority("front").client("front-proxy", "other"), named("")),
        (lambda: None, {}),
        (lambda: authority("another").client("front-proxy"), "cut"),
        (lambda: Authority("front").client("front-proxy"), "cut"),
        (lambda: authority("front").client("front-proxy", valid=timedelta(days=-1)), "cut"),
        (lambda: authority("front").client("front-proxy", server_only=True), "cut"),
    ],
    ids=["good", "other name", "no name", "two names", "none", "other CA", "CA of that name", "expired", "server's"],
)
def test_who_a_client_is(pair: Callable[[], Pair | None], expected: object) -> None:
    async def run() -> None:
        async with served(tls=serving_tls(authority("front").pem)) as server:
            assert await seen(server.port, pair()) == expected

    asyncio.run(run())


def test_every_request_of_a_connection_carries_the_name() -> None:
    async def run() -> None:
        async with served(tls=serving_tls(authority("front").pem)) as server:
            context = client_context(authority("front").client("front-proxy"))
            async with connected(server.port, context) as connection:
                for path in ("/a", "/b", "/c"):
                    answer = await connection.get(path)
                    assert answer.body == {"extensions": named("front-proxy"), "path": path}
            async with connected(server.port, client_context()) as connection:
                for _ in range(2):
                    assert (await connection.get()).body["extensions"] == {}

    asyncio.run(run())


@pytest.mark.parametrize("name", ["", "localhost"], ids=["without SNI", "with SNI"])
@pytest.mark.parametrize("first", [None, "old"])
def test_another_ca_is_trusted_at_once_and_alone(first: str | None, name: str) -> None:
    old, new = authority("old").client("proxy"), authority("new").client("proxy")

    async def run() -> None:
        tls = serving_tls(authority(first).pem if first else None)
        async with served(tls=tls) as server:
            assert await seen(server.port, old, name) == (named("proxy") if first else {})
            tls.use_client_ca(authority("new").pem)
            assert await seen(server.port, old, name) == "cut"
            assert await seen(server.port, new, name) == named("proxy")
            tls.use_client_ca(authority("old").pem + authority("new").pem)
            assert await seen(server.port, old, name) == await seen(server.port, new, name) == named("proxy")
            tls.use_client_ca(None)
            assert await seen(server.port, old, name) == await seen(server.port, new, name) == {}

    asyncio.run(run())


def test_a_connection_of_the_old_ca_ends_with_its_next_request() -> None:
    async def run() -> None:
        tls = serving_tls(authority("old").pem)
        context = client_context(authority("old").client("proxy"))
        async with served(tls=tls) as server, connected(server.port, context) as connection:
            assert (await connection.get()).body["extensions"] == named("proxy")
            tls.use_client_ca(authority("old").pem)
            tls.use_pair(authority("serving").server())
            assert (await connection.get()).body["extensions"] == named("proxy")
            tls.use_client_ca(authority("new").pem)
            with pytest.raises(CUT):
                await connection.get()

    asyncio.run(run())


def test_a_connection_from_before_there_was_a_ca_ends_too() -> None:
    """Else the API server's own would stay without a name for as long as it is kept alive."""

    async def run() -> None:
        tls = serving_tls()
        context = client_context(authority("old").client("proxy"))
        async with served(tls=tls) as server, connected(server.port, context) as connection:
            assert (await connection.get()).body["extensions"] == {}
            tls.use_client_ca(authority("old").pem)
            with pytest.raises(CUT):
                await connection.get()

    asyncio.run(run())


def test_an_answer_that_was_begun_is_given_but_the_next_request_has_no_name() -> None:
    entered, go = asyncio.Event(), asyncio.Event()
    scopes: list[dict[str, object]] = []

    async def app(scope: dict[str, object], receive: object, send: Callable[[object], Awaitable[None]]) -> None:
        scopes.append(scope)
        entered.set()
        await go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def run() -> None:
        tls = serving_tls(authority("old").pem)
        context = client_context(authority("old").client("proxy"))
        async with served(app, tls=tls) as server, connected(server.port, context) as connection:
            asking = asyncio.create_task(connection.get())
            await entered.wait()
            tls.use_client_ca(authority("new").pem)
            connection.writer.write(b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n")
            async with connected(server.port, client_context()) as other:
                # By the time that this has come in, so has the pipelined one.
                second = asyncio.create_task(other.get())
                while len(scopes) < 2:
                    await asyncio.sleep(0.001)
                go.set()
                assert (await second).code == (await asking).code == 200
            assert (await connection.answer()).code == 200
        assert scopes[0]["extensions"] == named("proxy")
        assert [scope["extensions"] for scope in scopes[1:]] == [{}, {}]

    asyncio.run(run())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_from_before_is_not_resumed_under_another_ca(version: ssl.TLSVersion) -> None:
    """A resumed session tells no certificate anew, so it must not outlive the CA."""

    def ask(port: int, context: ssl.SSLContext, session: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bytes]:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
            secure = context.wrap_socket(plain, session=session, suppress_ragged_eofs=True)
            with secure:
                secure.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                told = b""
                while (more := secure.recv(65536)) and not (told := told + more).endswith(b"}"):
                    pass
                return secure.session, told

    async def run() -> None:
        tls = serving_tls(authority("old").pem)
        context = client_context(authority("old").client("proxy"))
        context.minimum_version = context.maximum_version = version
        async with served(tls=tls) as server:
            session, told = await asyncio.to_thread(ask, server.port, context, None)
            assert session is not None
            assert b"proxy" in told
            _, told = await asyncio.to_thread(ask, server.port, context, session)
            assert b"proxy" in told
            tls.use_client_ca(authority("new").pem)
            try:
                _, told = await asyncio.to_thread(ask, server.port, context, session)
            except OSError:
                told = b""
            assert told == b""

    asyncio.run(run())


def test_a_ca_that_another_has_signed_is_trusted_by_itself() -> None:
    """Go takes every certificate in the file for a root; so the API server accepts it, and so must we."""
    middle = Authority("middle", below=authority("root"))

    async def run() -> None:
        async with served(tls=serving_tls(middle.pem)) as server:
            assert await seen(server.port, middle.client("proxy")) == named("proxy")
            assert await seen(server.port, authority("root").client("proxy")) == "cut"

    asyncio.run(run())


@pytest.mark.parametrize("ca", ["", "no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "Ü"])
def test_a_ca_that_is_none_changes_nothing(ca: str) -> None:
    async def run() -> None:
        tls = serving_tls(authority("old").pem)
        with pytest.raises(InputError, match=r"^client CA: not a PEM certificate \(\w+\)$"):
            tls.use_client_ca(ca)
        async with served(tls=tls) as server:
            assert await seen(server.port, authority("old").client("proxy")) == named("proxy")
            assert await seen(server.port, authority("new").client("proxy")) == "cut"

    asyncio.run(run())


def test_tls_before_1_2_is_refused() -> None:
    def old(context: ssl.SSLContext, *, least: bool) -> ssl.SSLContext:
        context.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="deprecated"):
            context.minimum_version = ssl.TLSVersion.TLSv1_1
        if not least:
            with pytest.warns(DeprecationWarning, match="deprecated"):
                context.maximum_version = ssl.TLSVersion.TLSv1_1
        return context

    async def run() -> None:
        tls = serving_tls()
        async with served(tls=tls) as server:
            with pytest.raises((ConnectionError, ssl.SSLEOFError)):
                await get(server.port, old(client_context(), least=False))
            newer = client_context()
            newer.maximum_version = ssl.TLSVersion.TLSv1_2
            assert (await get(server.port, newer)).code == 200
            # That client could, if it only may.
            old(tls.context.current, least=True)
            assert (await get(server.port, old(client_context(), least=False))).code == 200

    asyncio.run(run())


# For a demo.


def test_a_made_certificate_passes_a_strict_client() -> None:
    pair, ca = self_signed(["localhost", "127.0.0.1", "::1"])
    context = client_context(trusts=ca)
    context.verify_flags |= ssl.VERIFY_X509_STRICT

    async def run() -> None:
        async with served(tls=ServingTls(pair)) as server:
            for name in ("localhost", "127.0.0.1"):
                assert (await get(server.port, context, name=name)).code == 200
            with pytest.raises(ssl.SSLCertVerificationError):
                await get(server.port, context, name="example.org")

    asyncio.run(run())
    names = x509.load_pem_x509_certificate(pair.chain).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert [str(name) for name in names.value.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]


def test_two_made_certificates_have_nothing_in_common() -> None:
    (first, ca), (second, _) = self_signed(["localhost"]), self_signed(["localhost"])
    assert first.key != second.key

    async def run() -> None:
        async with served(tls=ServingTls(second)) as server:
            with pytest.raises(ssl.SSLCertVerificationError):
                await get(server.port, client_context(trusts=ca), name="localhost")

    asyncio.run(run())


# Those who do not speak TLS.


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x00" * 1000, b"\x16\x03\x01\x02\x00\x01"])
def test_what_is_no_tls_ends_without_a_word(
    sent: bytes, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    async def run() -> None:
        async with served(tls=serving_tls(), patience=Patience(handshake_seconds=0.05)) as server:
            async with connected(server.port) as connection:
                connection.writer.write(sent)
                async with asyncio.timeout(5):
                    try:
                        told = await connection.reader.read()
                    except ConnectionError:
                        told = b""
                assert b"HTTP" not in told
            assert (await get(server.port, client_context())).code == 200

    asyncio.run(run())
    assert caplog.text == ""
    assert capfd.readouterr() == ("", "")


def test_who_never_greets_is_cut_off() -> None:
    async def run() -> None:
        async with (
            served(tls=serving_tls(), patience=Patience(handshake_seconds=0.05)) as server,
            connected(server.port) as connection,
            asyncio.timeout(5),
        ):
            assert await connection.reader.read() == b""

    asyncio.run(run())
