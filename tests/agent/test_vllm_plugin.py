"""The plugin on modules in the shapes of vLLM's, in processes of their own: it starts threads and hooks imports."""

import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvgauge_agent.bundle import lay_out
from kvgauge_agent.vllm_worker import WorkerPart, pool_bytes

from .fake_vllm import FakeTensor

# A package `vllm` with the two modules that are hooked. Until 0.11 the scheduler has no `_preempt_request`, until 0.10
# the workers' wrapper lay in vllm.worker.
SCHEDULER = """
from tests.agent.fake_vllm import FakeScheduler, full_group
class Scheduler(FakeScheduler):
    def __init__(self):
        super().__init__(20, [(full_group(), 16)])
    def update_from_output(self):
        return "outputs"
    def reset_prefix_cache(self):
        return True
{preempts}
"""
PREEMPTS = """
    def _preempt_request(self, request):
        self.running.remove(request)
        self.waiting.append(request)
"""
WORKER = """
from types import SimpleNamespace
class Worker:
    def __init__(self):
        from vllm.v1.core.sched.scheduler import Scheduler
        self.vllm_config = Scheduler().vllm_config
        self.model_runner = SimpleNamespace(model_memory_usage=1.0)
class WorkerWrapperBase:
    def init_device(self):
        self.worker = Worker()
        return "ready"
"""
PROGRAM = """
import json, os, time
from pathlib import Path
from importlib.metadata import entry_points
# Two where kvgauge is installed as well; vLLM calls each.
plugins = list(entry_points(group="vllm.general_plugins", name="kvgauge"))
assert plugins
for plugin in plugins * 2:
    plugin.load()()
spool = Path(os.environ["KVGAUGE_SPOOL"])
def file():
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for path in spool.glob("*.json"):
            return json.loads(path.read_bytes())
        time.sleep(0.01)
assert not list(spool.iterdir()), "the API server gets no file"
"""


