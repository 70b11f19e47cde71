"""What the memory model costs: `scripts/bench model`. Its exactness is the tests' affair (`tests/model`)."""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.model.known import LLAMA_8B, known_models
from tests.model.known_caches import known_caches

from bench.table import Figure, report

CASES = 10_000
# Byte code is what users have; without it every start compiles.
ENVIRON = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}


def wall_seconds(*arguments: str, rounds: int) -> float:
    """Median seconds of a whole process; one run more than counted warms the byte code."""
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=ENVIRON)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def import_seconds() -> float:
    """Median seconds of `import kvmodel` inside fresh interpreters."""
    probe = "import time; began = time.perf_counter(); import kvmodel; print(time.perf_counter() - began)"
    times = [
        float(subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, env=ENVIRON).stdout)
        for _ in range(10)
    ]
    return statistics.median(times[1:])


def write_cases(path: Path) -> None:
    """Cases over all known models: lengths, parallelism, engines, and a card or the bytes for the cache."""
    draw = random.Random(1)
    configs = [model.config for model in known_models()] + [cache.config for cache in known_caches()]
    with path.open("w") as file:
        for _ in range(CASES):
            case: dict[str, object] = {
                "config": draw.choice(configs),
                "engine": draw.choice(["vllm", "vllm", "vllm", "sglang", "tensorrt-llm", "llama.cpp"]),
                "max_model_len": draw.choice([4096, 8192, 32768, 131072]),
                "tp": draw.choice([1, 1, 2]),
            }
            if draw.random() < 0.5:
                case["available_kv_bytes"] = draw.randrange(1 << 30, 80 << 30)
            else:
                case["gpu"] = draw.choice(["h100-80gb", "a100-80gb", "l4"])
            file.write(json.dumps(case) + "\n")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        config, cases = Path(folder) / "config.json", Path(folder) / "cases.jsonl"
        config.write_text(json.dumps(LLAMA_8B))
        write_cases(cases)
        plan = ["-m", "kvgauge", "plan"]
        one = wall_seconds(*plan, "--model", str(config), "--gpu", "h100-80gb", "--json", rounds=7)
        batch = wall_seconds(*plan, "--batch", str(cases), rounds=1)
    report(
        "model",
        [
            Figure("import of kvmodel, median of 9", "ms", 50, 1e3 * import_seconds()),
            Figure("one kvgauge plan --json, median of 7", "s", 0.4, one),
            Figure(f"{CASES:,} cases in one batch", "s", 10, batch),
        ],
    )


if __name__ == "__main__":
    main()
