"""Concurrent streaming completions of exact length against an OpenAI-compatible server.

Run as a script, this file is the client itself: it reads a job list from its standard input and writes the outcomes to
its standard output. It runs in a process of its own so that dozens of busy streams never keep the test from looking.
"""

import contextlib
import http.client
import json
import random
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

TIMEOUT_SECONDS = 120.0
_TAIL_BYTES = 4096


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
    """Runs every job at once; leaving the block hangs up on those that still run."""

    def __init__(self, url: str, model: str, jobs: Sequence[Job]) -> None:
        self._order = json.dumps({"url": url, "model": model, "jobs": [asdict(job) for job in jobs]})
        self._client: subprocess.Popen[str] | None = None
        self._answer = ""

    def __enter__(self) -> Self:
        self._client = subprocess.Popen(
            ["nice", "-n", "10", sys.executable, "-I", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._client.stdin is not None
        self._client.stdin.write(self._order)
        self._client.stdin.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._client is not None
        assert self._client.stdout is not None
        self._client.kill()
        with self._client.stdout as output:
            self._answer = output.read()
        self._client.wait(timeout=30)

    @property
    def running(self) -> bool:
        """Whether any stream is still open."""
        return self._client is not None and self._client.poll() is None

    def outcomes(self) -> list[Outcome]:
        """Every stream's outcome in the order of the jobs, once the block is left; empty for one cut short."""
        return [Outcome(**outcome) for outcome in json.loads(self._answer or "[]")]


def stream(url: str, model: str, job: Job) -> Outcome:
    """Runs one job to its end. Never raises for what the server does."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=TIMEOUT_SECONDS)
    body = {
        "model": model,
        "prompt": list(job.prompt),
        "max_tokens": job.output_tokens,
        "ignore_eos": True,
        "temperature": 1.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    try:
        with contextlib.closing(connection):
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != http.client.OK:
                return Outcome(None, None, f"status {response.status}: {response.read(200).decode(errors='replace')}")
            tail = b""
            while chunk := response.read1(1 << 16):
                tail = (tail + chunk)[-_TAIL_BYTES:]
            return _outcome(tail.decode(errors="replace"))
    except (OSError, http.client.HTTPException, LookupError, ValueError) as error:
        return Outcome(None, None, f"{type(error).__name__}: {error}")


def _outcome(tail: str) -> Outcome:
    """Reads the usage out of the last events of a stream."""
    payloads = [line.removeprefix("data: ") for line in tail.splitlines() if line.startswith("data: ")]
    if payloads[-1:] != ["[DONE]"]:
        return Outcome(None, None, "the stream was cut off")
    usage = json.loads(payloads[-2])["usage"]
    return Outcome(usage["prompt_tokens"], usage["completion_tokens"], None)


def main() -> None:
    """The client: a thread and a connection for each job."""
    order = json.load(sys.stdin)
    jobs = [Job(tuple(job["prompt"]), job["output_tokens"]) for job in order["jobs"]]
    outcomes: dict[int, Outcome] = {}

    def run(index: int) -> None:
        outcomes[index] = stream(order["url"], order["model"], jobs[index])

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    json.dump([asdict(outcomes[index]) for index in range(len(jobs))], sys.stdout)


if __name__ == "__main__":
    main()
