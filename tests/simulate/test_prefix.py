"""The prefix cache against books kept the plain way, block by block."""

from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from kvgauge.simulate.engine import PagedEngine
from kvgauge.simulate.prefix import PrefixCache
from kvgauge.simulate.spec import EngineSpec, FinishedRequest, Request

BLOCK_TOKENS = 16
UNIT_TOKENS = 48
UNIT_BLOCKS = 3


@dataclass
class Books:
    """Each cached unit: how many hold it, and when it was last let go of."""

    usable: int
    holders: dict[int, int] = field(default_factory=dict)
    idle_since: dict[int, int] = field(default_factory=dict)
    clock: int = 0

    def find(self, request: Request) -> tuple[int, ...]:
        found = []
        for number, unit in enumerate(request.prefix_blocks):
            if unit not in self.holders or (number + 1) * UNIT_TOKENS >= request.prompt_tokens:
                break
            found.append(unit)
        return tuple(found)

    def hold(self, units: tuple[int, ...]) -> int:
        before = len(self.idle_since)
        for unit in units:
            self.holders[unit] += 1
            self.idle_since.pop(unit, None)
        return (before - len(self.idle_since)) * UNIT_BLOCKS

    def release(self, units: tuple[int, ...]) -> int:
        freed = 0
        for unit in reversed(units):
            self.clock += 1
            self.holders[unit] -= 1
            if not self.holders[unit]:
                self.idle_since[unit] = self.clock
                freed += UNIT_BLOCKS
        return freed

    def evict(self, free_blocks: int) -> None:
        while len(self.idle_since) * UNIT_BLOCKS > free_blocks:
            oldest = min(self.idle_since, key=self.idle_since.__getitem__)
            del self.idle_since[oldest], self.holders[oldest]


@st.composite
def prompts(draw: st.DrawFn) -> Request:
    """Prompts of a tree: each name stands for all that comes before it."""
    path: list[int] = []
    name = 0
    for branch in draw(st.lists(st.integers(1, 2), max_size=5)):
        name = 3 * name + branch
        path.append(name)
    prompt = max(len(path) * UNIT_TOKENS - draw(st.sampled_from([0, 0, 1, UNIT_TOKENS - 1])), 1)
    prompt += draw(st.sampled_from([0, 0, 1, 30]))
    return Request(0.0, prompt, 5, tuple(path), UNIT_TOKENS)


