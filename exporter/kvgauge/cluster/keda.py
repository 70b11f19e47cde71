"""KEDA's external scaler (gRPC): what a workload needs, from the same store as the metrics APIs.

KEDA asks for the values whenever its autoscaler does (15 s) and at its own polling interval, and after each value for
the activity; so everything is answered from memory. Where a value is not known, KEDA gets an error and changes nothing.
`StreamMetricSpec`, which newer releases also look for, is left out on purpose: a trigger's target never changes, and
KEDA takes the error UNIMPLEMENTED for just that.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import grpc

from kvgauge.cluster.keda_messages import (
    SERVICE,
    MalformedError,
    read_metrics_request,
    read_reference,
    write_activity,
    write_spec,
    write_value,
)
from kvgauge.cluster.keda_triggers import Trigger, check_metric_name, read_trigger
from kvgauge.cluster.metrics import PublishedReplicas
from kvgauge.cluster.names import REQUIRED_REPLICAS, WORKER_INDEX
from kvgauge.cluster.records import PodState, Workload, WorkloadKey
from kvgauge.cluster.store import Store
from kvgauge.complaints import InputError

PemPair: TypeAlias = tuple[bytes, bytes]
"""Certificate chain and key, PEM."""

MAX_STREAMS = 128
_MAX_CALLS = 512
_MAX_MESSAGE_BYTES = 64 * 1024
_MAX_HEADER_BYTES = 16 * 1024
_MOST_MILLI = 10**12
_OPTIONS = (
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", _MAX_HEADER_BYTES),
    ("grpc.absolute_max_metadata_size", _MAX_HEADER_BYTES),
    ("grpc.max_concurrent_streams", _MAX_CALLS),
    # Two processes on one port would each get some of the calls; the second is to fail instead.
    ("grpc.so_reuseport", 0),
    # A client whose node went away says nothing: without a ping its streams would stay for ever.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # A client looks for other replicas only when its connection ends.
    ("grpc.max_connection_age_ms", 600_000),
)

logger = logging.getLogger(__name__)


class UnknownWorkloadError(LookupError):
    """No such workload in the namespace."""


class NoFreshDataError(LookupError):
    """Nothing is known that is young enough."""


class Scaler:
    """The four answers. They neither wait nor change anything. Each raises InputError, UnknownWorkloadError,
    NoFreshDataError or MalformedError."""

    def __init__(
        self,
        store: Store,
        published_replicas: PublishedReplicas,
        stale_after_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._published = published_replicas
        self._stale_after_seconds = stale_after_seconds
        self._clock = clock

    def metric_spec(self, body: bytes) -> bytes:
        """From the metadata alone: KEDA makes the autoscaler of it, before there is a pod and when a scaler has just
        started; without an answer it makes one that lacks the metric."""
        trigger = read_trigger(read_reference(body))
        return write_spec(trigger.metric, trigger.target_milli)

    def metrics(self, body: bytes) -> bytes:
        request = read_metrics_request(body)
        trigger = read_trigger(request.reference)
        check_metric_name(trigger, request.metric_name)
        workload = self.workload(trigger)
        value_milli = self.value_milli(trigger, workload)
        if value_milli is None:
            raise NoFreshDataError(f"{trigger.metric}: nothing of the last {self._stale_after_seconds:g} s is known")
        return write_value(request.metric_name, value_milli)

    def is_active(self, body: bytes) -> bytes:
        return write_activity(self.active(read_trigger(read_reference(body))))

    def workload(self, trigger: Trigger) -> Workload:
        """The one that the trigger names."""
        found = [workload for key in trigger.keys if (workload := self._store.workload(key)) is not None]
        if not found:
            raise UnknownWorkloadError(f"workload: there is no {trigger.workload} in {trigger.keys[0].namespace}")
        if len(found) > 1:
            kinds = " and a ".join(workload.kind for workload in found)
            raise InputError(f"workload: {trigger.workload} is a {kinds}; say which, such as deployment/NAME")
        return found[0]

    def active(self, trigger: Trigger) -> bool:
        """Whether there is work, or may be. What is not known never switches a workload off.

        A workload of which no pods are asked for is not active: it cannot be heard of, and to say otherwise would wake
        it. Waking it is for a trigger that sees the queue in front of it.
        """
        workload = self.workload(trigger)
        if workload.spec_replicas == 0:
            return False
        value_milli = self.value_milli(trigger, workload)
        return value_milli is None or value_milli > trigger.activation_milli or self._is_busy(workload.key)

    def value_milli(self, trigger: Trigger, workload: Workload) -> int | None:
        """The trigger's metric in thousandths, rounded up; None where it is not known.

        No pods asked for need none and hold nothing: 0 is then a fact. An error instead would make some releases of
        KEDA start the pods of the fallback.
        """
        if workload.spec_replicas == 0:
            return 0
        if trigger.metric == REQUIRED_REPLICAS:
            milli = self._required_milli(workload.key)
        else:
            milli = self._load_milli(workload, trigger.target_milli)
        return None if milli is None else min(milli, _MOST_MILLI)

    def _required_milli(self, key: WorkloadKey) -> int | None:
        required = self._store.required(key)
        if required is None or not self._is_fresh(required.read_seconds):
            return None
        return self._published(required)

    def _load_milli(self, workload: Workload, target_milli: int) -> int | None:
        """Sum over the pods. A ready pod that tells nothing counts like the mean of the others, since a router gives it
        as much; and while there is one, the sum is never so small that pods would be taken away."""
        states = list(self._pods(workload.key))
        loads = [load for state in states if (load := self._load_ratio(state)) is not None]
        silent = sum(state.pod.ready and self._load_ratio(state) is None for state in states)
        if not loads:
            return None
        total_milli = math.ceil(min(math.fsum(loads) * 1000 * (1 + silent / len(loads)), _MOST_MILLI))
        return max(total_milli, target_milli * workload.status_replicas) if silent else total_milli

    def _load_ratio(self, state: PodState) -> float | None:
        reading = state.reading
        if reading is None or reading.load_ratio is None or not reading.valid:
            return None
        sound = self._is_fresh(reading.read_seconds) and math.isfinite(reading.load_ratio) and reading.load_ratio >= 0
        return reading.load_ratio if sound else None

    def _is_busy(self, key: WorkloadKey) -> bool:
        """Whether a pod has requests, or may have: the metric is about how many pods are enough, and one that is hardly
        used is in use."""
        for state in self._pods(key):
            reading = state.reading
            if reading is None or not self._is_fresh(reading.read_seconds):
                if state.pod.ready:
                    return True
            elif (reading.running is None and reading.waiting is None) or reading.running or reading.waiting:
                return True
        return False

    def _pods(self, key: WorkloadKey) -> Iterator[PodState]:
        """Those that serve and stay. In a group of a LeaderWorkerSet only the leader answers for the engine."""
        for state in self._store.pods(key.namespace):
            pod = state.pod
            gone = pod.deleting or pod.phase in {"Failed", "Succeeded"}
            if pod.workload == key and not gone and pod.labels.get(WORKER_INDEX, "0") == "0":
                yield state

    def _is_fresh(self, read_seconds: float) -> bool:
        return self._clock() - read_seconds <= self._stale_after_seconds


class KedaServer:
    """A running server. Open streams end with it."""

    def __init__(self, server: Any, service: "_Service") -> None:
        self._server = server
        self._service = service

    @property
    def open_streams(self) -> int:
        return self._service.open_streams

    async def stop(self, grace_seconds: float = 1.0) -> None:
        """Takes no more calls, ends the streams, waits so long for the rest."""
        self._service.stopping.set()
        await self._server.stop(grace_seconds)


class _Service:
    """The scaler behind gRPC: errors become status codes, streams are counted."""

    def __init__(self, scaler: Scaler, push_seconds: float) -> None:
        self.open_streams = 0
        self.stopping = asyncio.Event()
        self._scaler = scaler
        self._push_seconds = push_seconds

    def handler(self) -> Any:
        # Without serializers the handlers get and give bytes: a message that cannot be read is then theirs to refuse.
        unary = {
            "IsActive": self._scaler.is_active,
            "GetMetricSpec": self._scaler.metric_spec,
            "GetMetrics": self._scaler.metrics,
        }
        methods = {name: grpc.unary_unary_rpc_method_handler(_answering(answer)) for name, answer in unary.items()}
        methods["StreamIsActive"] = grpc.unary_stream_rpc_method_handler(self._stream)
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def _stream(self, body: bytes, context: Any) -> None:
        if self.open_streams >= MAX_STREAMS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"more than {MAX_STREAMS} streams")
        self.open_streams += 1
        try:
            await self._push(body, context)
        except Exception as error:
            await context.abort(*_status(error))
        finally:
            self.open_streams -= 1

    async def _push(self, body: bytes, context: Any) -> None:
        """The activity at once, and then each time it has changed."""
        trigger = read_trigger(read_reference(body))
        told: bool | None = None
        while not self.stopping.is_set():
            active = self._scaler.active(trigger)
            if active is not told:
                await context.write(write_activity(active))
                told = active
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._push_seconds):
                    await self.stopping.wait()


async def serve_keda(
    store: Store,
    published_replicas: PublishedReplicas,
    *,
    host: str,
    port: int,
    credentials: Any | None = None,
    stale_after_seconds: float = 10.0,
    push_seconds: float = 1.0,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[KedaServer, int]:
    """(the server, the port that it has). To be called in the loop that owns the store.

    `credentials` are grpc's for a server, None is plain text. Figures older than `stale_after_seconds` are not told.
    Streams look for a change every `push_seconds`. Raises InputError when the address cannot be had.
    """
    service = _Service(Scaler(store, published_replicas, stale_after_seconds, clock), push_seconds)
    server = grpc.aio.server(handlers=[service.handler()], options=_OPTIONS, maximum_concurrent_rpcs=_MAX_CALLS)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if credentials is None:
            bound = server.add_insecure_port(address)
        else:
            bound = server.add_secure_port(address, credentials)
    except RuntimeError:
        raise InputError(f"keda_port: cannot listen on {address}") from None
    await server.start()
    return KedaServer(server, service), int(bound)


def reloading_credentials(current: Callable[[], PemPair]) -> Any:
    """grpc's credentials of a server, which ask for the pair anew at every handshake. `current` is called in grpc's
    threads and must be quick. A pair that does not load later leaves the one before in use; the first one must load."""
    loaded = current()

    def changed() -> Any | None:
        nonlocal loaded
        try:
            found = current()
        except (OSError, ValueError) as error:
            logger.warning("the scaler's certificate cannot be read (%s); the one before stays", type(error).__name__)
            return None
        if found == loaded:
            return None
        loaded = found
        return _configuration(found)

    return grpc.dynamic_ssl_server_credentials(_configuration(loaded), changed)


def _configuration(pair: PemPair) -> Any:
    chain, key = pair
    return grpc.ssl_server_certificate_configuration([(key, chain)])


def _answering(answer: Callable[[bytes], bytes]) -> Any:
    async def handle(body: bytes, context: Any) -> bytes:
        try:
            return answer(body)
        except Exception as error:
            await context.abort(*_status(error))
            raise

    return handle


def _status(error: Exception) -> tuple[Any, str]:
    """What KEDA gets, and writes into its own log and the ScaledObject's events."""
    codes = grpc.StatusCode
    match error:
        case InputError() | MalformedError():
            return codes.INVALID_ARGUMENT, str(error)
        case UnknownWorkloadError():
            return codes.NOT_FOUND, str(error)
        case NoFreshDataError():
            return codes.UNAVAILABLE, str(error)
        case _:
            logger.error("the scaler cannot answer: %s", type(error).__name__)
            return codes.INTERNAL, "the scaler cannot answer"
