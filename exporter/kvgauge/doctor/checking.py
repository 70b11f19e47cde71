"""From the facts of this pod to findings: one pure function for each link, in the order of the chain."""

from urllib.parse import urlsplit

from kvgauge.doctor import leading
from kvgauge.doctor.checking_sidecar import sidecar
from kvgauge.doctor.findings import Finding, bytes_of, fail, many, ok, since, skip, typed, warn, words
from kvgauge.doctor.here import Here, is_local
from kvgauge.doctor.looking import NEEDED, LocalFacts, Looked, assigned, lacking, merged
from kvgauge.observe.merging import PAGELESS
from kvgauge.observe.owning import owned
from kvgauge.observe.records import AgentReading, EngineReading, GpuReading, RankReading, SourceError

__all__ = ["Here", "check"]

NO_DRIVER_HERE = frozenset({"library_not_found", "driver_not_loaded", "no_device"})
_USEFUL = ("waiting", "prompt_lengths", "output_lengths")
_CAPACITY_IN_LOGS = "total.?(num.?)?tokens|kv.?cache"
_MOST_PORTS = 8


def check(facts: LocalFacts, here: Here) -> list[Finding]:
    """All findings of this pod."""
    return [
        driver(facts.devices, here),
        gpu_view(facts, here),
        engine(facts, here),
        engine_metrics(facts, here),
        model(facts, here),
        agent(facts, here),
        *sidecar(facts, here),
    ]


def driver(devices: Looked[tuple[GpuReading, ...]], here: Here) -> Finding:
    error = devices.error
    command = leading.driver(here)
    if error is not None:
        if error.reason in NO_DRIVER_HERE:
            told = f"{error.message}; advice goes on without the card's memory (docs/injector.md, GPU modes)"
            return warn("driver", told, command)
        return fail("driver", f"{error.message} ({error.reason})", command)
    gpus = devices.value or ()
    names = ", ".join(dict.fromkeys(words(gpu.name) + (f" MIG {gpu.mig}" if gpu.mig else "") for gpu in gpus))
    versions = ", ".join(dict.fromkeys(words(gpu.driver) for gpu in gpus))
    return ok("driver", f"{many(len(gpus), 'GPU')}: {names}, driver {versions}")


def gpu_view(facts: LocalFacts, here: Here) -> Finding:
    gpus = facts.devices.value
    if gpus is None:
        return skip("gpu", "the driver was not read")
    mine, why_not = owned(gpus, facts.agent.value, facts.ownership)
    if why_not is not None:
        return fail("gpu", why_not, here.again("--gpu-uuids", ",".join(gpu.uuid for gpu in gpus)))
    for gpu in mine:
        if gpu.used_bytes is None or gpu.total_bytes is None:
            why = words(gpu.missing.get("used_bytes") or gpu.missing.get("total_bytes") or "not told")
            return warn(
                "gpu", f"GPU {gpu.gpu}: its memory is not told: {why}", here.described("nvidia-smi -q -d MEMORY")
            )
    used = ", ".join(f"{bytes_of(gpu.used_bytes)} of {bytes_of(gpu.total_bytes)} used" for gpu in mine)
    return ok("gpu", f"{len(mine)} of {len(gpus)} visible are the engine's: {used}")


def engine(facts: LocalFacts, here: Here) -> Finding:
    if here.engine in PAGELESS:
        return ok("engine", f"{here.engine} has no page; the agent tells of it")
    found = merged(facts.engine, facts.agent)
    if found is None:
        return _no_engine(facts, here)
    why = words(found.missing.get("version", ""))
    version = words(found.version) if found.version is not None else f"of a version not known ({why or 'not told'})"
    told = f"{found.engine} {version} at {here.engine_url} serves {words(found.model) or 'a model without a name'}"
    if found.asleep:
        return warn("engine", f"{told}; it sleeps", here.page(here.engine_url, "/is_sleeping"))
    if "(unauthorized)" in why:
        return warn("engine", f"{told}; {_key_is(here)}", leading.key(here))
    return ok("engine", told)


