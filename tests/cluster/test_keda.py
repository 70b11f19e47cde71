"""KEDA's external scaler, asked over real connections."""

import asyncio
import logging
import math
import time
from dataclasses import replace

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.cluster.keda import Scaler, serve_keda
from kvgauge.cluster.keda_messages import Reference, message_class, write_activity, write_spec, write_value
from kvgauge.cluster.keda_triggers import read_trigger
from kvgauge.cluster.records import Reading, Required
from kvgauge.cluster.store import Store
from kvgauge.complaints import InputError
from tests.cluster.keda_client import (
    LLAMA,
    NOW,
    Client,
    FakeClock,
    add,
    ask,
    metrics_request,
    pod,
    put,
    reading,
    reference,
    refusal,
    require,
    served,
    store_of,
    whole,
    workload,
)


def test_the_spec_is_told_before_anything_is_known() -> None:
    async def specs(client: Client) -> list[bytes]:
        asked: tuple[dict[str, str], ...] = (
            {},
            {"metric": "kvgauge_load_ratio"},
            {"metric": "kvgauge_load_ratio", "target": "0.9"},
            {"target": "2"},
        )
        return [await client.call("GetMetricSpec", reference(**metadata)) for metadata in asked]

    assert ask(Store(), specs) == [
        write_spec("kvgauge_required_replicas", 1000),
        write_spec("kvgauge_load_ratio", 850),
        write_spec("kvgauge_load_ratio", 900),
        write_spec("kvgauge_required_replicas", 2000),
    ]


@pytest.mark.parametrize(
    "name", ["kvgauge_required_replicas", "s0-kvgauge_required_replicas", "s12-kvgauge_required_replicas"]
)
def test_required_replicas_come_by_either_name(name: str) -> None:
    assert ask(store_of(reading()), lambda client: client.value(name)) == 4


@pytest.mark.parametrize("name", ["", "up", "s0-", "s0-s1-kvgauge_required_replicas", "kvgauge_load_ratio"])
def test_another_metric_than_the_triggers_is_refused(name: str) -> None:
    code, details = refusal(store_of(reading()), lambda client: client.value(name))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details == f"metricName: should be kvgauge_required_replicas, got {name!r}"


def test_what_is_told_is_what_the_dead_band_asks_for() -> None:
    """And not the bare count."""

    async def run() -> float:
        server, port = await serve_keda(
            store_of(reading()),
            lambda required: (required.replicas or 0) * 1000 + 101,
            host="127.0.0.1",
            port=0,
            clock=FakeClock(),
        )
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            told = await Client(channel).value()
        await server.stop(0.0)
        return told

    assert asyncio.run(run()) == 4.101


@pytest.mark.parametrize(("replicas", "read_seconds"), [(None, NOW), (4, NOW - 11)], ids=["never heard", "old"])
def test_what_is_not_known_is_an_error_and_never_zero(replicas: int | None, read_seconds: float) -> None:
    store = store_of(reading())
    require(store, workload(replicas=1), replicas, read_seconds)
    code, details = refusal(store, lambda client: client.value())
    assert code is grpc.StatusCode.UNAVAILABLE
    assert details == "kvgauge_required_replicas: nothing of the last 10 s is known"
    assert ask(store, lambda client: client.active()) is True


def test_figures_age() -> None:
    clock = FakeClock()

    async def run() -> None:
        async with served(store_of(reading()), clock) as (client, _, _):
            clock.seconds = NOW + 10
            assert await client.value() == 4
            assert await client.load() == 0.5
            clock.seconds = NOW + 10.1
            for late in (client.value(), client.load()):
                with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
                    await late

    asyncio.run(run())


def test_loads_add_up_over_the_workloads_own_pods() -> None:
    store = store_of(reading(0.5), reading(1.25), reading(0.1001))
    add(store, reading(9.0), key=replace(LLAMA, name="other"), replicas=1, required=1)
    add(store, reading(9.0), key=replace(LLAMA, namespace="elsewhere"), replicas=1, required=1)
    put(store, pod("leaving", deleting=True), reading(9.0))
    put(store, pod("done", phase="Succeeded"), reading(9.0))
    put(store, pod("starting", ready=False, phase="Pending"), None)
    put(store, pod("worker", labels={"leaderworkerset.sigs.k8s.io/worker-index": "1"}), None)
    assert ask(store, lambda client: client.load()) == 1.851, "rounded up to thousandths"


