"""The engine endpoint as a source, good and bad."""

import gzip
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from kvgauge.observe.engine import EngineSource
from kvgauge.observe.fetching import MAX_BODY_BYTES, Endpoint
from kvgauge.observe.records import SourceError
from tests.support.web import Behaviour, Exchange, dripping, endless, page, serving, silent, status

CAPTURE = (Path(__file__).parent.parent / "captures/vllm/0.32.0/smallcache_under_pressure.prom").read_bytes()
TIMEOUT_SECONDS = 0.5


@contextmanager
def source(url: str, kind: str = "auto", api_key: str | None = None) -> Iterator[EngineSource]:
    with closing(EngineSource(Endpoint(url, timeout_seconds=TIMEOUT_SECONDS, api_key=api_key), kind)) as engine:
        yield engine


@pytest.fixture
def over() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def reason(behaviour: Behaviour, kind: str = "auto") -> str:
    with serving({"/metrics": behaviour}) as url, source(url, kind) as engine:
        began = time.monotonic()
        with pytest.raises(SourceError) as failure:
            engine.read()
        assert time.monotonic() - began < 10
        assert "\n" not in failure.value.message
        return failure.value.reason


def test_a_page_is_read_with_its_side_pages() -> None:
    models = b'{"data": [{"id": "tiny", "root": "/models/tiny", "max_model_len": 2048}]}'
    routes = {"/metrics": page(CAPTURE), "/version": page(b'{"version": "0.32.0"}'), "/v1/models": page(models)}
    with serving(routes) as url, source(url) as engine:
        reading = engine.read()
    assert (reading.engine, reading.version, reading.model_path) == ("vllm", "0.32.0", "/models/tiny")
    assert reading.ranks[0].used_blocks == 167


def test_side_pages_that_are_refused_cost_only_their_facts() -> None:
    routes = {"/metrics": page(CAPTURE), "/version": page(b"<html>"), "/v1/models": status(401)}
    with serving(routes) as url, source(url) as engine:
        reading = engine.read()
    assert (reading.version, reading.model_path, reading.max_model_len) == (None, None, 2048)
    assert set(reading.missing) == {"version", "model_path", "tp", "pp"}
    assert reading.missing["model_path"] == "/v1/models could not be read (unauthorized)"


def test_the_key_is_sent_and_nothing_is_asked_for_compressed() -> None:
    seen: list[dict[str, str]] = []

    def look(exchange: Exchange) -> None:
        seen.append(dict(exchange.headers))
        page(CAPTURE)(exchange)

    with serving({"/metrics": look}) as url, source(url, api_key="secret") as engine:
        engine.read()
    assert seen[0]["Authorization"] == "Bearer secret"
    assert seen[0]["Accept-Encoding"] == "identity"


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with source(f"http://127.0.0.1:{port}") as engine, pytest.raises(SourceError) as failure:
        engine.read()
    assert failure.value.reason == "refused"


def test_an_engine_that_hangs(over: threading.Event) -> None:
    assert reason(silent(over)) == "timeout"


def test_an_engine_that_drips(over: threading.Event) -> None:
    assert reason(dripping(over)) == "timeout"


@pytest.mark.parametrize(("code", "expected"), [(500, "http_status"), (404, "http_status"), (401, "unauthorized")])
def test_an_error_status(code: int, expected: str) -> None:
    assert reason(status(code)) == expected


def test_a_redirect_is_not_followed() -> None:
    assert reason(lambda exchange: exchange.answer(b"", 302, {"Location": "/version"})) == "http_status"


def test_a_web_page() -> None:
    assert reason(page(b"<!doctype html><html><body>hello</body></html>", "text/html")) == "not_metrics"
    # Some engines publish nothing before their first request.
    assert reason(page(b"")) == "no_engine_series"


def test_a_page_of_nobody_known() -> None:
    assert reason(page(b"node_load1 1\n")) == "no_engine_series"
    assert reason(page(b"node_load1 1\n"), "vllm") == "no_engine_series"


def test_a_body_of_fifty_megabytes() -> None:
    assert reason(endless(50_000_000)) == "body_too_large"
    assert MAX_BODY_BYTES < 50_000_000


def test_a_gzip_bomb() -> None:
    bomb = gzip.compress(b"vllm:x 1\n" * 5_000_000)
    assert len(bomb) < MAX_BODY_BYTES
    assert reason(lambda exchange: exchange.answer(bomb, headers={"Content-Encoding": "gzip"})) == "content_encoding"


def test_two_hundred_thousand_lines() -> None:
    assert reason(page(b'vllm:x{a="b"} 1\n' * 200_000)) == "too_many_lines"


def test_a_broken_connection() -> None:
    def cut(exchange: Exchange) -> None:
        exchange.head(200, {"Content-Length": "100"})
        exchange.out.write(b"short")
        raise OSError

    assert reason(cut) == "protocol"


def test_deep_json_costs_only_its_facts() -> None:
    routes = {"/metrics": page(CAPTURE), "/version": page(b"[" * 200_000)}
    with serving(routes) as url, source(url) as engine:
        assert engine.read().version is None


def test_recovery_reads_the_side_pages_anew() -> None:
    routes: dict[str, Behaviour] = {"/metrics": page(CAPTURE), "/version": page(b'{"version": "0.31.0"}')}
    with serving(routes) as url, source(url) as engine:
        assert engine.read().version == "0.31.0"
        routes["/version"] = page(b'{"version": "0.32.0"}')
        assert engine.read().version == "0.31.0"
        routes["/metrics"] = status(503)
        with pytest.raises(SourceError):
            engine.read()
        routes["/metrics"] = page(CAPTURE)
        assert engine.read().version == "0.32.0"


def test_an_engine_with_requests_that_stands_still_is_down_and_an_idle_one_is_not() -> None:
    now = [0.0]
    busy = CAPTURE
    idle = CAPTURE.replace(b"num_requests_running{", b"hidden{").replace(b"num_requests_waiting{", b"hidden{")
    bodies = [busy]
    with (
        serving({"/metrics": lambda exchange: page(bodies[0])(exchange)}) as url,
        closing(
            EngineSource(
                Endpoint(url, timeout_seconds=TIMEOUT_SECONDS),
                "vllm",
                stalled_after_seconds=30,
                clock=lambda: now[0],
            )
        ) as engine,
    ):
        assert engine.read().standing_seconds == 0
        now[0] = 20.0
        assert engine.read().standing_seconds == 20
        now[0] = 31.0
        with pytest.raises(SourceError) as failure:
            engine.read()
        assert failure.value.reason == "stalled"
        bodies[0] = moved(busy)
        assert engine.read().standing_seconds == 0
        bodies[0] = idle
        now[0] = 1000.0
        engine.read()
        now[0] = 2000.0
        assert engine.read().standing_seconds == 0


def moved(body: bytes) -> bytes:
    """The page one step later."""
    lines = body.split(b"\n")
    index = next(i for i, line in enumerate(lines) if line.startswith(b"vllm:generation_tokens_total{"))
    name, _, value = lines[index].rpartition(b" ")
    lines[index] = name + b" " + str(float(value) + 1).encode()
    return b"\n".join(lines)
