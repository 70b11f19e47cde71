"""Concurrent streaming completions of exact length against an OpenAI-compatible server."""

import contextlib
import http.client
import json
import random
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Job:
    """One request: a prompt of token ids, and how many tokens it shall produce (the end token is ignored)."""

    prompt: tuple[int, ...]
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one stream went: tokens as the server counted them at its end, or the error that ended it."""

    prompt_tokens: int | None
    output_tokens: int | None
    error: str | None


def random_jobs(count: int, prompt_tokens: int, output_tokens: int, *, vocab: int = 512, seed: int = 1) -> list[Job]:
    """`count` requests of equal lengths with different random prompts, so that no whole block of a prefix is shared."""
    return [random_job(prompt_tokens, output_tokens, vocab=vocab, seed=seed * count + index) for index in range(count)]


def random_job(prompt_tokens: int, output_tokens: int, *, vocab: int = 512, seed: int) -> Job:
    """One request with a random prompt."""
    rng = random.Random(seed)
    return Job(tuple(rng.randrange(4, vocab) for _ in range(prompt_tokens)), output_tokens)


class Load:
    """Runs every job at once, each on a thread and a connection of its own; leaving the block hangs up on the rest."""

    def __init__(self, url: str, model: str, jobs: Sequence[Job], *, timeout_seconds: float = 120.0) -> None:
        parts = urlsplit(url)
        self._connections = [
            http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=timeout_seconds) for _ in jobs
        ]
        self._outcomes: list[Outcome | None] = [None] * len(jobs)
        self._model = model
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(index, job), name=f"stream-{index}", daemon=True)
            for index, job in enumerate(jobs)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        for connection in self._connections:
            sock = connection.sock
            # Only shutting the socket down wakes a thread that is blocked reading from it.
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(timeout=30)

    @property
    def running(self) -> bool:
        """Whether any stream is still open."""
        return any(thread.is_alive() for thread in self._threads)

    def outcomes(self) -> list[Outcome]:
        """The finished streams' outcomes, in the order of the jobs."""
        return [outcome for outcome in self._outcomes if outcome is not None]

    def _run(self, index: int, job: Job) -> None:
        connection = self._connections[index]
        try:
            self._outcomes[index] = self._stream(connection, job)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._outcomes[index] = Outcome(None, None, f"{type(error).__name__}: {error}")
        finally:
            connection.close()

    def _stream(self, connection: http.client.HTTPConnection, job: Job) -> Outcome:
        body = {
            "model": self._model,
            "prompt": list(job.prompt),
            "max_tokens": job.output_tokens,
            "ignore_eos": True,
            "temperature": 1.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        if self._closing.is_set():
            return Outcome(None, None, "given up")
        response = connection.getresponse()
        if response.status != http.client.OK:
            return Outcome(None, None, f"status {response.status}: {response.read(200).decode(errors='replace')}")
        usage: dict[str, int] | None = None
        for line in response:
            payload = line.decode().removeprefix("data:").strip()
            if payload == "[DONE]":
                break
            if payload:
                usage = json.loads(payload).get("usage") or usage
        if usage is None:
            return Outcome(None, None, "the stream ended without its usage")
        return Outcome(usage["prompt_tokens"], usage["completion_tokens"], None)
