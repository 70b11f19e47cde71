"""The reader and the sidecar beside a real llama-server on the CPU, compared with what that server itself says.

The server has one process, which answers nothing while it is stopped, so two pages cannot be read of one moment. But
what a slot holds only grows while its request runs: a figure that was read in between lies in between.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from kvgauge.observe.engine import EngineSource
from kvgauge.observe.engines.contract import Hints
from kvgauge.observe.fetching import Endpoint
from kvgauge.observe.records import EngineReading, RankReading, SourceError
from kvmodel import load_architecture
from kvmodel.engines.llama_cpp import plan

from .llama_server import LlamaServer, Slot
from .load import Load, random_job, random_jobs
from .processes import until
from .sidecar import Sidecar
from .tiny_gguf import TinyGguf

pytestmark = [pytest.mark.engines, pytest.mark.timeout(240)]

TINY = TinyGguf()
MODEL_NAME = "tiny.gguf"
SPLIT = Hints(kv_unified=False)
KV_SERIES = (
    "kvgauge_kv_tokens",
    "kvgauge_kv_usage_ratio",
    "kvgauge_kv_capacity_tokens",
    "kvgauge_kv_live_tokens",
    "kvgauge_requests",
    "kvgauge_load_ratio",
    "kvgauge_safe_concurrency",
)

Start = Callable[..., LlamaServer]


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TINY.write(tmp_path_factory.mktemp("tiny-gguf") / MODEL_NAME)


@pytest.fixture
def start(llama_program: Path, tiny_gguf: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts a server with these flags; it is ended after the test."""
    servers: list[LlamaServer] = []

    def started(*flags: str, slots: bool = True, api_key: str | None = None) -> LlamaServer:
        servers.append(server := LlamaServer(llama_program, tiny_gguf, tmp_path, *flags, slots=slots, api_key=api_key))
        server.start()
        return server

    yield started
    for server in servers:
        server.close()


@contextmanager
def source_of(server: LlamaServer, hints: Hints | None = None, api_key: str | None = None) -> Iterator[EngineSource]:
    """A source that finds out by itself whose pages these are."""
    with closing(Endpoint(server.url, timeout_seconds=10, api_key=api_key)) as endpoint:
        yield EngineSource(endpoint, hints=hints)


def read(server: LlamaServer, hints: Hints | None = None, api_key: str | None = None) -> EngineReading:
    with source_of(server, hints, api_key) as source:
        return source.read()


def rank_of(reading: EngineReading) -> RankReading:
    (rank,) = reading.ranks
    return rank


@pytest.mark.parametrize(
    ("flags", "n_ctx", "slots", "one_pool"),
    [
        (("-c", "4096", "-np", "1"), 4096, 1, False),
        # A slot's share is rounded up to 256 cells.
        (("-c", "4096", "-np", "3"), 4096, 3, False),
        (("-c", "3000", "-np", "2", "--kv-unified"), 3000, 2, True),
        (("-c", "4096"), 4096, None, True),
    ],
)
def test_capacity_is_what_the_server_allocated(
    start: Start, tiny_gguf: Path, flags: tuple[str, ...], n_ctx: int, slots: int | None, one_pool: bool
) -> None:
    server = start(*flags)
    logged = server.logged_pool()
    reading = read(server, Hints(kv_unified=one_pool))
    assert logged.one_pool == one_pool
    assert rank_of(reading).capacity_tokens == logged.cells
    assert (reading.max_num_seqs, reading.max_model_len) == (logged.slots, logged.slot_tokens)
    assert (reading.engine, reading.model, reading.model_path) == ("llama.cpp", str(tiny_gguf), str(tiny_gguf))
    assert (reading.version or "").startswith("b11434-")
    assert plan(load_architecture(tiny_gguf), n_ctx=n_ctx, n_parallel=slots, unified=one_pool).capacity_tokens == (
        logged.cells
    )

    unstated = rank_of(read(server))
    assert unstated.capacity_tokens == (logged.cells if logged.slots == 1 else None)


def together(before: list[Slot], after: list[Slot]) -> bool:
    """Whether the same requests ran from the one look to the other."""
    return [(slot.busy, slot.task) for slot in before] == [(slot.busy, slot.task) for slot in after]


def held(slots: list[Slot], *, busy: bool) -> int:
    return sum(slot.held for slot in slots if slot.busy == busy)


