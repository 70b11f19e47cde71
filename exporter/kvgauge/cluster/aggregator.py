"""`kvgauge aggregator`: what watches, polls, reckons and serves, in one event loop.

Whatever is away meanwhile (the API server, sidecars), the rest goes on with what it has, and says how old that is. A
part that ends by itself is a defect: then the process ends too, and its next life starts anew.
"""

import asyncio
import gc
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from kubernetes.aio.client import ApiClient, ApiregistrationV1Api
from kubernetes.aio.client.exceptions import ApiException
from prometheus_client import CollectorRegistry

from kvgauge import __version__
from kvgauge.cluster.app import create_app
from kvgauge.cluster.authentication import Authenticator
from kvgauge.cluster.authorization import Authorizer
from kvgauge.cluster.dead_band import value_for
from kvgauge.cluster.events import tell_pressure
from kvgauge.cluster.fleet import Fleet
from kvgauge.cluster.fleet_past import FleetPast
from kvgauge.cluster.fleet_routes import add_fleet
from kvgauge.cluster.following import Following
from kvgauge.cluster.health import create_health_app
from kvgauge.cluster.kube import connect
from kvgauge.cluster.leading import Alone, Leadership, lease_namespace, own_identity
from kvgauge.cluster.measuring import AggregatorCollector, Sources
from kvgauge.cluster.metrics import Figures
from kvgauge.cluster.polling import Poller
from kvgauge.cluster.pressure import Bounds
from kvgauge.cluster.records import Required
from kvgauge.cluster.requiring import Requirer
from kvgauge.cluster.reviewing import Reviewer
from kvgauge.cluster.scale_in import Pace, keep_costs
from kvgauge.cluster.serving import serve
from kvgauge.cluster.settings import AggregatorSettings
from kvgauge.cluster.store import Store
from kvgauge.cluster.tls import ServingTls, following_files, serving_tls
from kvgauge.cluster.trusting import follow_request_header
from kvgauge.complaints import InputError, fail
from kvgauge.configuring import load_role, to_toml
from kvgauge.listening import bind_for
from kvgauge.logs import logger, set_up

GC_THRESHOLDS = (50_000, 20, 10)
"""Thousands of readings come anew each second, none of them in a cycle: at Python's own thresholds the collector walks
all of them so often that the loop stands still for a tenth of a second at a time."""
_SWITCH_SECONDS = 0.0005
"""The fleet rule must not hold the interpreter for longer than an autoscaler's read can wait."""


def main(arguments: Sequence[str]) -> None:
    """Runs the aggregator until SIGTERM or SIGINT."""
    description = "Polls the sidecars of a cluster and serves autoscalers what they need: custom metrics, KEDA."
    try:
        settings, print_config = load_role(AggregatorSettings, "aggregator", description, arguments)
        if print_config:
            sys.stdout.write(to_toml(settings))
            return
        set_up(settings.log_format, settings.log_level)
        sys.setswitchinterval(_SWITCH_SECONDS)
        gc.set_threshold(*GC_THRESHOLDS)
        ended = asyncio.run(run(settings))
    except InputError as error:
        fail(str(error))
    raise SystemExit(ended)


@dataclass(frozen=True, slots=True)
class Ports:
    """Where it serves."""

    api: int
    metrics: int
    keda: int | None


async def run(
    settings: AggregatorSettings,
    on_started: Callable[[Ports], None] = lambda _: None,
    *,
    allow_loopback: bool = False,
) -> int:
    """Serves until a signal comes; returns the exit code. `allow_loopback`: pods may have loopback addresses, which no
    pod of a cluster has. Raises InputError."""
    tls = serving_tls(settings)
    async with AsyncExitStack() as stack:
        api = stack.enter_context(bind_for("port", settings.host, settings.port))
        metrics = stack.enter_context(bind_for("metrics_port", settings.host, settings.metrics_port))
        client = await connect(settings.kubeconfig)
        stack.push_async_callback(client.close)
        store = Store()
        following = Following(client, store, settings)
        published = _published(store, following, settings.hpa_tolerance)
        poller = Poller(
            store,
            interval_seconds=settings.interval,
            timeout_seconds=settings.poll_timeout,
            stale_after_seconds=settings.stale_after,
            allow_loopback=allow_loopback,
        )
        reviewer = Reviewer(client)
        authenticator = Authenticator(reviewer.whose_token)
        parts: list[Coroutine[Any, Any, Any]] = [
            following.run(),
            poller.run(),
            Requirer(store).run(),
            follow_request_header(client, authenticator, tls),
            *following_files(settings, tls),
        ]
        leads, writing = _writing_parts(client, store, settings)
        parts.extend(writing)
        figures = Figures(store, published, stale_after_seconds=settings.stale_after, clock=time.monotonic)
        external = settings.external and await _external_is_free(client)
        app = create_app(store, figures, Authorizer(authenticator, reviewer.allows), external=external)
        sources = Sources(
            store, poller.outcomes, settings.stale_after, following.ages, leads, poll_durations=poller.durations
        )
        stop = asyncio.Event()
        _stop_on_signals(stop)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(AggregatorCollector(sources))
        health = create_health_app(registry, lambda: following.synced)
        parts.append(_fleet_page(health, sources, figures, following))
        servers = [serve(app, api, stop, tls.context), serve(health, metrics, stop)]
        keda_port = await _keda(stack, settings, store, published, tls)
        ports = Ports(api.getsockname()[1], metrics.getsockname()[1], keda_port)
        logger.info("kvgauge %s serves the metrics API on port %d", __version__, ports.api)
        on_started(ports)
        return await _together(servers, parts, stop)


