"""The external scaler over TLS, with a certificate that is renewed while it serves."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import grpc
import pytest

from kvgauge.cluster.keda import PemPair, reloading_credentials, serve_keda
from tests.cluster.certificates import self_made
from tests.cluster.keda_client import Client, FakeClock, reading, store_of, whole


def pem_pair() -> PemPair:
    pair = self_made()
    return pair.chain, pair.key


@asynccontextmanager
async def secured(current: Callable[[], PemPair]) -> AsyncIterator[int]:
    server, port = await serve_keda(
        store_of(reading()),
        whole,
        host="127.0.0.1",
        port=0,
        clock=FakeClock(),
        credentials=reloading_credentials(current),
    )
    try:
        yield port
    finally:
        await server.stop(0.0)


async def told_over_tls(port: int, chain: bytes) -> float:
    # A session kept from an earlier certificate would spare the handshake that is to be tested.
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(
        f"127.0.0.1:{port}", grpc.ssl_channel_credentials(chain), options=options
    ) as channel:
        return await Client(channel).value()


def test_tls_serves_and_refuses_plain_text() -> None:
    pair = pem_pair()

    async def run() -> None:
        async with secured(lambda: pair) as port:
            assert await told_over_tls(port, pair[0]) == 4
            with pytest.raises(grpc.aio.AioRpcError):
                await told_over_tls(port, pem_pair()[0])
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                with pytest.raises(grpc.aio.AioRpcError):
                    await Client(channel).value()

    asyncio.run(run())


def test_a_renewed_certificate_is_served_without_a_restart() -> None:
    first, second = pem_pair(), pem_pair()
    pairs = [first]

    async def run() -> None:
        async with secured(lambda: pairs[-1]) as port:
            assert await told_over_tls(port, first[0]) == 4
            pairs.append(second)
            assert await told_over_tls(port, second[0]) == 4
            with pytest.raises(grpc.aio.AioRpcError):
                await told_over_tls(port, first[0])

    asyncio.run(run())


def half_written(first: PemPair) -> Iterable[Callable[[], PemPair]]:
    def gone() -> PemPair:
        raise FileNotFoundError("tls.crt")

    yield gone
    yield lambda: (pem_pair()[0], first[1])
    yield lambda: (b"", b"")


def test_a_pair_that_does_not_load_leaves_the_one_before(caplog: pytest.LogCaptureFixture) -> None:
    first = pem_pair()
    sources: list[Callable[[], PemPair]] = [lambda: first]

    async def run() -> None:
        async with secured(lambda: sources[-1]()) as port:
            for broken in half_written(first):
                sources.append(broken)
                assert await told_over_tls(port, first[0]) == 4
            assert "the scaler's certificate cannot be read (FileNotFoundError); the one before stays" in caplog.text
            second = pem_pair()
            sources.append(lambda: second)
            assert await told_over_tls(port, second[0]) == 4

    asyncio.run(run())