def test_every_figure_follows_the_server(start: Start) -> None:
    server = start("-c", "6144", "-np", "3", "--metrics")
    pool = server.logged_pool()
    jobs, levels, queued, reclaimed = 0, set(), set(), set()
    prompt_tokens = output_tokens = 0
    with source_of(server, SPLIT) as source:
        for attempt in range(10):
            load_jobs = [
                random_job(100 + 30 * each, 1000, vocab=TINY.vocab, seed=7 * attempt + each) for each in range(7)
            ]
            with Load(server.url, MODEL_NAME, load_jobs) as load:
                while load.running:
                    before, queue_before = server.slots(), server.metrics()
                    rank = rank_of(source.read())
                    after, queue_after = server.slots(), server.metrics()
                    if not together(before, after) or not any(slot.busy for slot in before):
                        continue
                    if any(slot.busy and not slot.decoded for slot in before):
                        # Just taken: it still states what the request before left in it, and is about to drop that.
                        continue
                    running = sum(slot.busy for slot in before)
                    assert rank.running == running
                    assert rank.active_tokens is not None
                    assert held(before, busy=True) <= rank.active_tokens <= held(after, busy=True)
                    assert rank.live_tokens == rank.active_tokens
                    assert rank.reclaimable_tokens == held(before, busy=False)
                    assert rank.free_tokens == pool.cells - rank.active_tokens - rank.reclaimable_tokens
                    assert rank.reserved_tokens == running * pool.slot_tokens
                    for slot in before:
                        if slot.busy and slot.decoded:
                            # Prompt and output together, nothing twice; the last token may not be in its cell yet.
                            assert slot.prompt + slot.decoded - 1 <= slot.held <= slot.prompt + slot.decoded
                    levels.add(rank.active_tokens)
                    if queue_before["requests_deferred"] == queue_after["requests_deferred"]:
                        assert rank.waiting == queue_before["requests_deferred"]
                        queued.add(rank.waiting)
                    reclaimed.add(rank.reclaimable_tokens > 0)
            assert [outcome.error for outcome in load.outcomes()] == [None] * len(load_jobs)
            assert {outcome.output_tokens for outcome in load.outcomes()} == {1000}
            jobs += len(load_jobs)
            prompt_tokens += sum(len(job.prompt) for job in load_jobs)
            output_tokens += 1000 * len(load_jobs)
            # A busy machine leaves time for a look or two in the seconds that one load takes.
            if len(levels) >= 5 and max(queued, default=0) > 0 and reclaimed == {False, True}:
                break
        assert len(levels) >= 5
        assert max(queued) > 0
        assert reclaimed == {False, True}

        rank = rank_of(source.read())
    assert (rank.running, rank.waiting, rank.active_tokens, rank.reserved_tokens) == (0, 0, 0, 0)
    assert rank.prefix_queries_tokens_total == prompt_tokens
    assert rank.generation_tokens_total == output_tokens
    # An idle server is not asked for its slots.
    assert (rank.reclaimable_tokens, rank.free_tokens) == (None, pool.cells)


def test_a_shared_pool_counts_what_its_slots_hold(start: Start) -> None:
    server = start("-c", "4096", "-np", "4", "--kv-unified", "--metrics")
    levels: set[int] = set()
    with source_of(server, Hints(kv_unified=True)) as source:
        for attempt in range(10):
            with Load(server.url, MODEL_NAME, random_jobs(4, 50, 800, vocab=TINY.vocab, seed=attempt)) as load:
                while load.running:
                    before, rank, after = server.slots(), rank_of(source.read()), server.slots()
                    if together(before, after) and rank.active_tokens is not None:
                        assert held(before, busy=True) <= rank.active_tokens <= held(after, busy=True)
                        assert rank.reserved_tokens is None
                        levels |= {rank.active_tokens} if rank.running == 4 else set()
            assert {outcome.output_tokens for outcome in load.outcomes()} == {800}
            if len(levels) >= 3:
                break
    assert len(levels) >= 3


def test_what_a_finished_request_leaves_is_reclaimable(start: Start) -> None:
    """Without --metrics the slots tell it all, but what waits."""
    server = start("-c", "4096", "-np", "2")
    with Load(server.url, MODEL_NAME, [random_job(123, 45, vocab=TINY.vocab, seed=1)]) as load:
        until(lambda: not load.running, 60, "the end of the request")
    assert [outcome.output_tokens for outcome in load.outcomes()] == [45]
    rank = rank_of(read(server, SPLIT))
    # The last token was never fed back.
    assert rank.reclaimable_tokens == 123 + 45 - 1
    assert (rank.active_tokens, rank.free_tokens, rank.running) == (0, 4096 - 167, 0)
    assert rank.waiting is None
    assert "--metrics" in rank.missing["waiting"]


