"""What a simulated engine counts, and what it shows of itself at one moment."""

from dataclasses import dataclass

from kvgauge.simulate.tally import Distribution, Tally, bounds_1_2_5

# The bounds of vLLM 0.32's own histograms, read off a recorded page.
TTFT_BOUNDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
TOKEN_LATENCY_BOUNDS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
REQUEST_LATENCY_BOUNDS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0,
    30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
PREEMPTION_BOUNDS = (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)
STEP_TOKENS_BOUNDS = (1.0, *(float(2**power) for power in range(3, 15)))


@dataclass(frozen=True, slots=True)
class EngineState:
    """The engine at one moment of its clock. Counters count from the engine's start.

    What a step decides (admission, blocks, preemption) shows from its beginning, what it yields (tokens, ends) when it
    is over.
    """

    clock_seconds: float
    running: int
    waiting: int
    """Arrived and not running, preempted sequences included."""
    used_blocks: int
    live_tokens: int
    """Tokens stored by running sequences, those that several share counted once: what the used blocks hold."""
    cached_blocks: int
    """Blocks that no sequence holds and that still hold a reusable prefix."""
    waiting_tokens: int
    """Prompt tokens still to prefill, of those that wait and of the one whose prefill has begun."""
    busy_seconds_total: float
    """Time in which some step was under way, that of the present step whole."""
    steps_total: int
    preemptions_total: int
    recomputed_tokens_total: int
    """Tokens prefilled a second time after a preemption."""
    prompt_tokens_total: int
    """Prompts whose prefill is complete, each counted once."""
    generation_tokens_total: int
    prefix_queries_total: int
    """Tokens of prompts that were looked up, and, in `prefix_hits_total`, those found."""
    prefix_hits_total: int
    finished_stop_total: int
    finished_length_total: int
    """Ended by reaching `max_model_len`."""
    prompt_tokens: Distribution
    """Of finished requests, as are `output_tokens`, `e2e_seconds` and `preemptions`."""
    output_tokens: Distribution
    preemptions: Distribution
    step_tokens: Distribution
    ttft_seconds: Distribution
    inter_token_seconds: Distribution
    token_seconds: Distribution
    """Mean time per output token after the first, of finished requests with more than one."""
    queue_seconds: Distribution
    """From arrival to first admission, of finished requests."""
    e2e_seconds: Distribution

    @property
    def finished_total(self) -> int:
        """Requests that got their last token."""
        return self.finished_stop_total + self.finished_length_total


class Counts:
    """Counters and histograms of one engine, from its start on. The engine writes them."""

    def __init__(self, max_model_len: int) -> None:
        self.preemptions_total = 0
        self.recomputed_tokens_total = 0
        self.prompt_tokens_total = 0
        self.generation_tokens_total = 0
        self.finished_stop_total = 0
        self.finished_length_total = 0
        length_bounds = bounds_1_2_5(max_model_len)
        self.prompt_tokens = Tally(length_bounds)
        self.output_tokens = Tally(length_bounds)
        self.preemptions = Tally(PREEMPTION_BOUNDS)
        self.step_tokens = Tally(STEP_TOKENS_BOUNDS)
        self.ttft_seconds = Tally(TTFT_BOUNDS)
        self.inter_token_seconds = Tally(TOKEN_LATENCY_BOUNDS)
        self.token_seconds = Tally(TOKEN_LATENCY_BOUNDS)
        self.queue_seconds = Tally(REQUEST_LATENCY_BOUNDS)
        self.e2e_seconds = Tally(REQUEST_LATENCY_BOUNDS)

    def state(
        self,
        *,
        clock_seconds: float,
        running: int,
        waiting: int,
        used_blocks: int,
        live_tokens: int,
        cached_blocks: int,
        waiting_tokens: int,
        busy_seconds_total: float,
        steps_total: int,
        prefix_queries_total: int,
        prefix_hits_total: int,
    ) -> EngineState:
        """The engine's state: these facts of the moment, and what was counted so far."""
        return EngineState(
            clock_seconds=clock_seconds,
            running=running,
            waiting=waiting,
            used_blocks=used_blocks,
            live_tokens=live_tokens,
            cached_blocks=cached_blocks,
            waiting_tokens=waiting_tokens,
            busy_seconds_total=busy_seconds_total,
            steps_total=steps_total,
            preemptions_total=self.preemptions_total,
            recomputed_tokens_total=self.recomputed_tokens_total,
            prompt_tokens_total=self.prompt_tokens_total,
            generation_tokens_total=self.generation_tokens_total,
            prefix_queries_total=prefix_queries_total,
            prefix_hits_total=prefix_hits_total,
            finished_stop_total=self.finished_stop_total,
            finished_length_total=self.finished_length_total,
            prompt_tokens=self.prompt_tokens.snapshot(),
            output_tokens=self.output_tokens.snapshot(),
            preemptions=self.preemptions.snapshot(),
            step_tokens=self.step_tokens.snapshot(),
            ttft_seconds=self.ttft_seconds.snapshot(),
            inter_token_seconds=self.inter_token_seconds.snapshot(),
            token_seconds=self.token_seconds.snapshot(),
            queue_seconds=self.queue_seconds.snapshot(),
            e2e_seconds=self.e2e_seconds.snapshot(),
        )
