"""Streams of the external scaler: they tell each change, end in good order and leave nothing behind."""

import asyncio
import time
from dataclasses import replace
from functools import partial

import grpc
import pytest

from kvgauge.cluster.keda import MAX_STREAMS
from kvgauge.cluster.keda_messages import write_activity
from tests.cluster import waiting
from tests.cluster.keda_client import LLAMA, Client, FakeClock, reading, reference, require, served, store_of, workload

until = partial(waiting.until, seconds=20)


def test_a_stream_tells_the_activity_at_once_and_each_change() -> None:
    async def run() -> None:
        clock = FakeClock()
        store = store_of(reading(), required=1)
        asked = workload(replicas=1)
        async with served(store, clock) as (client, _, _):
            stream = client.stream(reference(activation="1"))
            assert await stream.read() == write_activity(False)
            require(store, asked, 2)
            assert await stream.read() == write_activity(True)
            require(store, asked, 1)
            assert await stream.read() == write_activity(False)
            clock.seconds += 60
            assert await stream.read() == write_activity(True), "what is not known does not switch off"
            store.put_workload(replace(asked, spec_replicas=0))
            assert await stream.read() == write_activity(False), "and does not wake"
            stream.cancel()

    asyncio.run(run())


def test_a_stream_says_the_same_only_once() -> None:
    async def run() -> None:
        clock = FakeClock()
        store = store_of(reading(), required=1)
        async with served(store, clock) as (client, server, _):
            stream = client.stream(reference())
            assert await stream.read() == write_activity(True)
            for replicas in range(2, 7):
                require(store, workload(replicas=1), replicas)
                looks = clock.looks
                await until(lambda looks=looks: clock.looks > looks)  # type: ignore[misc]
            await server.stop(1.0)
            assert await stream.read() is grpc.aio.EOF

    asyncio.run(run())


def test_a_stream_ends_with_its_workload() -> None:
    async def run() -> None:
        store = store_of(reading())
        async with served(store) as (client, server, _):
            stream = client.stream(reference())
            assert await stream.read() == write_activity(True)
            store.drop_workload(LLAMA)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stream.read()
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            await until(lambda: server.open_streams == 0)

    asyncio.run(run())


def test_streams_end_in_good_order_with_the_server() -> None:
    """KEDA asks again at once after a stream that ended, and with growing pauses after one that broke."""

    async def run() -> None:
        async with served(store_of(reading()), push_seconds=60) as (client, server, _):
            streams = [client.stream(reference()) for _ in range(5)]
            for stream in streams:
                assert await stream.read() == write_activity(True)
            assert server.open_streams == 5
            begin = time.perf_counter()
            await server.stop(10.0)
            assert time.perf_counter() - begin < 5
            for stream in streams:
                assert await stream.read() is grpc.aio.EOF
                assert await stream.code() is grpc.StatusCode.OK
            assert server.open_streams == 0

    asyncio.run(run())


def test_clients_that_go_leave_nothing_behind() -> None:
    async def run() -> None:
        async with served(store_of(reading()), push_seconds=60) as (client, server, port):
            before = len(asyncio.all_tasks())
            streams = [client.stream(reference()) for _ in range(20)]
            for stream in streams:
                await stream.read()
            for stream in streams[:10]:
                stream.cancel()
            await until(lambda: server.open_streams == 10)
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as going:
                await Client(going).stream(reference()).read()
                assert server.open_streams == 11
            await until(lambda: server.open_streams == 10)
            for stream in streams:
                stream.cancel()
            await until(lambda: server.open_streams == 0)
            await until(lambda: len(asyncio.all_tasks()) <= before)

    asyncio.run(run())


def test_the_number_of_streams_is_bounded_and_calls_go_on() -> None:
    async def run() -> None:
        async with served(store_of(reading()), push_seconds=60) as (client, server, _):
            streams = [client.stream(reference()) for _ in range(MAX_STREAMS)]
            for stream in streams:
                await stream.read()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client.stream(reference()).read()
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert await client.value() == 4
            streams[0].cancel()
            await until(lambda: server.open_streams == MAX_STREAMS - 1)
            assert await client.stream(reference()).read() == write_activity(True)

    asyncio.run(run())
