"""Whether the cluster keeps init containers running: the API server's version, asked at the start and now and then."""

import asyncio
import re
from collections.abc import Awaitable, Callable

from kvgauge.logs import logger

NATIVE_SINCE = (1, 29)
ASK_AGAIN_SECONDS = 3600.0
RETRY_SECONDS = 10.0
ANSWER_SECONDS = 5.0

Version = tuple[int, int]
Ask = Callable[[], Awaitable[Version]]
"""Asks the API server; whatever it raises counts as no answer."""


class NativeSidecars:
    """`choice` is always, never or auto. Until auto has an answer the sidecar is an ordinary container: every version
    takes that, and an older one would wait for ever for an init container that keeps running."""

    def __init__(self, choice: str, on_change: Callable[[bool], None] = lambda _native: None) -> None:
        self._on_change = on_change
        self.native = choice == "always"
        self.asks = choice == "auto"
        on_change(self.native)

    async def look(self, ask: Ask) -> bool:
        """Asks once; False where no answer came, and what was known stays."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                version = await ask()
        except Exception as error:
            logger.warning("the API server does not tell its version (%s)", type(error).__name__)
            return False
        native = version >= NATIVE_SINCE
        if native != self.native:
            logger.info("Kubernetes %d.%d: native sidecars %s", *version, "on" if native else "off")
            self.native = native
            self._on_change(native)
        return True

    async def follow(self, ask: Ask, told: bool) -> None:
        """Asks again for ever; `told`: the last time brought an answer."""
        while True:
            await asyncio.sleep(ASK_AGAIN_SECONDS if told else RETRY_SECONDS)
            told = await self.look(ask)


def parse_version(major: str, minor: str) -> Version:
    """Of `/version`; providers write a minor such as `29+`. Raises ValueError."""
    match = re.match(r"[0-9]{1,4}", minor)
    if match is None or not (major.isascii() and major.isdecimal()):
        raise ValueError("no version of Kubernetes")
    return int(major), int(match[0])
