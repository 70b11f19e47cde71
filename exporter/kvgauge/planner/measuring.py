"""What the KV cache is worth: a real model generates with it and without, by torch and Transformers."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvgauge.complaints import InputError
from kvgauge.planner import tables
from kvgauge.planner.figures import gib

MOST_TOKENS = 1_000_000
DEVICES = ("auto", "cpu", "cuda")
# Large enough that the arithmetic outweighs Python's own time, small enough for a laptop.
_SMALL = {
    "vocab_size": 4096,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": MOST_TOKENS,
}


@dataclass(frozen=True, slots=True)
class Generation:
    """One run."""

    seconds: float
    peak_bytes: int | None
    """Most memory above the model's own; None where the system does not tell."""
    cache_bytes: int | None
    """Tensors of the cache after the last token; None without a cache."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Both runs over the same prompt."""

    model: str
    device: str
    dtype: str
    prompt_tokens: int
    new_tokens: int
    cached: Generation
    uncached: Generation
    same_tokens: bool
    """Rounding may part the two runs; they then still did the same amount of work."""
    ideal_cache_bytes: int | None
    """What the memory model says of the same sequence; None where it does not know the architecture."""

    @property
    def speed_up(self) -> float:
        """How many times faster the cache makes it."""
        return self.uncached.seconds / self.cached.seconds

    def to_json(self) -> dict[str, object]:
        """The comparison as JSON."""
        runs = {"with_cache": self.cached, "without_cache": self.uncached}
        return {
            "model": self.model,
            "device": self.device,
            "dtype": self.dtype,
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": self.new_tokens,
            **{
                name: {
                    "seconds": run.seconds,
                    "tokens_per_second": self.new_tokens / run.seconds,
                    "peak_bytes": run.peak_bytes,
                    "cache_bytes": run.cache_bytes,
                }
                for name, run in runs.items()
            },
            "speed_up": self.speed_up,
            "same_tokens": self.same_tokens,
            "ideal_cache_bytes": self.ideal_cache_bytes,
        }


def measure(model: str | None, prompt_tokens: int, new_tokens: int, device: str) -> Measured:
    """Generates `new_tokens` tokens greedily after a random prompt, with the cache and without.

    `model` is a folder; without weights in it, or with None (a small Llama), they are random. Raises InputError
    naming what is missing or wrong.
    """
    for name, tokens in (("prompt_tokens", prompt_tokens), ("new_tokens", new_tokens)):
        if tokens > MOST_TOKENS:
            raise InputError(f"{name}: {tokens} is more than {MOST_TOKENS}")
    torch, transformers = _libraries()
    chosen = _device(torch, device)
    loaded = _load(torch, transformers, model).to(chosen).eval()
    longest = getattr(loaded.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(longest, int) and prompt_tokens + new_tokens > longest:
        raise InputError(f"new_tokens: prompt and output exceed the model's {longest} tokens")
    torch.manual_seed(1)
    vocabulary = loaded.config.get_text_config().vocab_size
    prompt = torch.randint(0, vocabulary, (1, prompt_tokens), device=chosen)
    with _progress(2 * new_tokens) as tick:
        cached, with_cache = _generate(torch, loaded, prompt, new_tokens, tick, use_cache=True)
        uncached, without = _generate(torch, loaded, prompt, new_tokens, tick, use_cache=False)
    # The last token is returned without ever being put into the cache.
    held = prompt_tokens + new_tokens - 1
    dtype = str(loaded.dtype).removeprefix("torch.")
    return Measured(
        model=model or "a small Llama",
        device=chosen,
        dtype=dtype,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        cached=cached,
        uncached=uncached,
        same_tokens=bool(torch.equal(with_cache, without)),
        ideal_cache_bytes=_ideal(loaded.config.to_dict(), dtype, held),
    )


def show(measured: Measured) -> None:
    """Prints the comparison onto stdout. Raises InputError without rich."""
    screen = tables.console()
    rows = [
        (
            name,
            f"{run.seconds:.3f} s",
            f"{measured.new_tokens / run.seconds:,.1f}",
            gib(run.peak_bytes),
            gib(run.cache_bytes),
        )
        for name, run in (("with KV cache", measured.cached), ("without", measured.uncached))
    ]
    where = f"{measured.model} ({measured.dtype}) on {measured.device}"
    title = f"{where}: {measured.new_tokens} tokens after a prompt of {measured.prompt_tokens}"
    screen.print(tables.table(title, ("", "time", "tokens/s", "peak memory", "cache"), rows))
    screen.print(f"The cache makes it {measured.speed_up:.2f} times as fast.")
    if measured.ideal_cache_bytes is not None:
        screen.print(f"The memory model expects {gib(measured.ideal_cache_bytes)} of cache.")
    if not measured.same_tokens:
        screen.print("The two runs parted at a near tie between tokens; their work is the same.")


def _libraries() -> tuple[Any, Any]:
    try:
        # By name: the type checker's environment has neither.
        torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    except ImportError as error:
        missing = error.name or "torch"
        raise InputError(f"measure_cache: {missing} is missing: pip install 'kvgauge[torch]'") from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return torch, transformers


def _device(torch: Any, name: str) -> str:
    if name not in DEVICES:
        raise InputError(f"device: {name[:80]!r} is not one of {', '.join(DEVICES)}")
    there = bool(torch.cuda.is_available())
    if name == "cuda" and not there:
        raise InputError("device: there is no CUDA device")
    return "cuda" if there and name != "cpu" else "cpu"


def _load(torch: Any, transformers: Any, model: str | None) -> Any:
    if model is None:
        config = transformers.LlamaConfig(**_SMALL)
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    path = Path(model)
    folder = path.parent if path.name == "config.json" else path
    if not (folder / "config.json").is_file():
        raise InputError(f"model: {model[:200]!r} is no folder with a config.json")
    try:
        if any(folder.glob("*.safetensors")):
            return transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype="auto")
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        return transformers.AutoModelForCausalLM.from_config(config)
    # Transformers refuses models by many kinds of exceptions; the first line is what a person can use.
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"model: {model[:200]!r}: {lines[0][:300]}") from None


