"""`kvgauge injector`: the webhook behind TLS, and beside it a plain port for probes and Prometheus."""

import asyncio
import contextlib
import signal
import socket
import ssl
import sys
from collections.abc import Iterator, Sequence

import uvicorn
from fastapi import Request
from fastapi.responses import PlainTextResponse, Response
from starlette.applications import Starlette
from starlette.routing import Route

from kvgauge import __version__
from kvgauge.cluster.injector.admission import create_app
from kvgauge.cluster.injector.certificates import Certificate, from_files, self_signed
from kvgauge.cluster.injector.counting import CONTENT_TYPE, Counts
from kvgauge.cluster.injector.versions import Ask, NativeSidecars, Version, parse_version
from kvgauge.cluster.settings import InjectorSettings
from kvgauge.complaints import InputError, fail
from kvgauge.configuring import load_role, to_toml
from kvgauge.listening import bind
from kvgauge.logs import logger, set_up

_MAX_CONNECTIONS = 512
_DRAIN_SECONDS = 0.5
_DESCRIPTION = "Mutating webhook that puts the sidecar into pods labelled kvgauge.dev/inject=true."


def main(arguments: Sequence[str]) -> None:
    """Runs the webhook until SIGTERM or SIGINT."""
    try:
        settings, print_config = load_role(InjectorSettings, "injector", _DESCRIPTION, arguments)
        if print_config:
            sys.stdout.write(to_toml(settings))
            return
        set_up(settings.log_format, settings.log_level)
        certificate = self_signed() if settings.self_signed else from_files(settings.tls_cert, settings.tls_key)
        with (
            _listener("port", settings.host, settings.port) as secure,
            _listener("metrics_port", settings.host, settings.metrics_port) as plain,
        ):
            asyncio.run(_serve(settings, certificate, secure, plain))
    except InputError as error:
        fail(str(error))


def _listener(name: str, host: str, port: int) -> socket.socket:
    try:
        return bind(host, port)
    except OSError as error:
        raise InputError(f"{name}: cannot serve on {host}:{port}: {error.strerror}") from None


async def _serve(
    settings: InjectorSettings, certificate: Certificate, secure: socket.socket, plain: socket.socket
) -> None:
    counts = Counts()
    sidecars = NativeSidecars(settings.native_sidecars, counts.set_native)
    ready = asyncio.Event()
    servers = [
        _server(create_app(settings, counts, lambda: sidecars.native), certificate.context),
        _server(_operations(counts, ready), None),
    ]

    def stop() -> None:
        ready.clear()
        for server in servers:
            server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    serving = [asyncio.create_task(server.serve([of])) for server, of in zip(servers, (secure, plain), strict=True)]
    following = [asyncio.create_task(certificate.follow()), asyncio.create_task(_follow(settings, sidecars, ready))]
    logger.info(
        "kvgauge %s injects on port %d, metrics on port %d",
        __version__,
        secure.getsockname()[1],
        plain.getsockname()[1],
    )
    try:
        await asyncio.gather(*serving)
    finally:
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)


async def _follow(settings: InjectorSettings, sidecars: NativeSidecars, ready: asyncio.Event) -> None:
    """Ready after the first answer of the API server, or after having waited for it for its time."""
    ask = _asking(settings.kubeconfig)
    told = await sidecars.look(ask) if sidecars.asks else True
    ready.set()
    if sidecars.asks:
        await sidecars.follow(ask, told)


def _asking(kubeconfig: str | None) -> Ask:
    async def ask() -> Version:
        # Loaded where it is needed: a webhook that is told has no use for a client.
        from kubernetes.aio.client import VersionApi

        from kvgauge.cluster.kube import connect

        async with await connect(kubeconfig) as api:
            code = await VersionApi(api).get_code()
        return parse_version(code.major, code.minor)

    return ask


def _operations(counts: Counts, ready: asyncio.Event) -> Starlette:
    async def metrics(_request: Request) -> Response:
        return Response(counts.page(), media_type=CONTENT_TYPE)

    async def livez(_request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_request: Request) -> Response:
        return PlainTextResponse("ok\n") if ready.is_set() else PlainTextResponse("not ready\n", 503)

    return Starlette(routes=[Route("/metrics", metrics), Route("/livez", livez), Route("/readyz", readyz)])


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Two servers stop together, by handlers of their owner."""
        yield


def _server(app: Starlette, context: ssl.SSLContext | None) -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        loop="asyncio",
        http="httptools",
        ws="none",
        server_header=False,
        limit_concurrency=_MAX_CONNECTIONS,
        # asyncio takes a fraction of a second here, which the annotation does not foresee.
        timeout_graceful_shutdown=_DRAIN_SECONDS,  # type: ignore[arg-type]
    )
    config.load()
    # Our own, whose certificate can change while it serves.
    config.ssl = context
    return _Server(config)