def test_without_slots_the_metrics_tell_what_runs_and_waits(start: Start) -> None:
    server = start("-c", "4096", "-np", "2", "--metrics", slots=False)

    def full() -> RankReading | None:
        rank = rank_of(read(server, SPLIT))
        return rank if rank.running == 2 and rank.waiting == 2 else None

    with Load(server.url, MODEL_NAME, random_jobs(4, 50, 1900, vocab=TINY.vocab)):
        rank = until(full, 60, "two running and two waiting")
    assert (rank.active_tokens, rank.reserved_tokens, rank.capacity_tokens) == (None, 4096, 4096)
    assert "--no-slots" in rank.missing["active_tokens"]
    # The client has hung up.
    rank = until(lambda: rank if (rank := rank_of(read(server, SPLIT))).running == 0 else None, 60, "an idle server")
    assert (rank.active_tokens, rank.free_tokens) == (0, 4096)


def test_a_watched_server_falls_asleep_and_is_not_woken(start: Start) -> None:
    server = start("-c", "4096", "-np", "2", "--metrics", "--sleep-idle-seconds", "2")
    with source_of(server, SPLIT) as source:
        until(lambda: source.read().asleep, 60, "a sleeping server")
        for _ in range(50):
            reading = source.read()
            assert reading.asleep
            assert (rank_of(reading).capacity_tokens, rank_of(reading).active_tokens) == (4096, None)
        assert "entering sleeping state" in server.log()
        assert "exiting sleeping state" not in server.log()

        with Load(server.url, MODEL_NAME, random_jobs(1, 50, 1900, vocab=TINY.vocab)):
            until(lambda: (rank_of(source.read()).active_tokens or 0) > 50, 60, "a woken server at work")


def test_a_key_is_needed(start: Start) -> None:
    server = start("-c", "4096", "-np", "2", "--metrics", api_key="made-up")
    with pytest.raises(SourceError) as failure:
        read(server, SPLIT)
    assert failure.value.reason == "unauthorized"
    assert rank_of(read(server, SPLIT, api_key="made-up")).capacity_tokens == 4096


def test_the_sidecar_loses_a_stopped_and_a_killed_server_and_finds_it_again(
    start: Start, tiny_gguf: Path, tmp_path: Path
) -> None:
    server = start("-c", "8192", "-np", "1", "--metrics")
    sidecar = Sidecar(server.url, tiny_gguf, tmp_path / "sidecar.log")
    with closing(sidecar):

        def series() -> list[str]:
            page = sidecar.page()
            return [name for name in KV_SERIES if page.rows(name)]

        def up(value: int) -> bool:
            return sidecar.page().value("kvgauge_source_up", source="engine") == value

        def works() -> bool:
            page = sidecar.page()
            requests = {row.labels["state"]: row.value for row in page.rows("kvgauge_requests")}
            active = page.value("kvgauge_kv_tokens", state="active") or 0
            return up(1) and active > 0 and requests.items() >= {"running": 1, "waiting": 4}.items()

        def check_sum() -> None:
            page = sidecar.page()
            states = {row.labels["state"]: row.value for row in page.rows("kvgauge_kv_tokens")}
            assert sum(states.values()) == page.number("kvgauge_kv_capacity_tokens") == server.logged_pool().cells

        with Load(server.url, MODEL_NAME, random_jobs(5, 100, 8000, vocab=TINY.vocab)):
            until(works, 60, "one running and four waiting")
            check_sum()
            page = sidecar.page()
            assert page.number("kvgauge_kv_bytes_per_token") == TINY.kv_bytes_per_token
            assert page.number("kvgauge_safe_concurrency") == 1
            (info,) = page.rows("kvgauge_engine_info")
            assert (info.labels["engine"], info.labels["max_model_len"]) == ("llama.cpp", "8192")

            with server.stopped():
                until(lambda: up(0), 30, "the stopped server seen as down")
                until(lambda: not series(), 30, "its series gone")
            until(works, 30, "the server at work again")

            server.kill()
            until(lambda: up(0), 30, "the killed server seen as down")
        until(lambda: not series(), 30, "its series gone")
        assert sidecar.advice()["valid"] is False

        server.start()
        until(lambda: up(1) and len(series()) >= 5, 30, "the new server seen as up")
        check_sum()
        assert sidecar.page().number("kvgauge_kv_tokens", state="active") == 0
        assert sidecar.alive