@pytest.mark.parametrize(
    "untold",
    [
        None,
        reading(None),
        reading(0.5, valid=False),
        reading(0.5, read_seconds=NOW - 11),
        reading(math.nan),
        reading(-1.0),
    ],
    ids=["never", "no advice", "invalid", "old", "nan", "negative"],
)
def test_a_silent_pod_counts_like_the_others_and_never_takes_pods_away(untold: Reading | None) -> None:
    assert ask(store_of(reading(1.2), reading(1.8), untold), lambda client: client.load()) == 4.5
    assert ask(store_of(reading(0.2), reading(0.4), untold), lambda client: client.load()) == 2.55, "3 pods at 0.85"
    assert refusal(store_of(untold), lambda client: client.load())[0] is grpc.StatusCode.UNAVAILABLE


@given(st.lists(st.floats(0, 50), min_size=1, max_size=8), st.integers(0, 4), st.sampled_from(["0.85", "1", "0.333"]))
def test_the_sum_is_never_too_small(loads: list[float], silent: int, target: str) -> None:
    store = store_of(*[reading(load) for load in loads], *[None] * silent)
    scaler = Scaler(store, whole, 10.0, FakeClock())
    trigger = read_trigger(
        Reference("so", "llm", {"workload": "llama", "metric": "kvgauge_load_ratio", "target": target})
    )
    told = scaler.value_milli(trigger, workload(replicas=len(loads) + silent))
    assert told is not None
    assert told >= math.fsum(loads) * 1000 - 1e-6
    if silent:
        assert told >= (len(loads) + silent) * trigger.target_milli
    else:
        assert told <= math.fsum(loads) * 1000 + 1


def test_an_absurd_load_stays_a_number_that_kubernetes_can_hold() -> None:
    assert ask(store_of(reading(1e300), reading(1e308)), lambda client: client.load()) == 1e9


def test_without_pods_asked_for_nothing_is_needed_and_nothing_is_woken() -> None:
    store = store_of(replicas=0, required=None)
    assert ask(store, lambda client: client.value()) == 0
    assert ask(store, lambda client: client.load()) == 0
    assert ask(store, lambda client: client.active()) is False


@pytest.mark.parametrize(
    ("pods", "required", "metadata", "active"),
    [
        ((reading(),), 1, {}, True),
        ((reading(),), 0, {}, False),
        ((reading(),), 1, {"activation": "1"}, False),
        ((reading(),), 2, {"activation": "1"}, True),
        ((reading(running=1),), 1, {"activation": "1"}, True),
        ((reading(), reading(waiting=1)), 1, {"activation": "1"}, True),
        ((reading(running=None),), 1, {"activation": "1"}, False),
        ((reading(running=None, waiting=None),), 1, {"activation": "1"}, True),
        ((reading(), None), 1, {"activation": "1"}, True),
        ((reading(0.0),), 1, {"metric": "kvgauge_load_ratio"}, False),
        ((reading(0.03),), 1, {"metric": "kvgauge_load_ratio"}, True),
        ((reading(0.03),), 1, {"metric": "kvgauge_load_ratio", "activation": "0.05"}, False),
        ((reading(0.03, running=1),), 1, {"metric": "kvgauge_load_ratio", "activation": "0.05"}, True),
        ((None,), 1, {"metric": "kvgauge_load_ratio", "activation": "5"}, True),
    ],
)
def test_a_workload_is_active_while_there_is_or_may_be_work(
    pods: tuple[Reading | None, ...], required: int, metadata: dict[str, str], active: bool
) -> None:
    assert ask(store_of(*pods, required=required), lambda client: client.active(**metadata)) is active


def test_a_starting_pod_is_no_sign_of_work() -> None:
    store = store_of(reading(), required=1)
    put(store, pod("starting", ready=False), None)
    assert ask(store, lambda client: client.active(activation="1")) is False


@pytest.mark.parametrize("method", ["IsActive", "StreamIsActive", "GetMetrics"])
def test_an_unknown_workload_is_not_found(method: str) -> None:
    async def question(client: Client) -> object:
        body = reference(workload="deployment/other", note="hunter2")
        if method == "StreamIsActive":
            return [answer async for answer in client.stream(body)]
        return await client.call(method, body if method == "IsActive" else metrics_request(workload="deployment/other"))

    code, details = refusal(store_of(reading()), question)
    assert code is grpc.StatusCode.NOT_FOUND
    assert details == "workload: there is no deployment/other in llm"


def test_workloads_of_another_namespace_are_not_seen() -> None:
    code, _ = refusal(store_of(reading()), lambda client: client.call("IsActive", reference(namespace="other")))
    assert code is grpc.StatusCode.NOT_FOUND


