"""`kvgauge injector`: the webhook behind TLS, and beside it a plain port for probes and Prometheus."""

import asyncio
import signal
import socket
import sys
from collections.abc import Coroutine, Sequence

from kvgauge import __version__
from kvgauge.cluster.health import create_health_app
from kvgauge.cluster.injector.admission import create_app
from kvgauge.cluster.injector.counting import Counts
from kvgauge.cluster.injector.versions import Ask, NativeSidecars, Version, parse_version
from kvgauge.cluster.serving import serve
from kvgauge.cluster.settings import InjectorSettings
from kvgauge.cluster.tls import ServingTls, following_files, serving_tls
from kvgauge.complaints import InputError, fail
from kvgauge.configuring import load_role, to_toml
from kvgauge.listening import bind_for
from kvgauge.logs import logger, set_up

_DESCRIPTION = "Mutating webhook that puts the sidecar into pods labelled kvgauge.dev/inject=true."


def main(arguments: Sequence[str]) -> None:
    """Runs the webhook until SIGTERM or SIGINT."""
    try:
        settings, print_config = load_role(InjectorSettings, "injector", _DESCRIPTION, arguments)
        if print_config:
            sys.stdout.write(to_toml(settings))
            return
        set_up(settings.log_format, settings.log_level)
        tls = serving_tls(settings)
        with (
            bind_for("port", settings.host, settings.port) as secure,
            bind_for("metrics_port", settings.host, settings.metrics_port) as plain,
        ):
            asyncio.run(_serve(settings, tls, secure, plain))
    except InputError as error:
        fail(str(error))


async def _serve(settings: InjectorSettings, tls: ServingTls, secure: socket.socket, plain: socket.socket) -> None:
    counts = Counts()
    sidecars = NativeSidecars(settings.native_sidecars, counts.set_native)
    ready, stop = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    following = [asyncio.create_task(each) for each in _background(settings, tls, sidecars, ready)]
    ports = secure.getsockname()[1], plain.getsockname()[1]
    logger.info("kvgauge %s injects on port %d, metrics on port %d", __version__, *ports)
    try:
        await asyncio.gather(
            serve(create_app(settings, counts, lambda: sidecars.native), secure, stop, tls.context),
            serve(create_health_app(counts.registry, ready.is_set), plain, stop),
        )
    finally:
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)


def _background(
    settings: InjectorSettings, tls: ServingTls, sidecars: NativeSidecars, ready: asyncio.Event
) -> list[Coroutine[object, object, None]]:
    return [_follow(settings, sidecars, ready), *following_files(settings, tls)]


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