def run_in(folder: Path, program: str) -> Any:
    """Runs PROGRAM and what follows it with the agent delivered as a folder; what it printed, from JSON."""
    (folder / "spool").mkdir()
    root = Path(__file__).parents[2]
    environment = {
        **os.environ,
        "KVGAUGE_SPOOL": str(folder / "spool"),
        "PYTHONPATH": f"{lay_out(folder / 'agent')}:{folder / 'engine'}:{root}",
    }
    command = [sys.executable, "-c", PROGRAM + program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def write_engine(folder: Path, *, preempts: bool, worker_module: str) -> None:
    files = {
        "vllm.v1.core.sched.scheduler": SCHEDULER.format(preempts=PREEMPTS if preempts else ""),
        worker_module: WORKER,
    }
    for name, source in files.items():
        path = folder / "engine" / Path(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    (folder / "engine" / "vllm" / "__init__.py").write_text("__version__ = '0.33.0'")


@pytest.mark.parametrize(
    ("preempts", "worker_module"),
    [(True, "vllm.v1.worker.worker_base"), (False, "vllm.worker.worker_base")],
    ids=["0.33.0", "0.9.2"],
)
def test_scheduler_and_worker_of_one_process_share_a_file(tmp_path: Path, preempts: bool, worker_module: str) -> None:
    write_engine(tmp_path, preempts=preempts, worker_module=worker_module)
    facts = run_in(
        tmp_path,
        f"""
from {worker_module} import WorkerWrapperBase
wrapper = WorkerWrapperBase()
assert wrapper.init_device() == "ready"
from vllm.v1.core.sched.scheduler import Scheduler
class AsyncScheduler(Scheduler):
    pass
scheduler = AsyncScheduler()
request = scheduler.add("a", 40, 50)
scheduler.hold(0, "a", own=4)
if {preempts}:
    scheduler._preempt_request(request)
for _ in range(300):
    assert scheduler.update_from_output() == "outputs"
    assert scheduler.reset_prefix_cache() is True
    time.sleep(0.005)
facts = file()
facts["same"] = facts["pid"] == os.getpid() == facts["instance"]
print(json.dumps(facts))
""",
    )
    assert (facts["role"], facts["engine"], facts["engine_version"]) == ("scheduler", "vllm", "0.33.0")
    assert (facts["model"], facts["tp"], facts["same"]) == ("a/model", 1, True)
    assert facts["memory"] == {"weights_bytes": 1}
    assert facts["scheduler"]["steps"] > 0
    assert facts["scheduler"]["used_blocks"] == 4
    assert facts["scheduler"].get("preemptions") == (1 if preempts else None)
    assert ("scheduler.preemptions" in facts["missing"]) is not preempts


def test_a_scheduler_whose_steps_can_no_longer_be_watched_is_missing(tmp_path: Path) -> None:
    write_engine(tmp_path, preempts=True, worker_module="vllm.v1.worker.worker_base")
    facts = run_in(
        tmp_path,
        """
import logging
logging.disable()
from vllm.v1.core.sched.scheduler import Scheduler
scheduler = Scheduler()
del scheduler.running
assert scheduler.update_from_output() == "outputs"
assert scheduler.update_from_output() == "outputs"
time.sleep(1.2)
print(json.dumps(file()))
""",
    )
    assert "scheduler" not in facts
    assert "AttributeError" in facts["missing"]["scheduler"]


def test_the_folder_is_found_as_a_plugin_and_can_be_laid_out_again(tmp_path: Path) -> None:
    for _ in range(2):
        lay_out(tmp_path)
    (found,) = distributions(path=[str(tmp_path)])
    assert found.metadata["Name"] == "kvgauge-agent"
    (point,) = found.entry_points
    assert (point.group, point.value) == ("vllm.general_plugins", "kvgauge_agent.vllm:register")
    assert not list(tmp_path.rglob("__pycache__"))
    # An installed kvgauge has the same entry point.
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"][point.group] == {point.name: point.value}


def test_the_bundle_is_written_by_a_command(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "kvgauge_agent.bundle", str(tmp_path / "there")], check=True)
    assert (tmp_path / "there" / "kvgauge_agent" / "vllm.py").exists()


def test_a_pool_of_one_allocation_is_not_summed_over_its_layers() -> None:
    old = SimpleNamespace(kv_cache_tensors=[FakeTensor(10), FakeTensor(20)])
    places = [SimpleNamespace(size=30, layer_stride=1), SimpleNamespace(size=30, layer_stride=1)]
    host = SimpleNamespace(size=99, layer_stride=1, host_resident=True)
    assert pool_bytes(old) == 30
    assert pool_bytes(SimpleNamespace(kv_cache_tensors=[*places, host])) == 30
    assert pool_bytes(SimpleNamespace(kv_cache_tensors=[])) is None
    assert pool_bytes(None) is None


class FakeWorker:
    """The GPU worker of 0.26: figures of the profile run on the worker, weights and pool on its model runner."""

    def __init__(self, runner: object, **figures: int) -> None:
        self.model_runner = runner
        self.__dict__.update(figures)


def test_what_the_worker_measured_at_its_start() -> None:
    class FakeRunner:
        model_memory_usage = 100
        kv_cache_config = SimpleNamespace(kv_cache_tensors=[FakeTensor(500)])

        def capture_model(self) -> int:
            return 33

    runner = FakeRunner()
    worker = FakeWorker(runner, peak_activation_memory=40, non_torch_memory=7, cudagraph_memory_estimate=30)
    part = WorkerPart(worker)
    assert part.collect()["missing"] == {"memory.graphs_bytes": "this version or set-up of vLLM does not keep it"}
    assert runner.capture_model() == 33
    assert part.collect() == {
        "memory": {
            "weights_bytes": 100,
            "kv_pool_bytes": 500,
            "activations_bytes": 40,
            "graphs_bytes": 33,
            "non_torch_bytes": 7,
        },
        "missing": {},
    }
    del worker
    assert part.collect() == {"missing": {"memory": "the worker has ended"}}
