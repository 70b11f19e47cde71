"""From the facts of this pod to findings: one pure function for each link, in the order of the chain."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kvgauge import __version__
from kvgauge.doctor.findings import Finding, fail, ok, skip, typed, warn, words
from kvgauge.doctor.looking import LocalFacts, Looked
from kvgauge.doctor.settings import DoctorSettings
from kvgauge.observe.engines.contract import Json
from kvgauge.observe.merging import PAGELESS, assign
from kvgauge.observe.owning import owned
from kvgauge.observe.records import EngineReading, GpuReading, RankReading, SourceError

_NO_DRIVER_HERE = frozenset({"library_not_found", "driver_not_loaded", "no_device"})
_NEEDED = ("capacity_tokens", "active_tokens", "running")
_USEFUL = ("waiting", "prompt_lengths", "output_lengths")
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Here:
    """What commands need to know to be typed as they are."""

    engine_url: str
    sidecar_url: str
    engine: str = "auto"
    pod: str | None = None
    namespace: str | None = None

    @classmethod
    def of(cls, settings: DoctorSettings, environ: Mapping[str, str] = os.environ) -> "Here":
        """The injector tells pod and namespace in the environment."""
        where = environ.get("POD_NAME"), environ.get("POD_NAMESPACE")
        return cls(settings.engine_url, settings.address, settings.engine, *where)

    def logs(self, otherwise: str) -> str:
        if self.pod and self.namespace:
            return f"kubectl -n {self.namespace} logs {self.pod} --all-containers --tail=30"
        return otherwise

    def described(self, otherwise: str) -> str:
        if self.pod and self.namespace:
            return f"kubectl -n {self.namespace} describe pod {self.pod}"
        return otherwise


def check(facts: LocalFacts, here: Here) -> list[Finding]:
    """All findings of this pod."""
    return [
        driver(facts.devices, here),
        gpu_view(facts, here),
        engine(facts.engine, here),
        engine_metrics(facts.engine, here),
        model(facts),
        agent(facts),
        *_of_the_sidecar(facts, here),
    ]


def driver(devices: Looked[tuple[GpuReading, ...]], here: Here) -> Finding:
    error = devices.error
    command = here.described("nvidia-smi")
    if error is not None:
        if error.reason in _NO_DRIVER_HERE:
            told = f"{error.message}; advice goes on without the card's memory (docs/injector.md, GPU modes)"
            return warn("driver", told, command)
        return fail("driver", f"{error.message} ({error.reason})", command)
    gpus = devices.value or ()
    names = ", ".join(dict.fromkeys(words(gpu.name) + (f" MIG {gpu.mig}" if gpu.mig else "") for gpu in gpus))
    versions = ", ".join(dict.fromkeys(words(gpu.driver) for gpu in gpus))
    return ok("driver", f"{_many(len(gpus), 'GPU')}: {names}, driver {versions}")


def gpu_view(facts: LocalFacts, here: Here) -> Finding:
    gpus = facts.devices.value
    if gpus is None:
        return skip("gpu", "the driver was not read")
    mine, why_not = owned(gpus, facts.agent.value, facts.ownership)
    if why_not is not None:
        return fail("gpu", why_not, "kvgauge doctor --gpu-uuids " + typed(",".join(gpu.uuid for gpu in gpus)))
    for gpu in mine:
        if gpu.used_bytes is None or gpu.total_bytes is None:
            why = words(gpu.missing.get("used_bytes") or gpu.missing.get("total_bytes") or "not told")
            return warn(
                "gpu", f"GPU {gpu.gpu}: its memory is not told: {why}", here.described("nvidia-smi -q -d MEMORY")
            )
    used = ", ".join(f"{(g.used_bytes or 0) / _GIB:.1f} of {(g.total_bytes or 0) / _GIB:.1f} GiB used" for g in mine)
    return ok("gpu", f"{len(mine)} of {len(gpus)} visible are the engine's: {used}")


def engine(looked: Looked[EngineReading], here: Here) -> Finding:
    if here.engine in PAGELESS:
        return ok("engine", f"{here.engine} has no page; the agent tells of it")
    if looked.value is None:
        error = looked.error or SourceError("timeout", "no answer in time")
        return fail(
            "engine", f"{here.engine_url}: {words(error.message)} ({error.reason})", _engine_command(error, here)
        )
    found = looked.value
    version = words(found.version) if found.version is not None else "of a version that it does not tell"
    told = f"{found.engine} {version} at {here.engine_url} serves {words(found.model) or 'a model without a name'}"
    if found.asleep:
        return warn("engine", f"{told}; it sleeps", f"curl -sS {here.engine_url}/is_sleeping")
    return ok("engine", told)


def _engine_command(error: SourceError, here: Here) -> str:
    url = here.engine_url
    return {
        "refused": here.logs("kvgauge doctor --engine-url http://127.0.0.1:PORT"),
        "timeout": here.logs(f"curl -sS -m 5 {url}/metrics"),
        "tls": f"curl -svo /dev/null {url}/metrics",
        "unauthorized": "KVGAUGE_ENGINE_API_KEY=KEY kvgauge doctor",
        "several_engines": "kvgauge doctor --engine NAME",
        "stalled": here.logs(f"curl -sS {url}/metrics"),
    }.get(error.reason, f"curl -sS {url}/metrics | head -20")


def engine_metrics(looked: Looked[EngineReading], here: Here) -> Finding:
    """What advice stands on, of all ranks; of the rest only what makes it better."""
    if looked.value is None or not looked.value.ranks:
        return skip("metrics", "the engine was not read")
    found = looked.value
    page = f"curl -sS {here.engine_url}/metrics | grep -v '^#'"
    lacking = [name for name in _NEEDED if any(getattr(rank, name) is None for rank in found.ranks)]
    if lacking:
        command = "kvgauge doctor --engine-capacity-tokens N" if lacking[0] == "capacity_tokens" else page
        return fail("metrics", f"missing for any advice: {_why(lacking, found.ranks)}", command)
    if found.bad_lines or found.bad_values:
        told = f"{found.bad_lines} lines cannot be read and {found.bad_values} figures are impossible"
        return warn("metrics", told, page)
    wanting = [name for name in _USEFUL if any(getattr(rank, name) is None for rank in found.ranks)]
    if wanting:
        return warn("metrics", f"missing for good advice: {_why(wanting, found.ranks)}", page)
    untold = sorted({name for rank in found.ranks for name in rank.missing})
    more = f"; not told: {', '.join(untold)}" if untold else ""
    return ok("metrics", f"{', '.join((*_NEEDED, *_USEFUL))} of {_many(len(found.ranks), 'rank')}{more}")


def _why(names: list[str], ranks: tuple[RankReading, ...]) -> str:
    reasons = {name: next((rank.missing[name] for rank in ranks if name in rank.missing), "not told") for name in names}
    return "; ".join(f"{name} ({words(reason)})" for name, reason in reasons.items())


def model(facts: LocalFacts) -> Finding:
    looked = facts.model
    if looked.error is not None:
        reason = looked.error.reason
        read_by = "kvgauge plan --model PATH" if reason == "not_understood" else "kvgauge doctor --model PATH"
        told = f"{words(looked.error.message)} ({reason}); nothing is predicted without it"
        return warn("model", told, read_by)
    if looked.value is None:
        return skip("model", "no --model was given, and the engine that would name it was not read")
    found = looked.value
    about = found.architecture
    told = f"{about.model_type}, {about.num_layers} layers, {about.dtype}, from {words(found.path)}"
    if found.weights is None:
        why = words(found.missing.get("weights") or "not told")
        return warn("model", f"{told}; its weights are not known: {why}", f"ls -l {typed(found.path)}")
    return ok("model", f"{told}; weights of {found.weights.total_bytes / _GIB:.1f} GiB")


def agent(facts: LocalFacts) -> Finding:
    looked = facts.agent
    if looked.error is not None:
        told = f"{facts.spool}: {words(looked.error.message)} ({looked.error.reason})"
        return (fail if facts.spool_is_named else warn)("agent", told, f"ls -l --full-time {typed(facts.spool)}")
    if looked.value is None:
        return ok("agent", f"none is expected: {facts.spool} is not there, so live tokens are estimated")
    # Whose processes these are can be told beside an engine, or where it is known that there is no page.
    found = looked.value if facts.engine.error is not None else assign(looked.value, facts.engine.value)
    fresh = (
        f"{_many(len(found.processes), 'process', 'processes')} in {facts.spool}, {found.file_age_seconds:.1f} s old"
    )
    if found.instance is None and facts.engine.error is None:
        why = words(found.missing.get("instance") or "not told")
        return warn("agent", f"{fresh}; {why}", f"ls -l --full-time {typed(facts.spool)}")
    if found.skipped:
        left_out = ", ".join(f"{number} {reason}" for reason, number in sorted(found.skipped.items()))
        return warn("agent", f"{fresh}; left out: {left_out}", f"ls -l --full-time {typed(facts.spool)}")
    return ok("agent", fresh)


def _of_the_sidecar(facts: LocalFacts, here: Here) -> Iterator[Finding]:
    pages = facts.sidecar
    error = pages.advice.error
    if error is not None and error.reason != "http_status":
        start = here.logs(f"kvgauge sidecar --engine-url {here.engine_url}")
        yield fail("sidecar", f"{here.sidecar_url}: {words(error.message)} ({error.reason})", start)
        for name in ("page", "sources", "advice"):
            yield skip(name, "the sidecar does not answer")
        return
    if error is not None:
        known = pages.metrics.error is not None and pages.metrics.error.reason == "http_status"
        told = "it has no fresh tick to show, or is no sidecar" if known else "another program serves there"
        start = here.logs(f"curl -sS {here.sidecar_url}/readyz")
        yield fail("sidecar", f"{here.sidecar_url}: {words(error.message)}: {told}", start)
        for name in ("page", "sources", "advice"):
            yield skip(name, "the sidecar has nothing to show")
        return
    yield ok("sidecar", f"answers at {here.sidecar_url}")
    yield page(pages.metrics, here)
    yield sources(pages.observation, here)
    yield advice(pages.advice, here)


def page(looked: Looked[bytes], here: Here) -> Finding:
    """The metrics page: is it one, ours, and of this version?"""
    command = f"curl -sS {here.sidecar_url}/metrics | head -20"
    if looked.value is None:
        error = looked.error or SourceError("timeout", "no answer in time")
        return fail("page", f"{words(error.message)} ({error.reason})", command)
    # Only who looks at a page pays for the parser's import.
    from prometheus_client.parser import text_string_to_metric_families

    try:
        rows = [row for family in text_string_to_metric_families(looked.value.decode()) for row in family.samples]
    except (ValueError, KeyError, IndexError):
        return fail("page", "it is no metrics page", command)
    versions = [row.labels.get("version", "") for row in rows if row.name == "kvgauge_build_info"]
    if not versions:
        return fail("page", "it is the page of another program: kvgauge_build_info is not there", command)
    if versions[0] != __version__:
        told = f"{len(rows)} series of kvgauge {words(versions[0])}, while this is {__version__}"
        return warn("page", told, "kvgauge --version")
    return ok("page", f"{len(rows)} series of kvgauge {__version__}")


def sources(looked: Looked[Json], here: Here) -> Finding:
    """How the sidecar itself says that its sources are doing."""
    command = f"kvgauge top --once --url {here.sidecar_url}"
    told = looked.value.get("sources") if isinstance(looked.value, Mapping) else None
    states = [state for state in told if isinstance(state, Mapping)] if isinstance(told, list) else []
    if not states:
        return fail("sources", "the sidecar does not tell how its sources are doing", command)
    down = {words(state.get("source")): words(state.get("reason")) for state in states if state.get("up") is not True}
    if not down:
        ages = [age for state in states if isinstance(age := state.get("age_seconds"), int | float)]
        names = ", ".join(words(state.get("source")) for state in states)
        return ok("sources", f"{names} are up, the oldest {max(ages, default=0.0):.1f} s old")
    listed = ", ".join(f"{name} ({reason or 'no reason'})" for name, reason in down.items())
    return (fail if "engine" in down else warn)("sources", f"the sidecar cannot read: {listed}", command)


def advice(looked: Looked[Json], here: Here) -> Finding:
    command = f"kvgauge top --once --url {here.sidecar_url}"
    told = looked.value
    if not isinstance(told, Mapping) or not isinstance(told.get("valid"), bool):
        return fail("advice", "the answer is no advice", f"curl -sS {here.sidecar_url}/v1/advice")
    said = told.get("explanation")
    first = words(said[0]) if isinstance(said, list) and said else "it does not say why"
    if told["valid"] is False:
        return fail("advice", f"not valid: {first}", command)
    age = told.get("age_seconds")
    fresh = f"{age:.1f} s old" if isinstance(age, int | float) else "of unknown age"
    safe, load = told.get("safe_concurrency"), told.get("load_ratio")
    figures = f"safe {safe}, binding {words(told.get('binding_limit'))}" if isinstance(safe, int) else first
    loaded = f", load {load:.2f}" if isinstance(load, int | float) else ", no load ratio"
    return ok("advice", f"{figures}{loaded}, {fresh}")


def _many(number: int, what: str, more: str | None = None) -> str:
    return f"{number} {what if number == 1 else more or what + 's'}"
