"""The plugin for vLLM: `register` is its entry point in the group vllm.general_plugins, which every process loads.

It only puts hooks on two classes. The agent starts where one of them is made: in the process that schedules, and in
those that hold GPUs. The API server gets no thread and no file. Written from the sources of vLLM 0.9.2 to 0.33.0;
what has moved between them is said where it is used.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from kvgauge_agent.daemon import INSTANCE_VARIABLE, describe, start
from kvgauge_agent.imports import when_imported
from kvgauge_agent.log import guarded, reason
from kvgauge_agent.vllm_scheduler import SchedulerPart
from kvgauge_agent.vllm_worker import WorkerPart
from kvgauge_agent.wrapping import call_after

SCHEDULER_MODULE = "vllm.v1.core.sched.scheduler"
# Until 0.10 the wrapper around every worker was V0's.
WORKER_MODULES = ("vllm.v1.worker.worker_base", "vllm.worker.worker_base")

_PART = "_kvgauge_part"


def register() -> None:
    """Puts the hooks on; may be called any number of times. Never raises."""
    # The engine's head gets here first, and its children inherit its environment.
    os.environ.setdefault(INSTANCE_VARIABLE, str(os.getpid()))
    when_imported(SCHEDULER_MODULE, hook_scheduler)
    for name in WORKER_MODULES:
        when_imported(name, hook_worker)


def hook_scheduler(module: ModuleType) -> None:
    """Watches the schedulers of this module; a subclass inherits that."""
    call_after(module.Scheduler, "__init__", _scheduler_made, "the scheduler's part")
    call_after(module.Scheduler, "update_from_output", _stepped, "the scheduler's part")
    call_after(module.Scheduler, "reset_prefix_cache", _cache_reset, "the scheduler's part")
    if hasattr(module.Scheduler, "_preempt_request"):
        call_after(module.Scheduler, "_preempt_request", _preempted, "the count of preemptions")


def hook_worker(module: ModuleType) -> None:
    """Watches the workers that are made through this module's wrapper, if it has one."""
    if hasattr(module, "WorkerWrapperBase"):
        call_after(module.WorkerWrapperBase, "init_device", _device_ready, "the worker's part")


def _scheduler_made(scheduler: Any, _: object) -> None:
    # Until 0.11 every place that preempts does so by itself.
    part = SchedulerPart(scheduler, counts_preemptions=hasattr(scheduler, "_preempt_request"))
    setattr(scheduler, _PART, part)
    start("scheduler", "vllm", parts=[part])
    guarded("the engine's description", lambda: describe(**_engine(scheduler.vllm_config)))


def _stepped(scheduler: Any, _: object) -> None:
    _tell(scheduler, SchedulerPart.stepped)


def _cache_reset(scheduler: Any, _: object) -> None:
    _tell(scheduler, SchedulerPart.cache_reset)


def _tell(scheduler: Any, what: Callable[[SchedulerPart, Any], None]) -> None:
    part = scheduler.__dict__.get(_PART)
    if part is not None:
        try:
            what(part, scheduler)
        except Exception as error:
            part.end(reason(error))
            raise


def _preempted(scheduler: Any, _: object) -> None:
    part = scheduler.__dict__.get(_PART)
    if part is not None:
        part.preemptions += 1


def _device_ready(wrapper: Any, _: object) -> None:
    worker = wrapper.worker
    start("worker", "vllm", parts=[WorkerPart(worker)])
    guarded("the engine's description", lambda: describe(**_engine(worker.vllm_config)))
    guarded("the worker's ranks", lambda: describe(**_place()))


def _engine(config: Any) -> dict[str, object]:
    parallel = config.parallel_config
    return {
        "engine_version": str(getattr(sys.modules.get("vllm"), "__version__", ""))[:64] or None,
        "model": str(config.model_config.model)[:256],
        # Engines of a dense model each think that they are alone: only the index, new after 0.11, tells them apart.
        "dp_rank": getattr(parallel, "data_parallel_index", parallel.data_parallel_rank),
        "dp": parallel.data_parallel_size,
        "tp": parallel.tensor_parallel_size,
        "pp": parallel.pipeline_parallel_size,
    }


def _place() -> dict[str, object]:
    groups = sys.modules.get("vllm.distributed.parallel_state")
    if groups is None:
        return {}
    return {"tp_rank": groups.get_tp_group().rank_in_group, "pp_rank": groups.get_pp_group().rank_in_group}
