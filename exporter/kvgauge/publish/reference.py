"""Writes docs/metrics.md from the table of families: `python -m kvgauge.publish.reference > docs/metrics.md`."""

import sys

from kvgauge.advise.history import LENGTH_WINDOW_SECONDS
from kvgauge.advise.learning import ENOUGH
from kvgauge.advise.loading import CLEARING_SECONDS
from kvgauge.advise.safety import FULL_RATIO, PREEMPTED_RATIO
from kvgauge.advise.working import SATURATION_RATIO
from kvgauge.assess.drifting import KINDS as DRIFTS
from kvgauge.assess.drifting import MIB
from kvgauge.assess.settling import LEARNING_SECONDS, SETTLED_AFTER_SECONDS, STEADY_BYTES, STEADY_SECONDS
from kvgauge.assess.waste import KINDS as WASTES
from kvgauge.publish.families import FAMILIES

_INTRODUCTION = """# Metrics

Every series on the sidecar's page. Base units; `_ratio` is 0..1 unless said. GPU series carry `gpu` (index in the
container) and `uuid`, engine series `model` and `rank` (the data-parallel engine, "0" when single; advice is the pod's
and has rank "all" when several engines answer together). What is not known has no series: nothing is ever 0 for want
of a fact. `pod` and `namespace` are for Prometheus to attach.

| name | type | labels | meaning |
|---|---|---|---|
"""

_WASTE = """
## Waste

`kvgauge_waste_bytes` is in bytes on each GPU of a data-parallel rank. The kinds do not overlap and may be added up:
`stranded` is of what was set aside for the whole pool, the others are of what live sequences hold. A held block is
padding, slots without a token (`block_tail` or `reservation`), and slots with one, of which some may be copies. So

    pool = stranded + free and reclaimable blocks + held blocks
    held blocks = group_padding + block_tail + reservation + head_replication + tokens that no other GPU holds

`method` is `measured` where the engine's own books tell it (the agent, or its page) or its design leaves no doubt, and
`estimated` where it is what is to be expected. A kind that can't be known has no series; `missing` in `/v1/assessment`
says why.

The last column is what the paper on PagedAttention (Kwon et al., SOSP 2023, section 3.1) calls it.

| kind | meaning | 0 by design | in the paper |
|---|---|---|---|
"""

_ADVICE = f"""
## Advice

Lengths are those of the requests that finished in the last {LENGTH_WINDOW_SECONDS / 60:.0f} minutes. Where fewer than
{ENOUGH:.0f} did, they are made up to that number from the hours before (kept over a restart with `--state-file`), or
from all since the engine's start; before that many are known at all, only `kv_worst_case` is promised. Where the mix
changes, the window is cut to what came since. An engine without length histograms is judged by means, and
`explanation` in `/v1/advice` says so, as it says all that the advice stands on; `terms` are the numbers.

| limit | requests | binds |
|---|---|---|
| `kv` | so that at most {PREEMPTED_RATIO:.0%} of them lose their place in the pool, it is too full for all for at \
most {FULL_RATIO:.0%} of the time, and alike ones fit together | yes |
| `kv_worst_case` | that fit if each is of max_model_len | never |
| `state_slots` | whose recurrent states there is room for | yes |
| `max_num_seqs` | that the engine batches at most | yes |
| `latency` | with which a token takes no longer than `--slo-tpot`, and the first one than `--slo-ttft` | yes |
| `token_rate` | with which {SATURATION_RATIO:.0%} of the requests per second end that ever can; more would only wait \
| yes |

`latency` and `token_rate` stand on how long a step takes: what is to be expected of model and GPU, corrected by what is
seen. Where neither is known they are absent.

`kvgauge_load_ratio` is what is asked for over what is safe: of the pool, or of the number of requests, whichever the
binding limit is of; where the step is known, no less than the requests that come over those that would end with as many
in flight as is safe, which is the measure for `latency` and `token_rate`. A waiting request counts like a running one;
among requests that come, as one more to be served within {CLEARING_SECONDS:.0f} s. What chance makes of it is damped,
bursts show at once.
"""

_CALIBRATION = f"""
## Calibration

While an engine runs steadily, what is measured of each part of a GPU's memory (by the agent or the engine) and of its
total (by the driver) is put beside what was predicted, and kept by engine, version, GPU, model and parallelism.
`kvgauge_memory_calibrated_bytes` is the prediction corrected by it: parts that grow with the batch (`activations`,
`graphs`) by their ratio, others by their difference; what the driver shows beyond the parts is in `context`. After a
restart with other flags it says what the new pool and total should be, from the first tick on. Before anything was
measured it is absent. What comes more than {LEARNING_SECONDS / 60:.0f} minutes after a start is not learned.

## Drift

`kvgauge_memory_drift_bytes` is 0 where a kind of drift was looked for and not found, and absent where it can't be
looked for; `missing` in `/v1/assessment` says why, and `warnings` says in a sentence what drifts. Nothing is looked for
while the engine is down or asleep. A leak and another process are looked for once the engine has been up and at work
for {SETTLED_AFTER_SECONDS:.0f} s and the memory in use has kept within {STEADY_BYTES // MIB} MiB for \
{STEADY_SECONDS:.0f} s; a restart begins anew.

| kind | meaning | rule |
|---|---|---|
"""

_ALLOCATOR = """
## torch's allocator

Engines with a paged pool take it from torch in a few large pieces at their start, and keep it whether it is full or
empty: `kvgauge_allocator_bytes` says nothing of its occupancy. It tells what torch holds beside it. `allocated` is held
by tensors, `requested` what they asked for before rounding, `reserved` obtained from the driver, `inactive_split` free
pieces of segments in use elsewhere, which can't go back to the driver. `largest_free` and the fragmentation ratio come
from a look at all pieces that the agent takes once a minute, where that is quick. What the paper calls external
fragmentation shows here for programs that make their caches one by one. Where a GPU is not among the driver's, `gpu`
is empty and `uuid` is what torch says.
"""


def reference() -> str:
    """The page, as Markdown."""
    rows = (
        f"| `{family.name}` | {family.kind} | {', '.join(f'`{label}`' for label in family.labels)} | {family.help} |\n"
        for family in FAMILIES
    )
    kinds = (f"| `{name}` | {kind.meaning} | {kind.zero} | {kind.paper} |\n" for name, kind in WASTES.items())
    drifts = (f"| `{name}` | {kind.meaning} | {kind.rule} |\n" for name, kind in DRIFTS.items())
    return "".join((_INTRODUCTION, *rows, _ADVICE, _CALIBRATION, *drifts, _WASTE, *kinds, _ALLOCATOR))


if __name__ == "__main__":
    sys.stdout.write(reference())
