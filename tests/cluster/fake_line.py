"""A line to a server that can be cut, go silent or lose the answers: a TCP relay on the loopback."""

import asyncio
from types import TracebackType
from typing import Literal

Fault = Literal["none", "cut", "silent", "lossy"]


class FakeLine:
    """`fault` may be set at any time: ``cut`` closes what asks, ``silent`` lets no request through, ``lossy`` lets the
    request through and closes instead of the answer; so does any answer after `answers_left`. `requests` counts the
    chunks that came from clients."""

    def __init__(self, host: str, port: int) -> None:
        self.fault: Fault = "none"
        self.answers_left: int | None = None
        self.requests = 0
        self._target = host, port
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"http://{host}:{port}"

    async def __aenter__(self) -> "FakeLine":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            there, back = await asyncio.open_connection(*self._target)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(reader, back, answers=False))
                    group.create_task(self._pump(there, writer, answers=True))
            finally:
                back.close()
        except* (OSError, asyncio.CancelledError, EOFError):
            pass
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool) -> None:
        while chunk := await reader.read(65536):
            self.requests += not answers
            if self.fault == "cut" or (answers and self._loses()):
                raise EOFError
            if self.fault != "silent" or answers:
                writer.write(chunk)
                await writer.drain()
        raise EOFError

    def _loses(self) -> bool:
        if self.answers_left is None:
            return self.fault == "lossy"
        self.answers_left -= 1
        return self.answers_left < 0
