"""The metrics API over 2,000 pods, with TLS, in a process of its own: `python -m bench.cluster.listed`."""

import asyncio
import time

from starlette.requests import Request
from tests.cluster.stocking import reading

from bench.cluster.herd import stocked
from kvgauge.cluster.access import Attributes
from kvgauge.cluster.app import create_app
from kvgauge.cluster.metrics import Figures
from kvgauge.cluster.serving import serve
from kvgauge.cluster.tls import ServingTls, self_signed
from kvgauge.listening import bind


async def _everybody(_request: Request, _attributes: Attributes | None) -> None:
    """Whoever asks may read: reviews are asked for once in some seconds."""


async def main() -> None:
    store = stocked(1)
    for state in list(store.pods()):
        store.put_reading(
            state.pod.key, state.pod.uid, reading(read_seconds=time.monotonic(), wall_seconds=time.time())
        )
    figures = Figures(store, lambda _: None, stale_after_seconds=3600, clock=time.monotonic)
    listener = bind("127.0.0.1", 0)
    pair, _ = self_signed(["127.0.0.1"])
    print(listener.getsockname()[1], flush=True)
    app = create_app(store, figures, _everybody, external=False)
    await serve(app, listener, asyncio.Event(), ServingTls(pair).context)


if __name__ == "__main__":
    asyncio.run(main())
