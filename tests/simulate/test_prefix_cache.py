"""What outlives a sequence in the simulated engine's pool. Step by step it is held against vLLM in tests/e2e."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from kvgauge.simulate import EngineSpec, FinishedRequest, PagedEngine, Request

SPEC = EngineSpec(
    num_blocks=11,
    max_model_len=160,
    kv_bytes_per_token=0,
    weights_bytes=1,
    parameters=1,
    # A step takes a second, whatever is in it.
    bandwidth_bytes_per_second=1e30,
    flops_per_second=1e30,
    step_overhead_seconds=1.0,
    block_tokens=16,
    max_num_seqs=8,
    max_num_batched_tokens=512,
    prefix_caching=True,
)


def run(*requests: Request, spec: EngineSpec = SPEC) -> PagedEngine:
    engine = PagedEngine(spec)
    for request in requests:
        engine.submit(request)
    engine.advance(10_000)
    return engine


def asks(at: float, prompt: int, *units: int, output: int = 1) -> Request:
    return Request(at, prompt, output, units, 16)


def test_a_prefix_is_found_again_but_never_the_last_token() -> None:
    state = run(asks(0, 40, 1, 2), asks(5, 40, 1, 2), asks(10, 32, 1, 2)).state()
    assert state.prefix_queries_total == 112
    assert state.prefix_hits_total == 0 + 32 + 16


def test_full_blocks_stay_cached_whosever_they_were() -> None:
    # 49 tokens are stored: two named blocks, a full one behind them, and a token of a fourth.
    assert run(asks(0, 40, 1, 2, output=10)).state().cached_blocks == 3


def test_what_is_longest_unused_goes_first_whether_it_has_a_name_or_not() -> None:
    first, large = asks(0, 33, 1, 2), asks(10, 100)
    # The second leaves six full blocks, then nine are wanted: the two that were never used, the first one's two named
    # blocks, which are the oldest, and five of the second's.
    third, again = asks(20, 144), asks(30, 33, 1, 2)
    assert run(first, large, again).state().prefix_hits_total == 32
    assert run(first, large, third, again).state().prefix_hits_total == 0


def test_a_preempted_sequence_computes_again_only_what_was_taken_from_it() -> None:
    # Two of 80 tokens fill the pool of ten blocks: the first takes the second's place, and of that a block at a time.
    requests = Request(0, 79, 40), Request(0, 79, 40)
    cached, computed = (run(*requests, spec=replace(SPEC, prefix_caching=on)).state() for on in (True, False))
    assert cached.preemptions_total == computed.preemptions_total == 1
    assert computed.recomputed_tokens_total == 81
    # When the first ends after 40 tokens it holds eight blocks: three of the five that the second left are taken.
    assert cached.recomputed_tokens_total == 81 - 2 * 16


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.integers(1, 6), st.integers(1, 15), st.integers(1, 60)), min_size=1, max_size=20
    ),
    st.integers(10, 24),
)
def test_every_request_ends_and_nothing_is_held_or_lost(
    loads: list[tuple[int, int, int, int]], usable_blocks: int
) -> None:
    finished: list[FinishedRequest] = []
    engine = PagedEngine(replace(SPEC, num_blocks=usable_blocks + 1), finished.append)
    at = 0
    for gap, depth, tail, output in loads:
        at += gap
        units = tuple(range(depth))
        engine.submit(Request(float(at), 16 * depth + tail - 15, output, units[: (16 * depth + tail - 15) // 16], 16))
    for second in range(0, 4000, 7):
        engine.advance(float(second))
        state = engine.state()
        assert 0 <= state.used_blocks <= usable_blocks
        assert 0 <= state.cached_blocks <= usable_blocks - state.used_blocks
        assert state.live_tokens <= 16 * state.used_blocks
    assert len(finished) == len(loads)
    state = engine.state()
    assert (state.used_blocks, state.live_tokens) == (0, 0)
