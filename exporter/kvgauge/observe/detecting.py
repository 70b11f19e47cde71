"""Finds out which engine answers, by what it says and never by its port.

The order matters: nothing here may take records away from another reader (trtllm-serve's `/metrics`) or wake a sleeping
server (llama.cpp's `/slots`).
"""

from collections.abc import Mapping, Sequence

from kvgauge.observe.engines import ENGINES
from kvgauge.observe.engines.contract import Engine, Json
from kvgauge.observe.exposition import sample_names
from kvgauge.observe.fetching import Endpoint
from kvgauge.observe.records import SourceError

_PAGE_PATHS = ("/prometheus/metrics", "/metrics", "/v1/metrics")
# Its JSON page at /metrics is emptied by each read.
_DRAINED_BY_READING = frozenset({"tensorrt_llm"})
# The server is not there, or does not answer at all: another path will not help.
_FINAL = frozenset({"refused", "timeout", "tls"})


def detect(endpoint: Endpoint, engines: Sequence[Engine] = ENGINES) -> Engine:
    """The engine behind `endpoint`.

    Raises SourceError: what `Endpoint.get` raises, several_engines, not_metrics, no_engine_series.
    """
    owner = _owner(endpoint)
    # What is wrapped shows on the wrapper's page as if it served that page itself.
    found = _by_json(endpoint, [engine for engine in engines if engine.marks.wraps])
    if found is not None:
        return found
    failure = SourceError("no_engine_series", "no page of a known engine answers")
    for path in _PAGE_PATHS:
        if owner in _DRAINED_BY_READING and path == "/metrics":
            continue
        try:
            body = endpoint.get(path)
        except SourceError as error:
            failure = _remembered(failure, error, path)
            continue
        if not is_metrics_page(body):
            failure = SourceError("not_metrics", f"{path} did not answer a metrics page")
            continue
        found = _by_page(path, body, engines)
        if found is not None:
            return found
        if body.strip():
            failure = SourceError("no_engine_series", f"the page at {path} has no series of a known engine")
    found = _by_json(endpoint, engines) or next((each for each in engines if owner in each.marks.owned_by), None)
    if found is None:
        raise failure
    return found


def is_metrics_page(body: bytes) -> bool:
    """Whether a body can be an exposition page: one may be empty, none is HTML or JSON."""
    return body.lstrip()[:1] not in {b"<", b"{", b"["}


def _remembered(before: SourceError, error: SourceError, path: str) -> SourceError:
    if error.reason in _FINAL:
        raise error
    # What /metrics answered says more than that an engine has no page of another engine's.
    return error if path == "/metrics" else before


def _by_page(path: str, body: bytes, engines: Sequence[Engine]) -> Engine | None:
    names = frozenset(sample_names(body))
    found = [engine for engine in engines if engine.marks.page(names, body)]
    wrappers = [engine for engine in found if engine.marks.wraps]
    if wrappers:
        return wrappers[0]
    if len(found) > 1:
        listed = ", ".join(engine.name for engine in found)
        raise SourceError("several_engines", f"the page at {path} mixes series of {listed}; --engine chooses one")
    return found[0] if found else None


def _by_json(endpoint: Endpoint, engines: Sequence[Engine]) -> Engine | None:
    answers: dict[str, Json | None] = {}
    for engine in engines:
        for path, is_its in engine.marks.json:
            if path not in answers:
                answers[path] = _json_or_none(endpoint, path)
            answer = answers[path]
            if answer is not None and is_its(answer):
                return engine
    return None


def _owner(endpoint: Endpoint) -> str | None:
    answer = _json_or_none(endpoint, "/v1/models")
    data = answer.get("data") if isinstance(answer, Mapping) else None
    entry = data[0] if isinstance(data, list) and data and isinstance(data[0], dict) else {}
    owner = entry.get("owned_by")
    return owner if isinstance(owner, str) else None


def _json_or_none(endpoint: Endpoint, path: str) -> Json | None:
    try:
        return endpoint.get_json(path)
    except SourceError as error:
        if error.reason in _FINAL:
            raise
        return None
