"""A real llama-server on the CPU: started, watched, stopped, killed and started again."""

import contextlib
import os
import re
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import urllib3
from prometheus_client.parser import text_string_to_metric_families

from .processes import Child, free_port, until

READY_SECONDS = 60.0
_CELLS_LINE = re.compile(r"llama_context: n_ctx +=\s+(\d+)")
_SLOTS_LINE = re.compile(r"n_slots = (\d+), n_ctx_slot = (\d+), kv_unified = '(true|false)'")


@dataclass(frozen=True, slots=True)
class LoggedPool:
    """What the server printed of its KV cache when it started."""

    cells: int
    slots: int
    slot_tokens: int
    one_pool: bool


@dataclass(frozen=True, slots=True)
class Slot:
    """One slot as `/slots` tells of it; counts are 0 where it was never used."""

    busy: bool
    task: int
    held: int
    prompt: int
    """Prompt tokens of the running request that are computed or taken over from the last one."""
    decoded: int
    """Tokens that it has generated."""


class LlamaServer:
    """One server on one port for its whole life, over as many processes as it is started.

    `flags` are llama-server's own, beyond the model and the address; `api_key` is what it demands, if anything.
    """

    def __init__(
        self, program: Path, model: Path, logs: Path, *flags: str, slots: bool = True, api_key: str | None = None
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [
            *("nice", "-n", "10", str(program), "--model", str(model), "--host", "127.0.0.1", "--port", str(self.port)),
            *("--threads", "1", "--no-warmup", "--offline", "--log-verbosity", "4", *flags),
            *(("--api-key", api_key) if api_key else ()),
            *(() if slots else ("--no-slots",)),
        ]
        self._logs = logs
        self._starts = 0
        self._child: Child | None = None
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else None
        self._http = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(connect=2, read=20), headers=headers)

    @property
    def alive(self) -> bool:
        return self._child is not None and self._child.alive

    def start(self) -> None:
        """Starts the server and waits until it serves. Raises AssertionError with the end of its log."""
        self._starts += 1
        self._child = child = Child(self._command, self._logs / f"llama-{self.port}-{self._starts}.log", os.environ)
        try:
            until(self._ready, READY_SECONDS, "the server's /health")
        except AssertionError as error:
            child.kill()
            raise AssertionError(f"llama-server did not start: {error}; its log ends:\n{child.last_lines()}") from None

    def kill(self) -> None:
        """SIGKILL."""
        if self._child is not None:
            self._child.kill()

    def close(self) -> None:
        """Ends it. It has nothing to save, and asked to end while it works it may take its time."""
        self.kill()
        self._http.clear()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """SIGSTOP for the length of the block: connections are taken, and nothing answers."""
        pid = self._running().pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def log(self) -> str:
        """All that the running process has printed."""
        return self._running().log.read_text(encoding="utf-8", errors="replace")

    def logged_pool(self) -> LoggedPool:
        """The KV cache as the running process printed it at its start."""
        text = self.log()
        cells, slots = _CELLS_LINE.search(text), _SLOTS_LINE.search(text)
        if cells is None or slots is None:
            raise AssertionError("the server's log has no lines on its KV cache")
        return LoggedPool(int(cells[1]), int(slots[1]), int(slots[2]), slots[3] == "true")

    def slots(self) -> list[Slot]:
        """The server's own `/slots`."""
        return [_slot(slot) for slot in self._http.request("GET", f"{self.url}/slots").json()]

    def metrics(self) -> Mapping[str, float]:
        """The server's own `/metrics`, without the prefix."""
        page = self._http.request("GET", f"{self.url}/metrics").data.decode()
        samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
        return {sample.name.removeprefix("llamacpp:"): sample.value for sample in samples}

    def _ready(self) -> bool | None:
        if not self._running().alive:
            raise AssertionError("it exited")
        try:
            return self._http.request("GET", f"{self.url}/health").status == 200
        except urllib3.exceptions.HTTPError:
            return None

    def _running(self) -> Child:
        if self._child is None:
            raise AssertionError("the server was not started")
        return self._child


def _slot(told: Mapping[str, int | list[Mapping[str, int]]]) -> Slot:
    count = {name: value for name, value in told.items() if isinstance(value, int)}
    tokens = told.get("next_token")
    return Slot(
        busy=bool(told["is_processing"]),
        task=count.get("id_task", -1),
        held=count.get("n_prompt_tokens", 0),
        prompt=count.get("n_prompt_tokens_processed", 0) + count.get("n_prompt_tokens_cache", 0),
        decoded=tokens[0]["n_decoded"] if isinstance(tokens, list) else 0,
    )