def _published(store: Store, following: Following, usual_tolerance: float) -> Callable[[Required], int | None]:
    """What is published of a workload: the number itself, or, for an autoscaler with a dead band, a value that passes
    it."""

    def published(required: Required) -> int | None:
        if required.replicas is None:
            return None
        workload = store.workload(required.workload.key) or required.workload
        stated = following.tolerances.get(workload.key)
        if stated is None and following.knows_autoscalers:
            return 1000 * required.replicas
        up, down = stated if stated is not None else (None, None)
        return value_for(
            required.replicas,
            workload.status_replicas,
            usual_tolerance if up is None else up,
            usual_tolerance if down is None else down,
        )

    return published


def _fleet_page(plain: FastAPI, sources: Sources, figures: Figures, following: Following) -> Coroutine[Any, Any, None]:
    """Adds the page to the plain port; returns what has to run for it."""

    def ready() -> bool:
        return following.synced

    fleet = Fleet(sources, figures)
    past = FleetPast(fleet, ready=ready)
    add_fleet(plain, fleet, past, ready=ready, api_server_age_seconds=lambda: following.ages().get("pods"))
    return past.run()


def _writing_parts(
    client: ApiClient, store: Store, settings: AggregatorSettings
) -> tuple[Callable[[], bool | None], list[Coroutine[Any, Any, Any]]]:
    """(whether this replica writes, what has to run for it). Who writes nothing needs no leader."""
    if not settings.scale_in_helper and not settings.events:
        return lambda: None, []
    parts: list[Coroutine[Any, Any, Any]] = []
    leadership: Leadership | Alone = Alone()
    if settings.leader_election:
        leadership = Leadership(client, lease_namespace(settings.lease_namespace), own_identity())
        parts.append(leadership.lead())
    if settings.scale_in_helper:
        parts.append(keep_costs(client, store, leadership, Pace(stale_seconds=settings.stale_after)))
    if settings.events:
        parts.append(tell_pressure(client, store, leadership, Bounds(stale_seconds=settings.stale_after)))
    return lambda: leadership.is_leader, parts


async def _external_is_free(client: ApiClient) -> bool:
    """Whether nobody else serves external.metrics.k8s.io. Where that cannot be told, it is somebody else's."""
    name = "v1beta1.external.metrics.k8s.io"
    try:
        found = await ApiregistrationV1Api(client).read_api_service(name, _request_timeout=5)
    except ApiException as error:
        if error.status == 404:
            return True
        logger.error("external metrics are not served: the API server answered %s for %s", error.status, name)
        return False
    except Exception as error:
        logger.error("external metrics are not served: %s could not be read (%s)", name, type(error).__name__)
        return False
    labels = (found.metadata.labels if found.metadata is not None else None) or {}
    ours = labels.get("app.kubernetes.io/name") == "kvgauge"
    if not ours:
        logger.error("external metrics are not served: %s belongs to another", name)
    return ours


async def _keda(
    stack: AsyncExitStack,
    settings: AggregatorSettings,
    store: Store,
    published: Callable[[Required], int | None],
    tls: ServingTls,
) -> int | None:
    if settings.keda_port is None:
        return None
    # Only who serves KEDA pays for gRPC.
    from kvgauge.cluster.keda import reloading_credentials, serve_keda

    credentials = reloading_credentials(lambda: (tls.pair.chain, tls.pair.key)) if settings.keda_tls else None
    server, port = await serve_keda(
        store,
        published,
        host=settings.host,
        port=settings.keda_port,
        credentials=credentials,
        stale_after_seconds=settings.stale_after,
    )
    stack.push_async_callback(server.stop, 0.5)
    logger.info("KEDA's external scaler is on port %d", port)
    return port


def _stop_on_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, stop.set)
        except (RuntimeError, ValueError):
            # Not the main thread: whoever runs it there ends it otherwise.
            return


async def _together(
    servers: Sequence[Coroutine[Any, Any, None]], parts: Sequence[Coroutine[Any, Any, Any]], stop: asyncio.Event
) -> int:
    """Runs all until `stop` is set, which the servers drain by themselves, or until one of them ends before."""
    serving = [asyncio.create_task(server) for server in servers]
    others = [asyncio.create_task(part) for part in parts]
    stopped = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait({*serving, *others, stopped}, return_when=asyncio.FIRST_COMPLETED)
    wrong = not stop.is_set()
    if wrong:
        for task in done:
            logger.error("a part of the aggregator has ended", exc_info=task.exception())
        stop.set()
    await asyncio.wait(serving)
    for task in others:
        task.cancel()
    await asyncio.gather(*serving, *others, stopped, return_exceptions=True)
    return 1 if wrong else 0
