"""Waiting inside an event loop."""

import asyncio
from collections.abc import Callable


async def until(true: Callable[[], bool], *, seconds: float = 10) -> None:
    """Raises TimeoutError when it has not become so within that time."""
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.002)
