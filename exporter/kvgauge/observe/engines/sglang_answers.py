"""SGLang's pages, of which no version has all: which are there, and what they say, by data-parallel rank."""

from collections.abc import Mapping
from dataclasses import dataclass

from kvgauge.observe.engines.contract import Json, Pages
from kvgauge.observe.engines.rows import MAX_RANKS, Figures, field_of, objects_of
from kvgauge.observe.exposition import Page
from kvgauge.observe.records import SourceError

# Another path of the same server would fare no better.
_FINAL = frozenset({"refused", "timeout", "tls"})


@dataclass(frozen=True, slots=True)
class Answers:
    """What the server answered this time."""

    loads: Mapping[str, Mapping[str, object]]
    """Of `/v1/loads`, by dp_rank; of `/get_load`, under the same names, where nothing else answers."""
    version: object
    page: Page
    why_no_page: str | None
    info: Json
    """Of `/server_info`. The API key stands in it in the clear: only named fields are ever taken from it."""


def answers_of(pages: Pages, wanted: frozenset[bytes]) -> Answers:
    """Reads the loads, the `wanted` samples of the page, and the settings. Raises SourceError when neither loads nor
    page can be read."""
    loads: dict[str, Mapping[str, object]] = {}
    version: object = None
    no_loads: SourceError | None = None
    try:
        answer = pages.json("/v1/loads")
        loads, version = _by_rank(field_of(answer, "loads")), field_of(answer, "version")
    except SourceError as error:
        # Up to 0.5.9 the scheduler itself answers, and one that hangs does not.
        if error.reason in _FINAL:
            raise
        no_loads = error
    page, why_no_page = Page({}, 0), None
    try:
        page = pages.metrics("/metrics", wanted)
    except SourceError as error:
        if error.reason in _FINAL:
            raise
        why_no_page = f"/metrics could not be read ({error.reason}); --enable-metrics turns it on"
        try:
            loads = loads or _by_rank([_as_loads_say(entry) for entry in objects_of(pages.json("/get_load"))])
        except SourceError:
            raise no_loads or error from None
    info = pages.seldom("/server_info") or pages.seldom("/get_server_info")
    return Answers(loads, version, page, why_no_page, info)


def _by_rank(loads: object) -> dict[str, Mapping[str, object]]:
    """The entries by data-parallel rank; a server that has but one may leave it out."""
    entries = [(load.get("dp_rank") or 0, load) for load in objects_of(loads)]
    return {str(rank): load for rank, load in entries if type(rank) is int and 0 <= rank < MAX_RANKS}


def _as_loads_say(entry: Mapping[str, object]) -> Mapping[str, object]:
    """An entry of `/get_load`: its requests and tokens include those that wait."""
    told = Figures()
    requests, waiting, tokens, pending = (
        told.count(name, name, entry.get(name))
        for name in ("num_reqs", "num_waiting_reqs", "num_tokens", "num_pending_tokens")
    )
    load: dict[str, object] = {"dp_rank": entry.get("dp_rank"), "num_waiting_reqs": waiting}
    if requests is not None and waiting is not None:
        load["num_running_reqs"] = requests - waiting
    # How many tokens wait is told in 0.5.15, and not yet in 0.5.9.
    if tokens is not None and (pending is not None or waiting == 0):
        load["num_used_tokens"] = tokens - (pending or 0)
    return load
