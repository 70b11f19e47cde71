"""Findings of the sidecar: does it answer, is its page one, how are its sources, is its advice valid?"""

from collections.abc import Iterator, Mapping

from kvgauge import __version__
from kvgauge.doctor import leading
from kvgauge.doctor.findings import Finding, fail, ok, since, skip, warn, words
from kvgauge.doctor.here import Here, is_local
from kvgauge.doctor.looking import NEEDED, LocalFacts, lacking, merged
from kvgauge.observe.records import SourceError

_REST = ("page", "sources", "advice")
_RUNNING = "ps -eo pid,stat,lstart,args | grep '[k]vgauge sidecar'"


def sidecar(facts: LocalFacts, here: Here) -> Iterator[Finding]:
    """Four lines, of which three hang on the first."""
    pages = facts.sidecar
    error = pages.advice.error
    if error is None:
        yield ok("sidecar", f"answers at {here.sidecar_url}")
        yield page(facts, here)
        yield sources(facts, here)
        yield advice(facts, here)
        return
    if error.reason != "http_status":
        yield fail("sidecar", f"{here.sidecar_url}: {words(error.message)} ({error.reason})", _absent(error, here))
        why = "the sidecar does not answer"
    else:
        known = pages.metrics.error is not None and pages.metrics.error.reason == "http_status"
        told = "it has no fresh tick to show, or is no sidecar" if known else "another program serves there"
        if "503" in error.message:
            told = "it has no fresh tick to show: its loop hangs, or has just begun"
        answer = here.page(here.sidecar_url, "/readyz") if "503" in error.message else here.listeners(here.sidecar_url)
        yield fail("sidecar", f"{here.sidecar_url}: {words(error.message)}: {told}", here.logs(answer))
        why = "the sidecar has nothing to show"
    for name in _REST:
        yield skip(name, why)


def _absent(error: SourceError, here: Here) -> str:
    """Nobody listens: start one. Somebody does who does not answer, or nothing that a sidecar would: who is it?"""
    if error.reason == "refused" and is_local(here.sidecar_url):
        return here.logs(here.sidecar())
    hangs = error.reason == "timeout" and is_local(here.sidecar_url)
    return here.logs(_RUNNING if hangs else here.listeners(here.sidecar_url))


def page(facts: LocalFacts, here: Here) -> Finding:
    """The metrics page: is it one, ours, of this version, and how old is the tick that it shows?"""
    looked = facts.sidecar.metrics
    command = here.page(here.sidecar_url, "/metrics", " | head -20")
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
    told = f"{len(rows)} series of kvgauge {words(versions[0])}{_tick(facts, here)}"
    if versions[0] != __version__:
        told += f"; this is {__version__}: start the sidecar anew, or take the doctor of its version"
        return warn("page", told, here.described(_RUNNING if is_local(here.sidecar_url) else command))
    return ok("page", told)


def _tick(facts: LocalFacts, here: Here) -> str:
    """How old it is, where both clocks are this host's."""
    document = facts.sidecar.observation.value
    moment = document.get("wall_seconds") if isinstance(document, Mapping) else None
    if not isinstance(moment, int | float) or facts.wall_seconds is None or not is_local(here.sidecar_url):
        return ""
    # It may have ticked between the question and its answer.
    return f", of a tick {since(max(facts.wall_seconds - moment, 0.0))} ago"


def sources(facts: LocalFacts, here: Here) -> Finding:
    """How the sidecar itself says that its sources are doing. A driver that is not here was told of above."""
    states = facts.sidecar.sources()
    if not states:
        command = here.page(here.sidecar_url, "/v1/observation", " | head -c 400")
        return fail("sources", "the sidecar does not tell how its sources are doing", command)
    up = [_state(state) for state in states if state.get("up") is True]
    ages = f"{', '.join(up)} old" if up else ""
    down = [state for state in states if state.get("up") is not True]
    known = facts.devices.error.reason if facts.devices.error is not None else None
    new = [state for state in down if (state.get("source"), state.get("reason")) != ("nvml", known)]
    if not new:
        return ok("sources", "; ".join(filter(None, (ages, "nvml as the driver above" if down else ""))))
    # The one that advice hangs on first.
    worst = min(new, key=lambda state: state.get("source") != "engine")
    name, reason = words(worst.get("source")), words(worst.get("reason"))
    told = f"the sidecar cannot read: {', '.join(map(_down, new))}" + (f"; {ages}" if ages else "")
    if _reads(name, facts):
        told += f"; the doctor can read {name}: was the sidecar started with other flags, or without the key?"
        return (fail if name == "engine" else warn)("sources", told, here.described(_RUNNING))
    command = leading.by_source(name, reason, words(worst.get("message")), facts, here) or here.top()
    return (fail if name == "engine" else warn)("sources", told, command)


def _reads(name: str, facts: LocalFacts) -> bool:
    """Whether the doctor has just read what the sidecar cannot."""
    own: dict[str, object] = {"engine": facts.engine.value, "model": facts.model.value, "agent": facts.agent.value}
    return own.get(name) is not None


def _state(state: Mapping[str, object]) -> str:
    return f"{words(state.get('source'))} {_age(state) or 'of unknown age'}"


def _down(state: Mapping[str, object]) -> str:
    age = _age(state)
    lasting = f", last {age} ago" if age else ""
    return f"{words(state.get('source'))} ({words(state.get('reason')) or 'no reason'}{lasting})"


def _age(state: Mapping[str, object]) -> str | None:
    age = state.get("age_seconds")
    return since(age) if isinstance(age, int | float) and not isinstance(age, bool) else None


def advice(facts: LocalFacts, here: Here) -> Finding:
    told = facts.sidecar.advice.value
    if not isinstance(told, Mapping) or not isinstance(told.get("valid"), bool):
        return fail("advice", "the answer is no advice", here.page(here.sidecar_url, "/v1/advice", " | head -c 400"))
    said = told.get("explanation")
    first = words(said[0]) if isinstance(said, list) and said else "it does not say why"
    if told["valid"] is False:
        if facts.sidecar.lacks_figures and not lacking(NEEDED, merged(facts.engine, facts.agent)):
            why = f"not valid: {first} The doctor misses nothing: start the sidecar with the doctor's flags"
            return fail("advice", why, here.described(_RUNNING))
        return fail("advice", f"not valid: {first}", here.top())
    age = told.get("age_seconds")
    fresh = f"{since(age)} old" if isinstance(age, int | float) else "of unknown age"
    safe, load = told.get("safe_concurrency"), told.get("load_ratio")
    figures = f"safe {safe}, binding {words(told.get('binding_limit'))}" if isinstance(safe, int) else first
    loaded = f", load {load:.2f}" if isinstance(load, int | float) else ", no load ratio"
    return ok("advice", f"{figures}{loaded}, {fresh}")