@given(st.lists(st.tuples(prompts(), st.booleans(), st.integers(0, 40)), max_size=40))
@settings(deadline=None)
def test_it_finds_holds_and_forgets_as_plain_books_do(steps: list[tuple[Request, bool, int]]) -> None:
    cache, books = PrefixCache(BLOCK_TOKENS), Books(1000)
    living: list[tuple[int, ...]] = []
    for request, leave, free_blocks in steps:
        found = cache.find(request)
        assert found == books.find(request)
        assert len(found) * UNIT_TOKENS < request.prompt_tokens
        assert cache.idle_among(found) == sum(unit in books.idle_since for unit in found)
        assert cache.hold(found) == books.hold(found)
        added = cache.add(request, len(found), request.prompt_tokens)
        for unit in added:
            assert unit not in books.holders
            books.holders[unit] = 1
        whole = request.prefix_blocks[: request.prompt_tokens // UNIT_TOKENS]
        assert (found + added == whole) or whole[len(found + added)] in books.holders
        living.append(found + added)
        if leave:
            units = living.pop(len(living) // 2)
            assert cache.release(units, UNIT_BLOCKS) == books.release(units)
        cache.evict(free_blocks)
        books.evict(free_blocks)
        assert cache.idle_blocks == len(books.idle_since) * UNIT_BLOCKS <= max(free_blocks, 0)
    for units in living:
        cache.release(units, UNIT_BLOCKS)
        books.release(units)
    assert cache.idle_blocks == len(books.holders) * UNIT_BLOCKS
    cache.evict(0)
    assert cache.idle_blocks == 0
    assert all(cache.find(request) == () for request, _, _ in steps)


def test_units_that_are_no_whole_number_of_blocks_are_never_shared() -> None:
    cache = PrefixCache(BLOCK_TOKENS)
    odd = Request(0.0, 100, 5, (1, 2), 40)
    assert cache.unit_blocks(odd) == 0
    assert cache.add(odd, 0, 100) == ()
    assert cache.find(odd) == ()


SPEC = EngineSpec(
    num_blocks=61,
    max_model_len=600,
    kv_bytes_per_token=1000,
    weights_bytes=1_000_000,
    parameters=500_000,
    bandwidth_bytes_per_second=1e9,
    flops_per_second=1e10,
    step_overhead_seconds=0.001,
    block_tokens=BLOCK_TOKENS,
    max_num_seqs=8,
    max_num_batched_tokens=128,
    prefix_caching=True,
)

LOADS = st.lists(st.tuples(prompts(), st.integers(1, 120), st.sampled_from([0.0, 0.0, 0.01, 0.2])), max_size=25)


def timed(load: list[tuple[Request, int, float]]) -> list[Request]:
    at, found = 0.0, []
    for request, output, gap in load:
        at += gap
        found.append(replace(request, arrival_seconds=at, output_tokens=output))
    return found


@given(LOADS)
@settings(max_examples=60, deadline=None)
def test_what_the_engine_says_is_held_is_held_once(load: list[tuple[Request, int, float]]) -> None:
    finished: list[FinishedRequest] = []
    engine = PagedEngine(SPEC, finished.append)
    requests = timed(load)
    for request in requests:
        engine.submit(request)
    for tick in range(1, 400):
        engine.advance(tick * 0.02)
        state = engine.state()
        assert state.used_blocks >= 0
        assert state.used_blocks + state.cached_blocks <= SPEC.usable_blocks
        # Tokens of running sequences that share are counted once: no more than the used blocks hold, and no fewer than
        # all but the last block of each.
        assert state.live_tokens <= state.used_blocks * BLOCK_TOKENS
        assert state.used_blocks * BLOCK_TOKENS <= state.live_tokens + state.running * BLOCK_TOKENS
        assert state.live_tokens <= sum(engine.running_tokens())
    state = engine.state()
    assert len(finished) == len(requests)
    assert (state.used_blocks, state.live_tokens, state.running) == (0, 0, 0)
    assert state.prefix_queries_total == sum(request.prompt_tokens for request in requests)
    # Never a whole prompt: the last token of each was computed.
    assert state.prefix_hits_total <= sum(
        (request.prompt_tokens - 1) // UNIT_TOKENS * UNIT_TOKENS for request in requests
    )


@given(LOADS)
@settings(max_examples=30, deadline=None)
def test_without_names_nothing_is_found(load: list[tuple[Request, int, float]]) -> None:
    engine = PagedEngine(SPEC)
    for request in timed(load):
        engine.submit(replace(request, prefix_blocks=()))
    engine.advance(100.0)
    assert engine.state().prefix_hits_total == 0
    assert engine.state().finished_total == len(load)


def test_two_that_share_a_prefix_hold_it_once() -> None:
    engine = PagedEngine(SPEC)
    path = (1, 2, 3)
    engine.submit(Request(0.0, 150, 100, path, UNIT_TOKENS))
    engine.submit(Request(0.05, 160, 100, path, UNIT_TOKENS))
    engine.advance(0.06)
    state = engine.state()
    assert state.running == 2
    assert state.prefix_hits_total == 144
    first, second = engine.running_tokens()
    assert state.live_tokens == first + second - 144
    assert state.used_blocks == -(-first // BLOCK_TOKENS) + -(-second // BLOCK_TOKENS) - 3 * UNIT_BLOCKS
