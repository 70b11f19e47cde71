"""Fakes shaped like vLLM's scheduler and what hangs on it, with only what the agent reads.

The shapes are those of the classes of the same names in vLLM 0.9.2, 0.10.2, 0.11.2, 0.14.0, 0.20.0, 0.26.0, 0.32.0 and
0.33.0. The attributes read are the same in all of them, except where a fake's argument says from which version on.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace


@dataclass(eq=False)
class FakeBlock:
    """KVCacheBlock; a dataclass with slots from 0.20 on, which nobody can tell by reading it."""

    block_id: int
    ref_cnt: int = 0
    _block_hash: bytes | None = None
    is_null: bool = False


class FakePool:
    """BlockPool with its null block taken out."""

    def __init__(self, num_gpu_blocks: int, *, enable_caching: bool = True) -> None:
        self.num_gpu_blocks = num_gpu_blocks
        self.enable_caching = enable_caching
        self.blocks = [FakeBlock(index) for index in range(num_gpu_blocks)]
        self.null_block = self.blocks[0]
        self.null_block.is_null = True
        self._free = self.blocks[1:]

    def get_num_free_blocks(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[FakeBlock]:
        """Blocks for a request, their old contents forgotten."""
        taken, self._free = self._free[:count], self._free[count:]
        assert len(taken) == count, "the fake pool is too small"
        for block in taken:
            block.ref_cnt, block._block_hash = 1, None
        return taken

    def give_back(self, block: FakeBlock) -> None:
        if block.is_null:
            return
        block.ref_cnt -= 1
        if not block.ref_cnt:
            self._free.append(block)


@dataclass
class FakeRequest:
    """Request."""

    request_id: str
    num_prompt_tokens: int
    num_computed_tokens: int


class FullAttentionSpec:
    """A KVCacheSpec of before 0.14: nothing but the padded size. `use_mla` until 0.10."""

    def __init__(self, page_size_bytes: int, *, use_mla: bool = False) -> None:
        self.page_size_bytes = page_size_bytes
        self.use_mla = use_mla


class SlidingWindowSpec:
    """From 0.14 on the size without padding stands beside it."""

    def __init__(self, page_size_bytes: int, real_page_size_bytes: int) -> None:
        self.page_size_bytes = page_size_bytes
        self.real_page_size_bytes = real_page_size_bytes


class MambaSpec:
    """One shape and one type for each state; `itemsize` as torch's types have it."""

    def __init__(self, page_size_bytes: int, shapes: Sequence[tuple[int, ...]], itemsize: int) -> None:
        self.page_size_bytes = page_size_bytes
        self.shapes = tuple(shapes)
        self.dtypes = tuple(SimpleNamespace(itemsize=itemsize) for _ in shapes)


class UniformTypeKVCacheSpecs:
    """From 0.11 on: layers of one type and several shapes in one group."""

    def __init__(self, kv_cache_specs: dict[str, object]) -> None:
        self.kv_cache_specs = kv_cache_specs


@dataclass
class FakeGroup:
    """KVCacheGroupSpec."""

    layer_names: list[str]
    kv_cache_spec: object


@dataclass
class FakeManager:
    """SingleTypeKVCacheManager."""

    block_size: int
    block_pool: FakePool
    req_to_blocks: dict[str, list[FakeBlock]] = field(default_factory=lambda: defaultdict(list))


@dataclass
class FakeTensor:
    """KVCacheTensor; from 0.32 on (somewhere after 0.26) it has a `layer_stride`, and `size` is that of the whole."""

    size: int


class FakeScheduler:
    """Scheduler. `running` holds every request; each group's table of a request is set by `hold`."""

    def __init__(
        self, num_blocks: int, groups: Sequence[tuple[FakeGroup, int]], *, enable_caching: bool = True
    ) -> None:
        self.pool = FakePool(num_blocks, enable_caching=enable_caching)
        self.requests: dict[str, FakeRequest] = {}
        self.running: list[FakeRequest] = []
        self.waiting: list[FakeRequest] = []
        self.managers = [FakeManager(block_size, self.pool) for _, block_size in groups]
        self.kv_cache_config = SimpleNamespace(
            num_blocks=num_blocks,
            kv_cache_groups=[group for group, _ in groups],
            kv_cache_tensors=[FakeTensor(num_blocks * 1024), FakeTensor(num_blocks * 1024)],
        )
        self.kv_cache_manager = SimpleNamespace(
            block_pool=self.pool, coordinator=SimpleNamespace(single_type_managers=tuple(self.managers))
        )
        self.vllm_config = SimpleNamespace(
            cache_config=SimpleNamespace(cache_dtype="auto", enable_prefix_caching=enable_caching),
            model_config=SimpleNamespace(model="a/model", dtype="torch.bfloat16", max_model_len=4096),
            scheduler_config=SimpleNamespace(max_num_seqs=64, max_num_batched_tokens=2048),
            parallel_config=SimpleNamespace(
                data_parallel_rank=0, data_parallel_size=1, tensor_parallel_size=1, pipeline_parallel_size=1
            ),
        )

    def get_request_counts(self) -> tuple[int, int]:
        return len(self.running), len(self.waiting)

    def add(self, name: str, prompt_tokens: int, computed_tokens: int) -> FakeRequest:
        request = FakeRequest(name, prompt_tokens, computed_tokens)
        self.requests[name] = request
        self.running.append(request)
        return request

    def hold(self, group: int, name: str, *, nulls: int = 0, shared: Sequence[FakeBlock] = (), own: int = 0) -> None:
        """Gives a request its table in one group: nulls for what it gave back, others' blocks, then its own."""
        for block in shared:
            block.ref_cnt += 1
        table = [self.pool.null_block] * nulls + list(shared) + self.pool.take(own)
        self.managers[group].req_to_blocks[name] = table

    def finish(self, name: str, *, cached: bool = True) -> None:
        """Ends a request; its whole blocks stay reusable where `cached`."""
        request = self.requests.pop(name)
        self.running.remove(request)
        for manager in self.managers:
            for index, block in enumerate(manager.req_to_blocks.pop(name, [])):
                if cached and (index + 1) * manager.block_size <= request.num_computed_tokens and not block.is_null:
                    block._block_hash = b"hash"
                self.pool.give_back(block)


def full_group(layers: int = 2, page_size_bytes: int = 512) -> FakeGroup:
    return FakeGroup([f"full.{index}" for index in range(layers)], FullAttentionSpec(page_size_bytes))


def window_group(layers: int = 2, page_size_bytes: int = 512, real_bytes: int = 384) -> FakeGroup:
    return FakeGroup([f"window.{index}" for index in range(layers)], SlidingWindowSpec(page_size_bytes, real_bytes))


def state_group(layers: int = 2) -> FakeGroup:
    return FakeGroup([f"state.{index}" for index in range(layers)], MambaSpec(512, [(4, 8), (3, 2)], 4))
