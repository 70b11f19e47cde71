"""A real vLLM on the CPU: started, watched, frozen, killed and started again."""

import contextlib
import math
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import urllib3
from prometheus_client.parser import text_string_to_metric_families

from .processes import Child, free_port, until

MODEL_NAME = "tiny"
MAX_MODEL_LEN = 2048
BLOCK_TOKENS = 32
NUM_BLOCKS = 200
READY_SECONDS = 240.0

_CAPACITY_LINE = re.compile(r"KV cache size: ([\d,]+) tokens, Maximum concurrency for ([\d,]+) tokens.*?: ([\d.]+)x")


@dataclass(frozen=True, slots=True)
class LoggedCapacity:
    """What the engine printed of its pool when it started."""

    capacity_tokens: int
    max_model_len: int
    max_concurrency: float


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """What the engine's own page says at one moment."""

    usage_ratio: float
    num_blocks: int
    running: int
    waiting: int
    preemptions_total: int
    prompt_tokens_total: int
    generation_tokens_total: int

    @property
    def used_blocks(self) -> int:
        """Blocks in use: the engine divides by all blocks but the null block. Raises ValueError where it does not."""
        blocks = self.usage_ratio * (self.num_blocks - 1)
        if abs(blocks - round(blocks)) > 1e-6:
            raise ValueError(
                f"kv_cache_usage_perc: {self.usage_ratio} is no whole number of {self.num_blocks - 1} blocks"
            )
        return round(blocks)


class VllmServer:
    """One engine on one port for its whole life, over as many processes as it is started."""

    def __init__(self, python: Path, model: Path, logs: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._python = python
        self._model = model
        self._logs = logs
        self._starts = 0
        self._child: Child | None = None
        self._core_pid = 0
        self._http = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(connect=2, read=20))
        # Its sockets lie here: the paths must stay short, and nothing may be left behind after SIGKILL.
        self._scratch = Path(tempfile.mkdtemp(prefix="kvg-"))

    @property
    def alive(self) -> bool:
        return self._child is not None and self._child.alive

    def start(self) -> float:
        """Starts the engine and waits until it serves; returns the seconds that took.

        Raises AssertionError with the end of its log when it dies, or is not ready in time.
        """
        self._starts += 1
        began = time.monotonic()
        log = self._logs / f"vllm-{self._starts}.log"
        self._child = child = Child(self._arguments(), log, self._environment())
        try:
            until(self._ready, READY_SECONDS, "the engine's /health")
        except AssertionError as error:
            child.kill()
            raise AssertionError(f"vLLM did not start: {error}; its log ends:\n{child.last_lines()}") from None
        # Looked up now: under load every moment between two freezes counts.
        self._core_pid = self._find_core(child)
        return time.monotonic() - began

    def kill(self) -> None:
        """SIGKILL to all its processes."""
        if self._child is not None:
            self._child.kill()

    def close(self) -> None:
        """Ends it in an orderly way and takes its scratch folder away."""
        if self._child is not None:
            self._child.terminate()
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._http.clear()

    def logged_capacity(self) -> LoggedCapacity:
        """The pool as the running process printed it at its start."""
        found = _CAPACITY_LINE.search(self._running().log.read_text(encoding="utf-8", errors="replace"))
        if found is None:
            raise AssertionError("the engine's log has no line with the KV cache size")
        tokens, length, concurrency = (text.replace(",", "") for text in found.groups())
        return LoggedCapacity(int(tokens), int(length), float(concurrency))

    def figures(self) -> EngineFigures:
        """Reads the engine's page."""
        page = self._http.request("GET", f"{self.url}/metrics").data.decode()
        values: dict[str, float] = {}
        num_blocks = math.nan
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                if sample.name == "vllm:cache_config_info":
                    num_blocks = float(sample.labels["num_gpu_blocks"])
                elif sample.labels.get("model_name") == MODEL_NAME:
                    values[sample.name] = sample.value
        return EngineFigures(
            usage_ratio=values["vllm:kv_cache_usage_perc"],
            num_blocks=int(num_blocks),
            running=int(values["vllm:num_requests_running"]),
            waiting=int(values["vllm:num_requests_waiting"]),
            preemptions_total=int(values["vllm:num_preemptions_total"]),
            prompt_tokens_total=int(values["vllm:prompt_tokens_total"]),
            generation_tokens_total=int(values["vllm:generation_tokens_total"]),
        )

    @contextlib.contextmanager
    def frozen(self) -> Iterator[EngineFigures]:
        """Stops the scheduler's process in the middle of its work and yields what the engine's page then says.

        The API server goes on answering, so for the length of the block everyone who reads the page reads the same.
        """
        core = self._core_pid
        os.kill(core, signal.SIGSTOP)
        try:
            yield self._settled()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(core, signal.SIGCONT)

    def _settled(self) -> EngineFigures:
        """The page once the steps that were under way have reached it."""
        last = self.figures()

        def same() -> EngineFigures | None:
            nonlocal last
            before, last = last, self.figures()
            return last if before == last else None

        return until(same, 10, "an unchanging page of a stopped engine")

    @staticmethod
    def _find_core(child: Child) -> int:
        for pid in child.members():
            with contextlib.suppress(OSError):
                if b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
        raise AssertionError("the engine has no EngineCore process")

    def _ready(self) -> bool | None:
        if not self._running().alive:
            raise AssertionError("it exited")
        try:
            return self._http.request("GET", f"{self.url}/health").status == 200
        except urllib3.exceptions.HTTPError:
            return None

    def _running(self) -> Child:
        if self._child is None:
            raise AssertionError("the engine was not started")
        return self._child

    def _arguments(self) -> list[str]:
        # The module and not the command `vllm serve`, which looks for a distribution of that very name.
        # Yields to the test and the sidecar, which have to look at the right time on a machine with few cores.
        return [
            *(
                "nice",
                "-n",
                "10",
                str(self._python),
                "-W",
                "ignore::DeprecationWarning",
                "-m",
                "vllm.entrypoints.openai.api_server",
            ),
            *("--model", str(self._model), "--served-model-name", MODEL_NAME),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--max-model-len", str(MAX_MODEL_LEN), "--block-size", str(BLOCK_TOKENS)),
            *("--num-gpu-blocks-override", str(NUM_BLOCKS), "--max-num-seqs", "64", "--enforce-eager"),
        ]

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return inherited | {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "TMPDIR": str(self._scratch),
        }
