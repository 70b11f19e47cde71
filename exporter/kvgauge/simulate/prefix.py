"""The prefix cache of a simulated engine: blocks that outlive their sequences until somebody needs the room.

Kept by the units in which a trace names its prompts' blocks, each a whole number of the engine's. The rules are those
of vLLM 0.32's block pool: a full block that no live sequence holds stays findable and counts as free, the one longest
unused is given away first, after all that are not full, and a prompt is never found whole, since its last token must be
computed to go on. What a sequence stores beyond its units is kept as long as they are, though only that sequence itself
can find it, when it was preempted.
"""

from collections import OrderedDict

from kvgauge.simulate.spec import Request


class Remainder:
    """The full blocks that one sequence left behind its units."""

    __slots__ = ()


class PrefixCache:
    """Which units are cached, who holds them, and which of them nobody does."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._holders: dict[int, int] = {}
        # Blocks of units that no live sequence holds, and of what lay behind them, the longest unused first.
        self._idle: OrderedDict[int | Remainder, int] = OrderedDict()
        self.idle_blocks = 0
        """Blocks that hold only reusable content: free for the asking."""
        self.queried_tokens = 0
        self.hit_tokens = 0

    def unit_blocks(self, request: Request) -> int:
        """The engine's blocks in one unit; 0 where the two do not fit together, so that nothing is shared."""
        tokens = request.prefix_block_tokens
        return tokens // self._block_tokens if tokens % self._block_tokens == 0 else 0

    def find(self, request: Request) -> tuple[int, ...]:
        """The prompt's leading units that are cached."""
        unit_tokens = request.prefix_block_tokens
        most = (request.prompt_tokens - 1) // unit_tokens if self.unit_blocks(request) else 0
        found = 0
        for unit in request.prefix_blocks[:most]:
            if unit not in self._holders:
                break
            found += 1
        return request.prefix_blocks[:found]

    def idle_among(self, units: tuple[int, ...]) -> int:
        """How many of the units nobody holds: taking them takes free blocks."""
        return sum(unit in self._idle for unit in units)

    def hold(self, units: tuple[int, ...]) -> int:
        """One more sequence holds the units; returns the blocks that were free until now."""
        taken = 0
        for unit in units:
            self._holders[unit] += 1
            blocks = self._idle.pop(unit, 0)
            taken += blocks
        self.idle_blocks -= taken
        return taken

    def add(self, request: Request, first: int, computed_tokens: int) -> tuple[int, ...]:
        """Units from the `first` on that are now computed whole and were not cached: the sequence's own blocks become
        theirs. One that is cached already is left alone, and so are those behind it."""
        if not self.unit_blocks(request):
            return ()
        added = []
        for unit in request.prefix_blocks[first : computed_tokens // request.prefix_block_tokens]:
            if unit in self._holders:
                break
            self._holders[unit] = 1
            added.append(unit)
        return tuple(added)

    def leave(self, blocks: int) -> Remainder:
        """A sequence lets go of this many full blocks of its own."""
        remainder = Remainder()
        self._idle[remainder] = blocks
        self.idle_blocks += blocks
        return remainder

    def take_back(self, remainder: Remainder) -> int:
        """The sequence holds its remainder again; returns the blocks, which were free until now."""
        blocks = self._idle.pop(remainder, 0)
        self.idle_blocks -= blocks
        return blocks

    def release(self, units: tuple[int, ...], unit_blocks: int) -> int:
        """A sequence lets go of the units; returns the blocks that are free from now on, though still cached."""
        freed = 0
        # The end of a prefix is of use to nobody without its beginning, so it goes first.
        for unit in reversed(units):
            self._holders[unit] -= 1
            if self._holders[unit] == 0:
                self._idle[unit] = unit_blocks
                freed += unit_blocks
        self.idle_blocks += freed
        return freed

    def evict(self, free_blocks: int) -> None:
        """Forgets what is longest unused until what nobody holds fits into the free blocks."""
        while self.idle_blocks > free_blocks:
            oldest, blocks = self._idle.popitem(last=False)
            excess = self.idle_blocks - free_blocks
            if not isinstance(oldest, Remainder):
                del self._holders[oldest]
            elif blocks > excess:
                # Its end goes first, and its beginning remains the oldest.
                self._idle[oldest] = blocks - excess
                self._idle.move_to_end(oldest, last=False)
                blocks = excess
            self.idle_blocks -= blocks
