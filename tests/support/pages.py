"""An engine's pages from memory, for tests of the files that read them."""

import json
from collections.abc import Mapping, Sequence

from kvgauge.observe.engines.contract import Hints, Json
from kvgauge.observe.exposition import Page, read_page
from kvgauge.observe.records import SourceError

Body = bytes | str | Mapping[str, object] | Sequence[object]


class GivenPages:
    """`Pages` that answers from `bodies` by path (text, or what JSON text would hold) and refuses every other path.

    `asked` lists the paths in the order they were read."""

    def __init__(self, bodies: Mapping[str, Body], hints: Hints | None = None) -> None:
        self.hints = hints or Hints()
        self.asked: list[str] = []
        self._bodies = bodies

    def metrics(self, path: str, wanted: frozenset[bytes]) -> Page:
        return read_page(self._body(path), wanted)

    def json(self, path: str) -> Json:
        answer = json.loads(self._body(path))
        assert isinstance(answer, dict | list)
        return answer

    def seldom(self, path: str) -> Json:
        try:
            return self.json(path)
        except SourceError:
            return {}

    def why(self, path: str) -> str:
        return f"{path} could not be read (http_status)" if path not in self._bodies else f"{path} does not tell it"

    def _body(self, path: str) -> bytes:
        self.asked.append(path)
        if path not in self._bodies:
            raise SourceError("http_status", f"GET {path} answered 404")
        body = self._bodies[path]
        if isinstance(body, bytes):
            return body
        return (body if isinstance(body, str) else json.dumps(body)).encode()