def _no_engine(facts: LocalFacts, here: Here) -> Finding:
    error = facts.engine.error or SourceError("timeout", "no answer in time")
    told = f"{here.engine_url}: {words(error.message)} ({error.reason})"
    command = leading.engine(error, facts, here)
    if error.reason == "unauthorized":
        told += f"; {_key_is(here)}"
    if error.reason == "http_status" and "answered 503" in error.message:
        told += "; it may still be loading"
    if error.reason == "no_engine_series" and _same(here) and facts.sidecar.advice.value is not None:
        told += "; this is where the sidecar serves"
    if here.engine == "auto" and leading.metricless(error):
        told += "; are its metrics turned off?"
    elsewhere = facts.sidecar.engine
    if elsewhere is None:
        if error.reason == "refused":
            told += "; it is down, still loading, or serves elsewhere"
            told += _listening(facts.neighbours.listening) if is_local(here.engine_url) else ""
        return fail("engine", told, command)
    told += f"; the sidecar sees {elsewhere}{_where(facts, here)}"
    # Nobody said that it should be here, and the chain is whole.
    return (fail if here.engine_url_is_given else warn)("engine", told, command)


def _same(here: Here) -> bool:
    return here.engine_url == here.sidecar_url


def _where(facts: LocalFacts, here: Here) -> str:
    """Where the sidecar sees its engine, as far as its connections tell."""
    own = facts.neighbours.of_the_sidecar
    if urlsplit(here.engine_url).port in own and is_local(here.engine_url):
        return " there"
    return f" at http://127.0.0.1:{own[0]}" if len(own) == 1 else ""


def _key_is(here: Here) -> str:
    return "the key that was given is refused" if here.key_is_given else "it wants a key, and none was given"


def _listening(ports: tuple[int, ...]) -> str:
    if not ports:
        return ""
    more = f" and {len(ports) - _MOST_PORTS} more" if len(ports) > _MOST_PORTS else ""
    return f"; ports that are listened on here: {', '.join(map(str, ports[:_MOST_PORTS]))}{more}"


def engine_metrics(facts: LocalFacts, here: Here) -> Finding:
    """What advice stands on, of all ranks; of the rest only what makes it better."""
    if here.engine in PAGELESS:
        return skip("metrics", f"{here.engine} has no page")
    found = merged(facts.engine, facts.agent)
    if found is None or not found.ranks:
        return skip("metrics", "the engine was not read")
    page = here.page(here.engine_url, "/metrics", " | grep -v '^#'")
    needed = lacking(NEEDED, found)
    if needed:
        return fail("metrics", *_no_advice(_why(needed, found.ranks), facts.with_a_capacity, here, page))
    if found.bad_lines or found.bad_values:
        told = f"{found.bad_lines} lines cannot be read and {found.bad_values} figures are impossible"
        return warn("metrics", told, page)
    wanting = lacking(_USEFUL, found)
    if wanting:
        return warn("metrics", f"missing for good advice: {_why(wanting, found.ranks)}", page)
    untold = sorted({name for rank in found.ranks for name in rank.missing})
    more = f"; not told: {', '.join(untold)}" if untold else ""
    return ok("metrics", f"{', '.join((*NEEDED, *_USEFUL))} of {many(len(found.ranks), 'rank')}{more}")


def _no_advice(why: str, told_it: EngineReading | None, here: Here, page: str) -> tuple[str, str]:
    """`told_it`: what would be read if the capacity were told."""
    told = f"missing for any advice: {why}"
    if "--kv-unified" in why:
        flag = "--llamacpp-kv-unified"
        return f"{told}; say it by {flag}, to the sidecar too", here.again(flag, "true")
    if told_it is not None and not lacking(NEEDED, told_it):
        flag = "--engine-capacity-tokens"
        told += f"; the engine's log has the number: say it by {flag}, to the sidecar too"
        return told, here.logs_with(_CAPACITY_IN_LOGS, f'read -r N; {here.again()} {flag} "$N"')
    return told, page


