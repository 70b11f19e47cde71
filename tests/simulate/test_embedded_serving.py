"""The embedded engine over HTTP, on a clock that the test moves."""

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import takewhile

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kvgauge.simulate import H100_LLAMA_31_8B, EmbeddedEngine, PagedEngine, Request, SyntheticLoad


class HandClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def get(url: str) -> tuple[int, str, bytes]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.status, answer.headers["Content-Type"], answer.read()


def samples(url: str) -> dict[tuple[str, str | None], float]:
    _, _, body = get(f"{url}/metrics")
    families = text_string_to_metric_families(body.decode())
    return {(row.name, row.labels.get("reason")): row.value for family in families for row in family.samples}


def test_the_page_follows_the_clock_exactly() -> None:
    clock = HandClock()
    alone = PagedEngine(H100_LLAMA_31_8B.spec)
    for request in takewhile(lambda one: one.arrival_seconds <= 62.5, SyntheticLoad(5, 8192)):
        alone.submit(request)
    with EmbeddedEngine(seed=5, clock=clock) as embedded:
        assert samples(embedded.base_url)["vllm:num_requests_running", None] == 0
        for seconds in (3.0, 20.0, 40.25, 62.5):
            clock.seconds = 1000.0 + seconds
            alone.advance(seconds)
            expected = alone.state()
            seen = samples(embedded.base_url)
            assert seen["vllm:num_requests_running", None] == expected.running
            assert seen["vllm:num_requests_waiting", None] == expected.waiting
            assert seen["vllm:generation_tokens_total", None] == expected.generation_tokens_total
            usage = expected.used_blocks / H100_LLAMA_31_8B.spec.usable_blocks
            assert seen["vllm:kv_cache_usage_perc", None] == usage
            assert embedded.state() == expected


def test_routes_answer_as_vllms_do() -> None:
    with EmbeddedEngine(model_path="models/llama", wall_clock=lambda: 1234.5) as embedded:
        url = embedded.base_url
        assert url.startswith("http://127.0.0.1:")
        status, content_type, body = get(f"{url}/v1/models")
        assert (status, content_type) == (200, "application/json")
        answer = json.loads(body)
        assert answer["object"] == "list"
        (card,) = answer["data"]
        assert card["id"] == "meta-llama/Llama-3.1-8B-Instruct"
        assert (card["root"], card["max_model_len"], card["created"]) == ("models/llama", 8192, 1234)
        assert json.loads(get(f"{url}/version")[2]) == {"version": "0.19.0"}
        assert get(f"{url}/health")[0] == 200
        assert get(f"{url}/metrics?name=x")[1].startswith("text/plain; version=0.0.4")
        assert samples(url)["process_start_time_seconds", None] == 1234.5
        with pytest.raises(urllib.error.HTTPError, match="404") as refused:
            get(f"{url}/v1/nothing")
        refused.value.close()


def test_the_engine_runs_between_scrapes() -> None:
    """In real time, nobody asks for a while: the load has gone on."""
    seen = threading.Event()

    class Watched(SyntheticLoad):
        """Tells when the engine's own thread has taken the tenth request."""

        def __iter__(self) -> Iterator[Request]:
            for index, request in enumerate(super().__iter__()):
                if index == 10 and threading.current_thread().name == "embedded-engine":
                    seen.set()
                yield request

    with EmbeddedEngine(load=Watched(1, 8192)):
        assert seen.wait(30)


def engine_threads() -> set[threading.Thread]:
    """Threads that could be an embedded engine's: its request handlers are no daemons, the rest is named for it."""
    return {
        thread for thread in threading.enumerate() if not thread.daemon or thread.name.startswith("embedded-engine")
    }


def test_stops_without_leaving_a_thread_or_a_socket() -> None:
    before = engine_threads()
    embedded = EmbeddedEngine()
    url = embedded.start()
    port = int(url.rpartition(":")[2])
    get(f"{url}/metrics")
    # Somebody who connects and never speaks is waited for, but not for ever.
    with socket.create_connection(("127.0.0.1", port)):
        begin = time.monotonic()
        embedded.stop()
        assert time.monotonic() - begin < 10
    assert engine_threads() == before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    embedded.stop()


def test_starts_once() -> None:
    embedded = EmbeddedEngine()
    with pytest.raises(RuntimeError, match="not running"):
        _ = embedded.base_url
    with embedded, pytest.raises(RuntimeError, match="already started"):
        embedded.start()
    with pytest.raises(RuntimeError, match="already started or stopped"):
        embedded.start()


def test_a_finite_load_runs_dry() -> None:
    clock = HandClock()
    requests = list(takewhile(lambda one: one.arrival_seconds < 5, SyntheticLoad(1, 8192)))
    with EmbeddedEngine(load=requests, clock=clock) as embedded:
        clock.seconds += 600
        state = embedded.state()
    assert (state.finished_total, state.running, state.waiting) == (len(requests), 0, 0)


def test_gpu_memory_adds_up_and_does_not_move_with_the_load() -> None:
    clock = HandClock()
    embedded = EmbeddedEngine(clock=clock)
    idle = embedded.gpu_memory()
    with embedded:
        clock.seconds += 50
        assert embedded.state().used_blocks > 0
        assert embedded.gpu_memory() == idle
    total, used, free, reserved = idle
    assert (used + free, reserved) == (total, 0)