def test_a_bare_name_is_enough_while_it_is_one_workloads() -> None:
    store = store_of(reading())
    assert ask(store, lambda client: client.value(workload="llama")) == 4
    add(store, reading(), key=replace(LLAMA, resource="statefulsets"), replicas=1, required=7)
    assert ask(store, lambda client: client.value(workload="statefulset/llama")) == 7
    code, details = refusal(store, lambda client: client.value(workload="llama"))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details == "workload: llama is a Deployment and a StatefulSet; say which, such as deployment/NAME"


@pytest.mark.parametrize("method", ["IsActive", "GetMetricSpec", "GetMetrics"])
def test_bytes_that_are_no_message_are_refused(method: str) -> None:
    code, details = refusal(Store(), lambda client: client.call(method, b"\xff\xff"))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith("the message is no ")


def test_a_request_without_a_reference_is_refused() -> None:
    code, details = refusal(
        Store(),
        lambda client: client.call(
            "GetMetrics", message_class("GetMetricsRequest")(metricName="kvgauge_load_ratio").SerializeToString()
        ),
    )
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details == "namespace: should be the ScaledObject's, got ''"


def test_what_a_newer_keda_looks_for_is_unimplemented() -> None:
    code, _ = refusal(Store(), lambda client: client.call("StreamMetricSpec", reference()))
    assert code is grpc.StatusCode.UNIMPLEMENTED


def test_hostile_metadata_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with served(store_of(reading())) as (client, _, _):
            for body, code in (
                (reference(note="x" * 70_000), grpc.StatusCode.RESOURCE_EXHAUSTED),
                (reference(**{f"k{n}": "secret" for n in range(100)}), grpc.StatusCode.INVALID_ARGUMENT),
                (reference(target="secret\n" * 500), grpc.StatusCode.INVALID_ARGUMENT),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await client.call("IsActive", body)
                assert caught.value.code() is code
                assert len(caught.value.details() or "") < 300
            assert await client.value() == 4, "and it goes on"

    with caplog.at_level(logging.DEBUG):
        asyncio.run(run())
    assert "secret" not in caplog.text


def test_headers_are_bounded() -> None:
    async def run() -> None:
        async with served(store_of(reading())) as (client, _, port):
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                call = channel.unary_unary("/externalscaler.ExternalScaler/IsActive")
                with pytest.raises(grpc.aio.AioRpcError):
                    await call(reference(), timeout=10, metadata=[("x", "y" * 40_000)])
            assert await client.active() is True

    asyncio.run(run())


def test_an_error_of_ours_tells_nothing_outside(caplog: pytest.LogCaptureFixture) -> None:
    def broken(required: Required) -> int | None:
        raise ZeroDivisionError("hunter2")

    async def run() -> None:
        server, port = await serve_keda(store_of(reading()), broken, host="127.0.0.1", port=0, clock=FakeClock())
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await Client(channel).value()
        await server.stop(0.0)
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert caught.value.details() == "the scaler cannot answer"

    asyncio.run(run())
    assert "ZeroDivisionError" in caplog.text
    assert "hunter2" not in caplog.text


def test_a_port_in_use_fails_the_start() -> None:
    async def run() -> None:
        async with served(Store()) as (_, _, port):
            with pytest.raises(InputError, match=f"keda_port: cannot listen on 127.0.0.1:{port}"):
                await serve_keda(Store(), whole, host="127.0.0.1", port=port)

    asyncio.run(run())


def test_an_answer_takes_little_with_many_pods() -> None:
    """KEDA asks for the activity with each value: both together are to take less than a tenth of a second."""
    store = store_of(*[reading(0.5, running=None, waiting=0)] * 500, required=1)
    for number in range(20):
        add(store, *[reading()] * 100, key=replace(LLAMA, name=f"other{number}"), replicas=100, required=1)

    async def run() -> float:
        async with served(store) as (client, _, _):
            await client.active()
            took = []
            for _ in range(5):
                begin = time.perf_counter()
                await client.load()
                await client.active(activation="1")
                took.append(time.perf_counter() - begin)
            return min(took)

    assert asyncio.run(run()) < 0.1


def test_the_blocking_client_gets_the_same() -> None:
    def blocking(port: int) -> tuple[bytes, bytes]:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            value = channel.unary_unary("/externalscaler.ExternalScaler/GetMetrics")(metrics_request(), timeout=10)
            stream = channel.unary_stream("/externalscaler.ExternalScaler/StreamIsActive")(reference(), timeout=10)
            first = next(stream)
            stream.cancel()
            return value, first

    async def run() -> tuple[bytes, bytes]:
        async with served(store_of(reading())) as (_, _, port):
            return await asyncio.to_thread(blocking, port)

    assert asyncio.run(run()) == (write_value("kvgauge_required_replicas", 4000), write_activity(True))
