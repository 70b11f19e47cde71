"""The engine as a source: fetch the page, find out whose it is, read it."""

import time
from collections.abc import Mapping

from kvgauge.observe.engines import by_name, recognise
from kvgauge.observe.engines.contract import Engine
from kvgauge.observe.exposition import read_page, sample_names
from kvgauge.observe.fetching import Endpoint
from kvgauge.observe.records import EngineReading, SourceError

SIDE_PAGE_SECONDS = 30.0
"""How often the pages that hardly ever change (version, served model) are read again."""


class EngineSource:
    """One engine endpoint. `kind` is the engine's name, or ``auto`` to tell it by the names on its page."""

    name = "engine"

    def __init__(self, endpoint: Endpoint, kind: str = "auto", page_path: str = "/metrics") -> None:
        self._endpoint = endpoint
        self._engine: Engine | None = None if kind == "auto" else by_name(kind)
        self._page_path = page_path
        self._sides: dict[str, Mapping[str, object]] = {}
        self._sides_read_at: float | None = None

    def read(self) -> EngineReading:
        """Reads the engine once. Raises SourceError: what `Endpoint.get` raises, too_many_lines, not_metrics,
        no_engine_series."""
        try:
            body = self._endpoint.get(self._page_path)
        except SourceError:
            # Whatever comes back may be another version with another model.
            self._sides_read_at = None
            raise
        engine = self._engine or self._recognise(body)
        reading = engine.read(read_page(body, engine.wanted), self._side_pages(engine))
        if not reading.ranks:
            raise SourceError("no_engine_series", f"the page at {self._page_path} has no {engine.name} series")
        return reading

    def close(self) -> None:
        self._endpoint.close()

    def _recognise(self, body: bytes) -> Engine:
        if body.lstrip()[:1] in {b"<", b"{"} or not body.strip():
            raise SourceError("not_metrics", f"{self._page_path} did not answer a metrics page")
        engine = recognise(sample_names(body))
        if engine is None:
            raise SourceError("no_engine_series", f"the page at {self._page_path} has no series of a known engine")
        return engine

    def _side_pages(self, engine: Engine) -> Mapping[str, Mapping[str, object]]:
        now = time.monotonic()
        if self._sides_read_at is None or now - self._sides_read_at > SIDE_PAGE_SECONDS:
            self._sides_read_at = now
            self._sides = {}
            for path in engine.side_paths:
                try:
                    self._sides[path] = self._endpoint.get_json(path)
                except SourceError:
                    # The reading says which facts are missing for it; the page itself is fine.
                    continue
        return self._sides
