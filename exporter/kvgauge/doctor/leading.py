"""What to type next where a source of facts cannot be read, by the doctor itself or by the sidecar."""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from kvgauge.doctor.findings import typed, words
from kvgauge.doctor.here import Here, is_local
from kvgauge.doctor.looking import LocalFacts
from kvgauge.observe.records import SourceError

_PATH = re.compile(r"(?:GET )?(/[\w./-]*)")
_NAMES = re.compile(r"series of ([\w.-]+)")
_SILENT = re.compile(r"the ([\w.-]+) server shows no series")
_ASKS_FOR_A_KEY = "read -rs KVGAUGE_ENGINE_API_KEY; export KVGAUGE_ENGINE_API_KEY; "
_WHERE_AGENTS_WRITE = "grep -haz ^KVGAUGE_SPOOL= /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n' | sort | uniq -c"


def by_source(name: str, reason: str, message: str, facts: LocalFacts, here: Here) -> str | None:
    """None for a source that is not known here."""
    error = SourceError(reason, message)
    if name == "nvml":
        return driver(here)
    if name == "engine":
        return engine(error, facts, here)
    if name == "model":
        return model(error, facts, here)
    return agent(reason, facts, here) if name == "agent" else None


def driver(here: Here) -> str:
    """The driver's own tool; where even that is missing, whether the kernel has the driver."""
    return here.described("nvidia-smi" if shutil.which("nvidia-smi") else "ls -l /proc/driver/nvidia")


def engine(error: SourceError, facts: LocalFacts, here: Here) -> str:
    url, reason = here.engine_url, error.reason
    own = facts.neighbours.of_the_sidecar
    if reason in ("refused", "no_engine_series") and facts.sidecar.engine and len(own) == 1 and is_local(url):
        elsewhere = f"http://127.0.0.1:{own[0]}"
        if elsewhere != url:
            return here.again("--engine-url", elsewhere)
    if reason == "refused":
        return here.logs("ss -ltnp" if is_local(url) else here.listeners(url))
    if reason in ("timeout", "stalled"):
        return here.logs(here.page(url, "/metrics"))
    if reason == "tls":
        return f"curl -svo /dev/null -m 5 {typed(url)}"
    if reason == "unauthorized":
        return key(here)
    if reason == "several_engines":
        named = _NAMES.search(error.message)
        return here.again("--engine", named[1] if named else "vllm")
    if reason == "no_engine_series" and here.engine != "auto":
        return here.again("--engine", "auto")
    silent = metricless(error)
    if silent is not None:
        # Its flags say whether its metrics are on.
        return here.described(f"ps -eo pid,args | grep -i '[{silent[0]}]{silent[1:]}'")
    path = _PATH.search(error.message)
    # What is said in the place of an answer says why.
    answered = reason == "http_status" and not here.in_a_pod
    shown = here.page(url, path[1] if path else "/metrics", "" if answered else " | head -20")
    return shown.replace("curl -sS", "curl -sSi") if answered else shown


def metricless(error: SourceError) -> str | None:
    """The engine that answers, and whose page has no series of its own."""
    found = _SILENT.search(error.message) if error.reason == "no_engine_series" else None
    return found[1] if found else None


def key(here: Here) -> str:
    """How to give the engine's key: it is asked for, so that no history of commands keeps it."""
    return here.annotation("kvgauge.dev/engine-api-key-secret", _ASKS_FOR_A_KEY + here.again())


def model(error: SourceError, facts: LocalFacts, here: Here) -> str:
    path = facts.model_path
    if path is None:
        return here.page(here.engine_url, "/v1/models")
    if error.reason == "not_understood":
        return here.kvgauge("plan", "--model", path)
    place = Path(path)
    if place.is_absolute() or path.startswith("."):
        return here.within(f"ls -ld {typed(path)} {typed(str(place.parent))}")
    return here.within(f"ls {typed(_hub())}")


def agent(reason: str, facts: LocalFacts, here: Here) -> str:
    if reason in ("not_found", "no_files"):
        return here.logs_with("kvgauge.?agent", _WHERE_AGENTS_WRITE)
    if reason in ("not_permitted", "unreadable"):
        return here.within(f"ls -ld {typed(facts.spool)}")
    return spool(facts, here)


def spool(facts: LocalFacts, here: Here) -> str:
    return here.within(f"ls -l --full-time {typed(facts.spool)}")


def _hub(environ: Mapping[str, str] = os.environ) -> str:
    home = environ.get("HF_HOME") or str(Path.home() / ".cache/huggingface")
    return words(environ.get("HF_HUB_CACHE") or f"{home}/hub")
