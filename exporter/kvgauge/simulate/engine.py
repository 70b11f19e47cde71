"""A paged-KV, continuously batching engine under a virtual clock, with vLLM's scheduling rules.

Pure and deterministic: the same requests give the same history, however finely `advance` is called. The rules are those
of vLLM 0.32's scheduler for one full-attention cache group:

- one block of the pool is never handed out, so `num_blocks - 1` are usable;
- a step serves running sequences first, in order of admission, then admits from the queue, all within the token budget;
- a waiting request is admitted when the blocks for all its known tokens are free; nothing is kept back for its output;
- prefill is chunked, and a chunk takes only the blocks it fills;
- a decode takes a block when its last one is full; when none is free, the running sequence admitted last loses all its
  blocks, goes to the head of the queue and recomputes, and that step admits nobody;
- the last sampled token is never written: prompt + output - 1 tokens are stored at most;
- with prefix caching, leading blocks of the prompt that are cached are not computed again, nor are those that a
  preempted sequence left behind, while nobody has taken them.

Each decoding sequence gains exactly one token a step, so when it needs its next block and when it ends are known the
moment it starts decoding. Between two events (an arrival, an end, a chunk of prefill, a pool run empty) the steps
follow a straight line in time and are taken in one leap, in closed form.
"""

import itertools
import math
from collections import defaultdict, deque
from collections.abc import Callable
from heapq import heappop, heappush

from kvgauge.simulate.prefix import PrefixCache, Remainder
from kvgauge.simulate.spec import EngineSpec, FinishedRequest, Request
from kvgauge.simulate.state import Counts, EngineState


class _Sequence:
    """One request inside the engine."""

    __slots__ = (
        "admitted_seconds",
        "anchor",
        "first_token_seconds",
        "known",
        "last_step",
        "last_token_seconds",
        "left",
        "left_units",
        "preemptions",
        "request",
        "stored",
        "units",
    )

    def __init__(self, request: Request) -> None:
        self.request = request
        self.known = request.prompt_tokens
        """Tokens to prefill: the prompt and, after a preemption, what was generated before it."""
        self.stored = 0
        """Tokens in the cache while it prefills; once it decodes they are `anchor` + the engine's step."""
        self.units: tuple[int, ...] = ()
        """Cached units of its prompt that it holds, perhaps with others."""
        self.left: Remainder | None = None
        """What it left in the cache when it was preempted, behind `left_units`."""
        self.left_units: tuple[int, ...] = ()
        self.anchor: int | None = None
        self.last_step = 0
        self.preemptions = 0
        self.admitted_seconds = math.inf
        self.first_token_seconds = math.inf
        self.last_token_seconds = 0.0


class _Step:
    """A step in flight."""

    __slots__ = ("decodes", "end_seconds", "number", "prefilled", "seconds")

    def __init__(self, number: int, decodes: int, prefilled: list[_Sequence], start: float, seconds: float) -> None:
        self.number = number
        self.decodes = decodes
        self.prefilled = prefilled
        """Sequences whose prefill this step completes."""
        self.seconds = seconds
        self.end_seconds = start + seconds


