"""The books of continuous batching in both layouts, and readings that fall between two entries of the same booking."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from kvgauge_agent import paged

from .fake_torch import Tensor

PAGE = 16
BLOCK_BYTES = 1024


def state(held: int, prompt: int) -> Any:
    return SimpleNamespace(position_offset=held, initial_tokens=[0] * prompt, _true_initial_tokens=0)


def manager(cache: Any, active: dict[str, Any], waiting: int = 0) -> Any:
    scheduler = SimpleNamespace(active_requests=active, waiting_requests=dict.fromkeys(range(waiting)))
    processor = SimpleNamespace(cache=cache, scheduler=scheduler)
    return SimpleNamespace(batch_processor=processor, input_queue=SimpleNamespace(qsize=lambda: 1), current_batch=9)


def allocator(tables: dict[str, list[int]], index: int = 0, **more: Any) -> Any:
    ledger = SimpleNamespace(shared_ref_counts={}, cached_blocks={})
    known = {
        "index": index,
        "block_table": tables,
        "ledger": ledger,
        "tokens_per_page": PAGE,
        "bytes_per_block": BLOCK_BYTES,
        "blocks_per_sector": 2,
        "layer_indices": [0, 1],
    }
    return SimpleNamespace(**(known | more))


def sectors(*allocators: Any, num_sectors: int, free_sectors: int, free_blocks: list[int]) -> Any:
    trees = [SimpleNamespace(trees={0: [0, 1]}, elems_per_tree=2) for _ in allocators]
    return SimpleNamespace(
        cache_allocators={str(each.index): each for each in allocators},
        pool=SimpleNamespace(
            free_sectors=list(range(free_sectors)),
            count_free_blocks=lambda index: free_blocks[index],
            _free_blocks=trees,
        ),
        num_sectors=num_sectors,
        bytes_per_sector=2 * BLOCK_BYTES,
        num_blocks=num_sectors,
        cache_tensor=Tensor(2 * BLOCK_BYTES * (num_sectors + 2), itemsize=1),
        dtype="torch.bfloat16",
        max_batch_tokens=256,
        use_prefix_sharing=True,
    )


def read(made: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    found = paged.facts(made)
    assert found is not None
    return found


def test_no_pool_before_the_engine_has_started() -> None:
    assert paged.facts(SimpleNamespace(batch_processor=None)) is None


def test_sectors_with_shared_and_cached_blocks() -> None:
    books = allocator({"a": [1, 2, 3], "b": [1, 2, 4]})
    books.ledger.shared_ref_counts = {1: 2, 2: 2}
    books.ledger.cached_blocks = {9: None}
    cache = sectors(books, num_sectors=10, free_sectors=6, free_blocks=[3])
    scheduler, entry = read(manager(cache, {"a": state(40, 33), "b": state(45, 33)}, waiting=2))
    figures = {"num_blocks": 20, "used_blocks": 4, "cached_blocks": 1, "free_blocks": 15}
    assert scheduler == {
        **scheduler,
        **figures,
        "live_tokens": 40 + 45 - 32,
        "tail_tokens": 11,
        "waiting": 3,
        "steps": 9,
    }
    assert scheduler["running_tokens"] == [[33, 40], [33, 45]]
    assert entry == {
        "kind": "paged",
        "layers": 2,
        "sequences": 2,
        "allocated_bytes": 12 * 2 * BLOCK_BYTES,
        "live_bytes": 53 * BLOCK_BYTES // PAGE,
        "capacity_tokens": 160,
        "live_tokens": 53,
        "block_tokens": PAGE,
        "num_blocks": 20,
        "used_blocks": 4,
        "running": 2,
        "waiting": 3,
    }


def test_sectors_of_two_groups() -> None:
    full = allocator({"a": [0, 1, 2]})
    window = allocator({"a": [0, 1]}, index=1, sliding_window=24)
    cache = sectors(full, window, num_sectors=10, free_sectors=7, free_blocks=[1, 0])
    scheduler, entry = read(manager(cache, {"a": state(40, 33)}))
    assert "block_tokens" not in entry
    assert (entry["live_tokens"], entry["num_blocks"]) == (40, 10)
    assert [(group["kind"], group["live_tokens"]) for group in scheduler["groups"]] == [
        ("full", 40),
        ("sliding_window", 24),
    ]
    assert scheduler["bytes_per_block"] == 2 * BLOCK_BYTES
    assert scheduler["live_tokens"] == 64


class Advancing:
    """A request whose blocks are booked first, its tokens later."""

    initial_tokens = (0,) * 50

    def __init__(self) -> None:
        self._held: Iterator[int] = iter([0, 0, 50])

    @property
    def position_offset(self) -> int:
        return next(self._held, 50)


def test_a_reading_in_the_middle_of_a_booking_is_taken_again() -> None:
    cache = sectors(allocator({"a": [0, 1, 2, 3]}), num_sectors=4, free_sectors=2, free_blocks=[0])
    scheduler, _ = read(manager(cache, {"a": Advancing()}))
    assert (scheduler["live_tokens"], scheduler["tail_tokens"]) == (50, 14)


def test_books_that_never_agree_are_read_at_last_and_never_negative() -> None:
    cache = sectors(allocator({"a": [0]}), num_sectors=4, free_sectors=4, free_blocks=[0])
    scheduler, _ = read(manager(cache, {"a": state(99, 5)}))
    assert scheduler["used_blocks"] == 0
    assert scheduler["tail_tokens"] == 0


def one_pool(free: int, cached: int = 0, **tables: dict[str, list[int]]) -> Any:
    managers = [SimpleNamespace(block_table=table) for table in tables.values()]
    return SimpleNamespace(
        group_cache_managers=managers,
        get_num_free_blocks=lambda: free + cached,
        num_blocks=20,
        block_size=PAGE,
        key_cache=[Tensor(22 * PAGE, 2, 8)] * 2,
        value_cache=[Tensor(22 * PAGE, 2, 8)] * 2,
        dtype="torch.float16",
        **({"_block_manager": SimpleNamespace(_init_block_ids=dict.fromkeys(range(cached)))} if cached else {}),
    )


def test_one_pool_of_equal_blocks() -> None:
    cache = one_pool(free=13, cached=2, full={"a": [1, 2, 3], "b": [1, 2, 4, 5]})
    scheduler, entry = read(manager(cache, {"a": state(40, 33), "b": state(60, 33)}))
    # Five blocks are out and seven are listed: two are listed twice.
    figures = {"used_blocks": 5, "cached_blocks": 2, "free_blocks": 13, "live_tokens": 68, "tail_tokens": 12}
    assert scheduler == {**scheduler, **figures, "kv_dtype": "float16", "prefix_caching": False}
    assert entry["allocated_bytes"] == 4 * 22 * PAGE * 2 * 8 * 2
    assert entry["live_bytes"] == 68 * 4 * 2 * 8 * 2
    assert "max_num_seqs" not in scheduler


def test_one_pool_for_two_groups() -> None:
    cache = one_pool(free=15, full={"a": [1, 2, 3]}, window={"a": [4, 5]})
    cache.group_cache_managers[1].sliding_window = 20
    _, entry = read(manager(cache, {"a": state(40, 33)}))
    assert (entry["used_blocks"], entry["live_tokens"], entry["capacity_tokens"]) == (5, 40, 160)


def test_the_prompt_of_a_request_in_every_version() -> None:
    old = SimpleNamespace(full_prompt_ids=[1, 2, 3])
    set_back = SimpleNamespace(initial_tokens=[0] * 9, _true_initial_tokens=4)
    assert [paged._prompt_tokens(each) for each in (old, set_back, state(1, 7))] == [3, 4, 7]


def test_books_in_another_layout_raise() -> None:
    with pytest.raises(AttributeError):
        paged.facts(manager(SimpleNamespace(dtype="torch.float16"), {}))
