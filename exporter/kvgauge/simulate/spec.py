"""What an engine is built from and what it is asked to do: the frozen inputs of the simulation."""

from dataclasses import dataclass

from kvmodel.latency import StepCost


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One engine: its paged pool, its scheduler's limits and the speed of the device under it.

    Raises ValueError when a field cannot be, naming the field and the value.
    """

    num_blocks: int
    """Blocks of the pool, the null block included."""
    max_model_len: int
    """Longest sequence in tokens, prompt and output together."""
    kv_bytes_per_token: int
    weights_bytes: int
    """Bytes of weights that one step reads."""
    parameters: int
    bandwidth_bytes_per_second: float
    """Memory bandwidth that the engine reaches, not the data sheet's."""
    flops_per_second: float
    """Dense arithmetic rate that the engine reaches, not the data sheet's."""
    step_overhead_seconds: float = 0.003
    block_tokens: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    attention_flop_per_pair: float = 0.0
    """Operations of all layers for one prefilled token and one position before it: 4 x layers x heads x head_dim."""
    prefix_caching: bool = False

    def __post_init__(self) -> None:
        for name in ("max_model_len", "block_tokens", "max_num_seqs", "parameters", "weights_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("bandwidth_bytes_per_second", "flops_per_second"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.kv_bytes_per_token < 0:
            raise ValueError(f"kv_bytes_per_token must not be negative, not {self.kv_bytes_per_token}")
        if not self.step_overhead_seconds >= 0:
            raise ValueError(f"step_overhead_seconds must not be negative, not {self.step_overhead_seconds}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens must be at least max_num_seqs ({self.max_num_seqs}), "
                f"not {self.max_num_batched_tokens}"
            )
        if self.usable_blocks < self.blocks_for(self.max_model_len):
            raise ValueError(
                f"num_blocks must hold one sequence of max_model_len and the null block "
                f"({self.blocks_for(self.max_model_len) + 1} blocks), not {self.num_blocks}"
            )

    @property
    def usable_blocks(self) -> int:
        """Blocks that sequences may hold: all but the null block (vLLM 0.32, `BlockPool`)."""
        return self.num_blocks - 1

    @property
    def bytes_per_block(self) -> int:
        """Bytes of one block over all layers."""
        return self.block_tokens * self.kv_bytes_per_token

    def blocks_for(self, tokens: int) -> int:
        """Blocks that `tokens` stored tokens of one sequence take."""
        return -(-tokens // self.block_tokens)

    @property
    def step_cost(self) -> StepCost:
        """Seconds by what is in a step: weights and the resident tokens are read once, 2 N operations are done for each
        token of N parameters, and attention for each pair of a prefilled token and a position before it."""
        return StepCost(
            fixed_seconds=self.step_overhead_seconds + self.weights_bytes / self.bandwidth_bytes_per_second,
            kv_token_seconds=self.kv_bytes_per_token / self.bandwidth_bytes_per_second,
            token_seconds=2 * self.parameters / self.flops_per_second,
            pair_seconds=self.attention_flop_per_pair / self.flops_per_second,
        )

    def step_seconds(self, live_tokens: int, decodes: int, prefill_tokens: int, prefill_pairs: float = 0.0) -> float:
        """Length of one mixed step, in seconds: `live_tokens` resident, `decodes` and `prefill_tokens` computed, these
        attending to `prefill_pairs` (token, position) pairs."""
        return self.step_cost.seconds(live_tokens, decodes + prefill_tokens, prefill_pairs)


@dataclass(frozen=True, slots=True)
class Request:
    """One request: when it comes and how long it will turn out to be. Raises ValueError for a length below 1."""

    arrival_seconds: float
    prompt_tokens: int
    output_tokens: int
    prefix_blocks: tuple[int, ...] = ()
    """Names of the prompt's leading blocks, equal where the tokens up to and with them are; none where not known."""
    prefix_block_tokens: int = 512

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "output_tokens", "prefix_block_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")

    @property
    def total_tokens(self) -> int:
        """Prompt and output. One less is ever stored: the last sampled token is not written to the cache."""
        return self.prompt_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class FinishedRequest:
    """How one request went. Times are on the engine's clock."""

    request: Request
    first_token_seconds: float
    finished_seconds: float
    preemptions: int

    @property
    def ttft_seconds(self) -> float:
        """From arrival to the first token."""
        return self.first_token_seconds - self.request.arrival_seconds

    @property
    def tpot_seconds(self) -> float | None:
        """Mean time per output token after the first; None when there was only one."""
        if self.request.output_tokens == 1:
            return None
        return (self.finished_seconds - self.first_token_seconds) / (self.request.output_tokens - 1)
