"""`kvgauge simulate --serve`: an engine to scrape, that has a load for ever and ends when it is told to."""

import json
import re
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from tests.support.process import KVGAUGE, eventually

from kvgauge.simulate import PagedEngine, Request
from kvgauge.simulate.device import H100_LLAMA_31_8B
from kvgauge.simulate.live import repeated
from kvgauge.simulate.running import Served
from kvgauge.simulate.serving import MOST_IN_FLIGHT, EmbeddedEngine


@contextmanager
def served(*arguments: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """The process, and where it says that it answers."""
    process = subprocess.Popen(
        [*KVGAUGE, "simulate", "--serve", "--port=0", *arguments], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        found = re.search(r"answers at (http\S+)/metrics", line)
        assert found is not None, line
        yield process, found[1]
    finally:
        process.kill()
        process.wait(10)
        process.stderr.close()


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        body: bytes = answer.read()
        return body.decode()


def samples(url: str) -> dict[str, float]:
    families = text_string_to_metric_families(get(f"{url}/metrics"))
    return {row.name: row.value for family in families for row in family.samples}


def test_an_engine_to_scrape_that_ends_when_told() -> None:
    with served("--scenario", "llm-d", "--speed", "20") as (process, url):
        assert url.startswith("http://127.0.0.1:")
        eventually(lambda: samples(url)["vllm:generation_tokens_total"] > 0, what="the first tokens")
        assert samples(url)["vllm:num_requests_running"] > 0
        assert json.loads(get(f"{url}/v1/models"))["data"][0]["id"] == "llm-d"
        assert json.loads(get(f"{url}/version")) == {"version": "0.32.0"}
        assert get(f"{url}/health") == ""
        # Somebody who connects and asks nothing is not waited for.
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))):
            begin = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
            assert time.monotonic() - begin < 1.5


def test_ctrl_c_ends_it_too() -> None:
    with served("--scenario", "llm-d", "--host", "localhost") as (process, url):
        assert url.startswith("http://localhost:")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


def test_a_port_in_use_is_bad_input() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments = [*KVGAUGE, "simulate", "--scenario", "llm-d", "--serve", "--port", str(port)]
        made = subprocess.run(arguments, capture_output=True, text=True, timeout=30)
    assert (made.returncode, made.stdout) == (2, "")
    assert made.stderr == f"kvgauge: port: cannot serve on 127.0.0.1:{port}: Address already in use\n"


@given(
    st.lists(st.floats(0, 1000), min_size=1, max_size=20).map(sorted),
    st.floats(0, 100),
    st.integers(1, 4),
)
def test_the_load_begins_anew_where_it_ended(arrivals: list[float], rest: float, rounds: int) -> None:
    requests = tuple(Request(at, 1 + index, 1) for index, at in enumerate(arrivals))
    load = Served(requests, arrivals[-1] + rest, 0, ())
    found = list(islice(repeated(load), rounds * len(arrivals)))
    times = [one.arrival_seconds for one in found]
    assert times == sorted(times)
    assert [one.prompt_tokens for one in found] == [one.prompt_tokens for one in requests] * rounds
    period = max(arrivals[-1] + rest, 1.0)
    expected = [turn * period + at for turn in range(rounds) for at in arrivals]
    assert times == pytest.approx(expected)


def test_an_engine_turns_away_what_it_cannot_hold() -> None:
    now = [0.0]
    load = (Request(0.0, 8000, 100) for _ in range(MOST_IN_FLIGHT + 500))
    with EmbeddedEngine(load=load, clock=lambda: now[0]) as engine:
        state = engine.state()
        assert state.running + state.waiting <= MOST_IN_FLIGHT
        now[0] = 1.0
        state = engine.state()
        assert state.finished_total + state.running + state.waiting == MOST_IN_FLIGHT


def test_the_page_tells_of_a_prefix_cache_where_there_is_one() -> None:
    with served("--scenario", "llm-d", "--speed", "50", "--prefix-caching") as (_, url):
        eventually(lambda: samples(url)["vllm:prefix_cache_queries_total"] > 0, what="the first lookups")
        assert 'enable_prefix_caching="True"' in get(f"{url}/metrics")
    assert not PagedEngine(H100_LLAMA_31_8B.spec).spec.prefix_caching
