"""The engine as a source: find out whose pages these are, read them, and see whether it still works."""

import time
from collections.abc import Callable
from dataclasses import replace

from kvgauge.observe.detecting import detect, is_metrics_page
from kvgauge.observe.engines import by_name
from kvgauge.observe.engines.contract import Engine, Hints, Json
from kvgauge.observe.exposition import Page, read_page
from kvgauge.observe.fetching import Endpoint
from kvgauge.observe.pulse import Pulse
from kvgauge.observe.records import EngineReading, SourceError

SELDOM_SECONDS = 30.0
"""How often the pages that hardly ever change (version, served model) are read again."""


class EngineSource:
    """One engine endpoint. `kind` is the engine's name, or ``auto`` to tell it by what it answers.

    An engine with work that has not moved for `stalled_after_seconds` counts as failed, with reason ``stalled``.
    """

    name = "engine"

    def __init__(
        self,
        endpoint: Endpoint,
        kind: str = "auto",
        hints: Hints | None = None,
        stalled_after_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._endpoint = endpoint
        self._named: Engine | None = None if kind == "auto" else by_name(kind)
        self._found: Engine | None = None
        self._pages = _EndpointPages(endpoint, hints or Hints(), clock)
        self._pulse = Pulse(clock)
        self._stalled_after_seconds = stalled_after_seconds

    def read(self) -> EngineReading:
        """Reads the engine once. Raises SourceError: what `detect` and `Endpoint.get` raise, too_many_lines,
        not_metrics, not_json, no_engine_series, stalled."""
        try:
            engine = self._named or self._found or detect(self._endpoint)
            reading = engine.read(self._pages)
            if not reading.ranks:
                raise SourceError("no_engine_series", f"the {engine.name} server shows no series of its own")
        except SourceError:
            # Whatever comes back may be another engine, or another version with another model.
            self._found = None
            self._pages.forget()
            raise
        self._found = engine
        standing = self._pulse.standing_seconds(reading)
        if standing > self._stalled_after_seconds:
            raise SourceError("stalled", f"requests run, and nothing has moved for {standing:.0f} s")
        return replace(reading, standing_seconds=standing)

    def close(self) -> None:
        self._endpoint.close()


class _EndpointPages:
    """`Pages` of one endpoint."""

    def __init__(self, endpoint: Endpoint, hints: Hints, clock: Callable[[], float]) -> None:
        self.hints = hints
        self._endpoint = endpoint
        self._clock = clock
        self._kept: dict[str, tuple[float, Json]] = {}
        self._failures: dict[str, str] = {}

    def metrics(self, path: str, wanted: frozenset[bytes]) -> Page:
        body = self._endpoint.get(path)
        if not is_metrics_page(body):
            raise SourceError("not_metrics", f"{path} did not answer a metrics page")
        return read_page(body, wanted)

    def json(self, path: str) -> Json:
        return self._endpoint.get_json(path)

    def seldom(self, path: str) -> Json:
        read_at, answer = self._kept.get(path, (None, {}))
        if read_at is None or self._clock() - read_at > SELDOM_SECONDS:
            try:
                answer = self._endpoint.get_json(path)
                self._failures.pop(path, None)
            except SourceError as error:
                answer = {}
                self._failures[path] = error.reason
            self._kept[path] = (self._clock(), answer)
        return answer

    def why(self, path: str) -> str:
        reason = self._failures.get(path)
        return f"{path} could not be read ({reason})" if reason else f"{path} does not tell it"

    def forget(self) -> None:
        """Reads every page anew at the next turn."""
        self._kept.clear()