def _why(names: list[str], ranks: tuple[RankReading, ...]) -> str:
    """Each reason once."""
    reasons: dict[str, list[str]] = {}
    for name in names:
        why = next((rank.missing[name] for rank in ranks if name in rank.missing), "not told")
        reasons.setdefault(words(why), []).append(name)
    return "; ".join(f"{', '.join(listed)} ({why})" for why, listed in reasons.items())


def model(facts: LocalFacts, here: Here) -> Finding:
    looked = facts.model
    if looked.error is not None:
        return _no_model(looked.error, facts, here)
    if looked.value is None:
        return skip("model", "no --model was given, and the engine that would name it was not read")
    found = looked.value
    about = found.architecture
    told = f"{about.model_type}, {about.num_layers} layers, {about.dtype}, from {words(found.path)}"
    if found.weights is None:
        why = words(found.missing.get("weights") or "not told")
        return warn("model", f"{told}; its weights are not known: {why}", here.within(f"ls -l {typed(found.path)}"))
    return ok("model", f"{told}; weights of {bytes_of(found.weights.total_bytes)}")


def _no_model(error: SourceError, facts: LocalFacts, here: Here) -> Finding:
    where = f"{words(facts.model_path)}: " if facts.model_path else ""
    told = f"{where}{words(error.message)} ({error.reason}); nothing is predicted without it"
    seen = merged(facts.engine, facts.agent)
    # Looked for by its served name, since nobody has told its path.
    untold = words(seen.missing.get("model_path", "")) if seen is not None and facts.model_path == seen.model else ""
    if error.reason == "not_found" and "could not be read" in untold:
        told += f"; its path is not known: {untold}"
        if "(unauthorized)" in untold:
            return warn("model", f"{told}; {_key_is(here)}", leading.key(here))
    return warn("model", told, leading.model(error, facts, here))


def agent(facts: LocalFacts, here: Here) -> Finding:
    looked = facts.agent
    if looked.error is not None:
        told = _no_agent(looked.error, facts)
        needed = facts.spool_is_named or here.engine in PAGELESS
        return (fail if needed else warn)("agent", told, leading.agent(looked.error.reason, facts, here))
    if looked.value is None:
        return _unexpected_agent(facts, here)
    found = assigned(facts.engine, facts.agent)
    fresh = f"{many(len(looked.value.processes), 'process', 'processes')} in {facts.spool}, {_age(looked.value)} old"
    if found is not None and found.instance is None:
        why = words(found.missing.get("instance") or "not told")
        kinds = ", ".join(sorted({_program(each.engine, each.model) for each in found.processes}))
        told = f"{fresh}, of {kinds}: {why}"
        return (fail if here.engine in PAGELESS else warn)("agent", told, leading.spool(facts, here))
    if looked.value.skipped:
        left_out = ", ".join(f"{number} {reason}" for reason, number in sorted(looked.value.skipped.items()))
        return warn("agent", f"{fresh}; left out: {left_out}", leading.spool(facts, here))
    return ok("agent", fresh)


def _no_agent(error: SourceError, facts: LocalFacts) -> str:
    age = facts.spool_age_seconds
    told = {
        "not_found": "the folder is not there",
        "no_files": "no agent has written here",
        "stale": f"the newest file is {since(age)} old: its process has ended, or hangs",
    }.get(error.reason, words(error.message))
    return f"{facts.spool}: {told} ({error.reason})"


def _unexpected_agent(facts: LocalFacts, here: Here) -> Finding:
    away = f"none is expected: {facts.spool} is not there"
    if here.engine in PAGELESS:
        told = f"{facts.spool} is not there, and nothing else tells of {here.engine}"
        return fail("agent", told, leading.agent("not_found", facts, here))
    told_by_the_sidecar = facts.sidecar.source("agent")
    if told_by_the_sidecar is not None:
        return ok("agent", f"not in {facts.spool}: the sidecar looks for it in another folder")
    return ok("agent", f"{away}, so live tokens are estimated or not told")


def _age(agent: AgentReading) -> str:
    return since(agent.file_age_seconds)


def _program(kind: str, model: str | None) -> str:
    return words(f"{kind} with {model}" if model else kind)