def _generate(
    torch: Any, model: Any, prompt: Any, new_tokens: int, tick: Callable[[], None], *, use_cache: bool
) -> tuple[Generation, Any]:
    options = {
        "attention_mask": torch.ones_like(prompt),
        "do_sample": False,
        "use_cache": use_cache,
        "pad_token_id": 0,
        "return_dict_in_generate": True,
    }
    with torch.inference_mode():
        # The first call pays for lazy initialisation that neither side should be charged with.
        model.generate(prompt, max_new_tokens=1, **options)
        peak = _Peak(torch, prompt.device.type)
        started = time.perf_counter()
        made = model.generate(
            prompt, max_new_tokens=new_tokens, min_new_tokens=new_tokens, streamer=_Ticker(tick), **options
        )
        if prompt.device.type == "cuda":
            torch.cuda.synchronize()
        elapsed = time.perf_counter() - started
    cache = made.past_key_values if use_cache else None
    return Generation(elapsed, peak.read(), _cache_bytes(torch, cache)), made.sequences


class _Ticker:
    """A streamer, for Transformers: counts tokens, keeps none."""

    def __init__(self, tick: Callable[[], None]) -> None:
        self._tick = tick
        self._prompt_seen = False

    def put(self, _tokens: object) -> None:
        """Called with the prompt first, then with each token."""
        if self._prompt_seen:
            self._tick()
        self._prompt_seen = True

    def end(self) -> None:
        """Called after the last token."""


class _Peak:
    """Most memory above what stood there at the start: the allocator's figure on CUDA, the process' on Linux."""

    def __init__(self, torch: Any, device: str) -> None:
        self._cuda = torch.cuda if device == "cuda" else None
        self._base: int | None
        if self._cuda is not None:
            self._cuda.reset_peak_memory_stats()
            self._base = self._cuda.memory_allocated()
            return
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            # Memory that the allocator kept from the warm-up would hide what this run takes (glibc only).
            ctypes.CDLL(None).malloc_trim(0)
        try:
            # 5 resets the high-water mark (proc_pid_clear_refs(5)).
            Path("/proc/self/clear_refs").write_text("5")
            self._base = _high_water_bytes()
        except (OSError, StopIteration):
            self._base = None

    def read(self) -> int | None:
        """The peak since the start, in bytes."""
        if self._base is None:
            return None
        top = self._cuda.max_memory_allocated() if self._cuda is not None else _high_water_bytes()
        return max(0, int(top) - self._base)


def _high_water_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024


def _cache_bytes(torch: Any, cache: Any) -> int | None:
    layers = getattr(cache, "layers", None)
    if layers is None:
        return None
    held = (value for layer in layers for value in vars(layer).values())
    return sum(int(value.nbytes) for value in held if torch.is_tensor(value))


def _ideal(config: dict[str, object], dtype: str, tokens: int) -> int | None:
    from kvmodel.architecture import read_architecture
    from kvmodel.errors import ModelError

    try:
        # Transformers caches in what it computes in; float32 included, where engines would take bfloat16.
        size = read_architecture({**config, "dtype": "bfloat16"}).bytes_at(tokens)
    except ModelError:
        return None
    return int(size * (2 if dtype == "float32" else 1))


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    if not sys.stderr.isatty():
        yield lambda: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:
        yield lambda: None
        return
    columns = (TextColumn("tokens"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)