class PagedEngine:
    """The simulated engine. `on_finish` is told of every finished request, in order."""

    def __init__(self, spec: EngineSpec, on_finish: Callable[[FinishedRequest], None] = lambda _: None) -> None:
        self.spec = spec
        self._cost = spec.step_cost
        self._on_finish = on_finish
        self._now = 0.0
        self._clock = 0.0
        self._in_flight: _Step | None = None
        self._arrivals: deque[Request] = deque()
        self._waiting: deque[_Sequence] = deque()
        # In order of admission; a dict because sequences leave from the middle when they end.
        self._running: dict[_Sequence, None] = {}
        # At most one prefill is unfinished after a step, that of the sequence admitted last: it used up the budget.
        self._prefilling: _Sequence | None = None
        self._free_blocks = spec.usable_blocks
        self._pairs = 0.0
        # Tokens that the attention of one step reads; those that sequences share are counted for each.
        self._read_tokens = 0
        self._shared_tokens = 0
        self._prefix = PrefixCache(spec.block_tokens) if spec.prefix_caching else None
        self._busy_seconds = 0.0
        self._steps = 0
        # Decoding sequences by the step (modulo block_tokens) at which they need their next block.
        self._block_due = [0] * spec.block_tokens
        self._ends_at: defaultdict[int, list[_Sequence]] = defaultdict(list)
        self._end_steps: list[int] = []
        self._counts = Counts(spec.max_model_len)
        self.in_flight_requests = 0
        """Requests submitted and not finished."""

    def submit(self, request: Request) -> None:
        """Hands over a request that will arrive at its time. Requests come in order of arrival.

        Raises ValueError when it lies in the engine's past, before one already submitted, or is too long.
        """
        earliest = self._arrivals[-1].arrival_seconds if self._arrivals else self._now
        if request.arrival_seconds < earliest:
            raise ValueError(f"arrival_seconds must be at least {earliest}, not {request.arrival_seconds}")
        if request.total_tokens > self.spec.max_model_len:
            raise ValueError(
                f"prompt_tokens + output_tokens must be at most max_model_len ({self.spec.max_model_len}), "
                f"not {request.total_tokens}"
            )
        self._arrivals.append(request)
        self.in_flight_requests += 1

    def advance(self, until_seconds: float) -> None:
        """Runs the clock to `until_seconds`: begins every step that starts before, completes those that end by then.

        Requests that arrive before `until_seconds` must have been submitted. Raises ValueError when time would go back.
        """
        if until_seconds < self._now:
            raise ValueError(f"until_seconds must be at least {self._now}, not {until_seconds}")
        while True:
            if self._in_flight is not None:
                if self._in_flight.end_seconds > until_seconds:
                    break
                self._complete(self._in_flight)
            if not self._running and not self._waiting and self._arrivals:
                self._clock = max(self._clock, self._arrivals[0].arrival_seconds)
            if self._clock >= until_seconds:
                break
            self._take_arrivals()
            if not self._running and not self._waiting:
                break
            next_arrival = self._arrivals[0].arrival_seconds if self._arrivals else math.inf
            if not self._leap(min(until_seconds, next_arrival)):
                self._begin()
        self._now = until_seconds

    def next_finish_seconds(self) -> float:
        """A time before which no request finishes, unless one is submitted meanwhile: what a router may skip to.
        Infinite when there is nothing to do."""
        step = self._in_flight
        if step is None:
            return math.inf if not self._running and not self._waiting and not self._arrivals else self._now
        first_end = self._first_end()
        leap = first_end - step.number
        if step.prefilled or self._prefilling is not None or self._arrivals or leap <= 0:
            return step.end_seconds
        if self._blocks_due(self._steps, leap) > self._free_blocks or self._head_fits():
            return step.end_seconds
        return step.end_seconds + self._leap_seconds(leap, step.decodes, self._decode_seconds(step.decodes))

    def running_tokens(self) -> tuple[int, ...]:
        """Tokens stored by each running sequence, in order of admission."""
        return tuple(self._stored(sequence) for sequence in self._running)

    def state(self) -> EngineState:
        """The engine now."""
        arrived = 0
        for request in self._arrivals:
            if request.arrival_seconds > self._now:
                break
            arrived += 1
        prefix = self._prefix
        return self._counts.state(
            clock_seconds=self._now,
            running=len(self._running),
            waiting=len(self._waiting) + arrived,
            used_blocks=self.spec.usable_blocks - self._free_blocks,
            live_tokens=self._read_tokens - self._shared_tokens,
            cached_blocks=prefix.idle_blocks if prefix is not None else 0,
            waiting_tokens=self._tokens_to_prefill(),
            busy_seconds_total=self._busy_seconds,
            steps_total=self._steps,
            prefix_queries_total=prefix.queried_tokens if prefix is not None else 0,
            prefix_hits_total=prefix.hit_tokens if prefix is not None else 0,
        )

    def _tokens_to_prefill(self) -> int:
        begun = self._prefilling.known - self._prefilling.stored if self._prefilling is not None else 0
        arrived = sum(
            request.prompt_tokens
            for request in itertools.takewhile(lambda request: request.arrival_seconds <= self._now, self._arrivals)
        )
        return begun + arrived + sum(sequence.known for sequence in self._waiting)

    def _stored(self, sequence: _Sequence) -> int:
        return sequence.stored if sequence.anchor is None else sequence.anchor + self._steps

    def _take_arrivals(self) -> None:
        while self._arrivals and self._arrivals[0].arrival_seconds <= self._clock:
            self._waiting.append(_Sequence(self._arrivals.popleft()))

    def _first_end(self) -> int:
        """The step that is the last of some decoding sequence, the soonest there is."""
        ends = self._end_steps
        while ends and not self._ends_at.get(ends[0]):
            self._ends_at.pop(heappop(ends), None)
        return ends[0] if ends else self._steps

    def _head_fits(self) -> bool:
        """Whether the next step would admit a request."""
        if not self._waiting or len(self._running) >= self.spec.max_num_seqs:
            return False
        return self._admission_blocks(self._waiting[0], self._found(self._waiting[0])) <= self._free_blocks

    def _blocks_due(self, number: int, steps: int) -> int:
        """Blocks that the decoding sequences take in `steps` steps from step `number` on."""
        due, size = self._block_due, self.spec.block_tokens
        rounds, rest = divmod(steps, size)
        start = number % size
        partial = due[start : start + rest]
        if start + rest > size:
            partial += due[: start + rest - size]
        return (rounds * sum(due) if rounds else 0) + sum(partial)

    def _decode_seconds(self, decodes: int) -> float:
        """Time of the next step when only the `decodes` sequences decode in it."""
        return self._cost.seconds(self._read_tokens + decodes, decodes)

    def _leap_seconds(self, steps: int, decodes: int, first: float) -> float:
        """Time of that many steps from now, in each of which only the `decodes` sequences decode; `first` is that of
        the first of them."""
        return steps * first + self._cost.kv_token_seconds * decodes * steps * (steps - 1) / 2

    def _leap(self, until_seconds: float) -> bool:
        """Takes all steps at once that end by `until_seconds` and in which nothing happens but decoding: nobody is
        admitted, prefilled, preempted or at an end. False when there is none."""
        decodes = len(self._running)
        steps = self._first_end() - self._steps
        if self._prefilling is not None or steps < 1 or self._head_fits():
            return False
        first = self._decode_seconds(decodes)
        steps = self._steps_in_pool(self._steps_until(until_seconds, decodes, steps, first))
        if steps < 1:
            return False
        slope = self._cost.kv_token_seconds * decodes
        self._take(self._blocks_due(self._steps, steps))
        seconds = self._leap_seconds(steps, decodes, first)
        self._clock += seconds
        self._busy_seconds += seconds
        self._steps += steps
        self._read_tokens += decodes * steps
        self._counts.generation_tokens_total += decodes * steps
        self._counts.step_tokens.observe(decodes, steps)
        self._counts.inter_token_seconds.observe_line(first, slope, steps, decodes)
        return True

    def _steps_until(self, until_seconds: float, decodes: int, most: int, first: float) -> int:
        """How many of the next steps, `most` at most, end by that time; the first one takes `first` seconds."""
        room = until_seconds - self._clock
        if first > room:
            return 0
        if self._leap_seconds(most, decodes, first) <= room:
            return most
        half = self._cost.kv_token_seconds * decodes / 2
        linear = first - half
        steps = (math.sqrt(linear * linear + 4 * half * room) - linear) / (2 * half) if half else room / linear
        found = min(max(int(steps), 0), most)
        # The root is rounded; the sum decides.
        while found > 0 and self._leap_seconds(found, decodes, first) > room:
            found -= 1
        while found < most and self._leap_seconds(found + 1, decodes, first) <= room:
            found += 1
        return found

    def _steps_in_pool(self, most: int) -> int:
        """How many of the next steps, `most` at most, find their blocks free."""
        due, size = self._block_due, self.spec.block_tokens
        left = self._free_blocks - self._blocks_due(self._steps, most)
        if left >= 0:
            return most
        round_blocks = sum(due)
        rounds = self._free_blocks // round_blocks
        steps, left = rounds * size, self._free_blocks - rounds * round_blocks
        while due[(self._steps + steps) % size] <= left:
            left -= due[(self._steps + steps) % size]
            steps += 1
        return min(steps, most)

    def _take(self, blocks: int) -> None:
        """Takes free blocks, those that only cache a prefix last."""
        self._free_blocks -= blocks
        if self._prefix is not None and self._prefix.idle_blocks > self._free_blocks:
            self._prefix.evict(self._free_blocks)

    def _begin(self) -> None:
        """Schedules one step: a slot for every decoding sequence, then prefill with what the budget has left."""
        number, preemptions_before = self._steps, self._counts.preemptions_total
        self._give_decode_blocks(number)
        decodes = len(self._running) - (self._prefilling is not None)
        budget = self.spec.max_num_batched_tokens - decodes
        prefilled: list[_Sequence] = []
        self._pairs = 0.0
        if self._prefilling is not None:
            budget -= self._prefill(self._prefilling, budget, prefilled)
        if self._counts.preemptions_total == preemptions_before:
            budget = self._admit(budget, prefilled)
        prefill_tokens = self.spec.max_num_batched_tokens - decodes - budget
        self._steps = number + 1
        self._read_tokens += decodes + prefill_tokens
        seconds = self._cost.seconds(self._read_tokens, decodes + prefill_tokens, self._pairs)
        self._busy_seconds += seconds
        self._counts.step_tokens.observe(decodes + prefill_tokens)
        self._in_flight = _Step(number, decodes, prefilled, self._clock, seconds)

    def _give_decode_blocks(self, number: int) -> None:
        due = number % self.spec.block_tokens
        if self._block_due[due] <= self._free_blocks:
            self._take(self._block_due[due])
            return
        for sequence in tuple(self._running):
            if sequence not in self._running:
                # Victims are taken from the end: everything after the first one that is gone is gone too.
                break
            if sequence.anchor is None or (sequence.anchor + number) % self.spec.block_tokens:
                continue
            while self._free_blocks == 0 and sequence in self._running:
                self._preempt_last()
            if sequence in self._running:
                self._take(1)

    def _prefill(self, sequence: _Sequence, budget: int, prefilled: list[_Sequence]) -> int:
        """Schedules the sequence's next chunk and returns its tokens: 0 when it had to be preempted instead."""
        chunk = min(sequence.known - sequence.stored, budget)
        blocks = self.spec.blocks_for(sequence.stored + chunk) - self.spec.blocks_for(sequence.stored)
        if blocks > self._free_blocks:
            # It is the sequence admitted last, so it is its own victim.
            self._preempt_last()
            return 0
        self._take(blocks)
        self._pairs += chunk * (sequence.stored + chunk / 2)
        sequence.stored += chunk
        if self._prefix is not None:
            self._share(sequence)
        if sequence.preemptions:
            self._counts.recomputed_tokens_total += chunk
        if sequence.stored == sequence.known:
            self._prefilling = None
            prefilled.append(sequence)
        else:
            self._prefilling = sequence
        return chunk

    def _found(self, sequence: _Sequence) -> tuple[int, ...]:
        return self._prefix.find(sequence.request) if self._prefix is not None else ()

    def _admission_blocks(self, sequence: _Sequence, found: tuple[int, ...]) -> int:
        """Free blocks that the sequence takes with all its known tokens, when it finds these units cached."""
        blocks = self.spec.blocks_for(sequence.known)
        if self._prefix is not None and found:
            held = len(found) - self._prefix.idle_among(found)
            blocks -= held * self._prefix.unit_blocks(sequence.request)
        return blocks

    def _admit(self, budget: int, prefilled: list[_Sequence]) -> int:
        """Admits from the head of the queue while anything is left to give; returns the budget that remains."""
        while self._waiting and budget > 0 and len(self._running) < self.spec.max_num_seqs:
            sequence = self._waiting[0]
            found = self._found(sequence)
            if self._admission_blocks(sequence, found) > self._free_blocks:
                break
            self._waiting.popleft()
            self._running[sequence] = None
            if sequence.admitted_seconds == math.inf:
                sequence.admitted_seconds = self._clock
            if self._prefix is not None:
                self._hit(sequence, found, self._prefix)
            budget -= self._prefill(sequence, budget, prefilled)
        return budget

    def _hit(self, sequence: _Sequence, found: tuple[int, ...], prefix: PrefixCache) -> None:
        """Starts the sequence on the units of its prompt that are cached."""
        tokens = len(found) * sequence.request.prefix_block_tokens
        if not sequence.preemptions:
            prefix.queried_tokens += sequence.request.prompt_tokens
            prefix.hit_tokens += tokens
        taken = prefix.hold(found)
        own = prefix.take_back(sequence.left) if sequence.left is not None and found == sequence.left_units else 0
        self._free_blocks -= taken + own
        sequence.units, sequence.stored = found, tokens + own * self.spec.block_tokens
        self._read_tokens += sequence.stored
        if found:
            self._shared_tokens += tokens - taken // prefix.unit_blocks(sequence.request) * (
                sequence.request.prefix_block_tokens
            )

    def _share(self, sequence: _Sequence) -> None:
        """Makes the units that the sequence has computed whole findable for others."""
        if self._prefix is None:
            return
        tokens = min(sequence.stored, sequence.request.prompt_tokens)
        sequence.units += self._prefix.add(sequence.request, len(sequence.units), tokens)

    def _preempt_last(self) -> None:
        sequence, _ = self._running.popitem()
        if sequence.anchor is None:
            self._prefilling = None
        else:
            self._ends_at[sequence.last_step].remove(sequence)
            sequence.known = sequence.anchor + self._steps + 1
            sequence.last_token_seconds = self._clock
        self._release(sequence)
        sequence.preemptions += 1
        self._counts.preemptions_total += 1
        self._waiting.appendleft(sequence)

    def _release(self, sequence: _Sequence) -> None:
        stored = self._stored(sequence)
        blocks = self.spec.blocks_for(stored)
        self._read_tokens -= stored
        if self._prefix is not None:
            unit_blocks = self._prefix.unit_blocks(sequence.request)
            in_units = len(sequence.units) * unit_blocks
            own = stored // self.spec.block_tokens - in_units
            sequence.left, sequence.left_units = self._prefix.leave(own) if own else None, sequence.units
            freed = self._prefix.release(sequence.units, unit_blocks)
            self._shared_tokens -= (in_units - freed) * self.spec.block_tokens
            blocks += freed - in_units
        self._free_blocks += blocks
        if sequence.anchor is not None:
            self._block_due[-sequence.anchor % self.spec.block_tokens] -= 1
        sequence.anchor, sequence.stored, sequence.units = None, 0, ()

    def _complete(self, step: _Step) -> None:
        self._in_flight = None
        self._clock = step.end_seconds
        if step.decodes:
            self._counts.inter_token_seconds.observe(step.seconds, step.decodes)
        self._counts.generation_tokens_total += step.decodes + len(step.prefilled)
        for sequence in self._ends_at.pop(step.number, ()):
            self._finish(sequence)
        for sequence in step.prefilled:
            self._start_decoding(sequence, step.number)

    def _start_decoding(self, sequence: _Sequence, number: int) -> None:
        request = sequence.request
        if sequence.first_token_seconds == math.inf:
            sequence.first_token_seconds = self._clock
            self._counts.prompt_tokens_total += request.prompt_tokens
            self._counts.ttft_seconds.observe(self._clock - request.arrival_seconds)
        else:
            self._counts.inter_token_seconds.observe(self._clock - sequence.last_token_seconds)
        # The step that completes a prefill samples one token, which the next decode step stores.
        left = request.prompt_tokens + request.output_tokens - sequence.known - 1
        if left == 0:
            self._finish(sequence)
            return
        sequence.anchor = sequence.known - self._steps
        sequence.last_step = number + left
        self._block_due[-sequence.anchor % self.spec.block_tokens] += 1
        ending = self._ends_at[sequence.last_step]
        if not ending:
            heappush(self._end_steps, sequence.last_step)
        ending.append(sequence)

    def _finish(self, sequence: _Sequence) -> None:
        del self._running[sequence]
        self.in_flight_requests -= 1
        self._release(sequence)
        request = sequence.request
        if request.total_tokens == self.spec.max_model_len:
            self._counts.finished_length_total += 1
        else:
            self._counts.finished_stop_total += 1
        self._counts.prompt_tokens.observe(request.prompt_tokens)
        self._counts.output_tokens.observe(request.output_tokens)
        self._counts.preemptions.observe(sequence.preemptions)
        self._counts.queue_seconds.observe(sequence.admitted_seconds - request.arrival_seconds)
        self._counts.e2e_seconds.observe(self._clock - request.arrival_seconds)
        done = FinishedRequest(request, sequence.first_token_seconds, self._clock, sequence.preemptions)
        if (token_seconds := done.tpot_seconds) is not None:
            self._counts.token_seconds.observe(token_seconds)
        self._on_finish(done)
