"""A real vLLM with the agent inside, delivered as the injector does it: a folder on PYTHONPATH."""

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from . import vllm_recorder
from .vllm_server import VllmServer

AGENT = Path(__file__).parents[2] / "agent"
Facts = Mapping[str, Any]


class AgentEngine(VllmServer):
    """`spool` is where the agents write; `plugins` are modules of the tests that run in the engine's processes too."""

    def __init__(
        self,
        python: Path,
        model: Path,
        folder: Path,
        *,
        plugins: Sequence[ModuleType] = (vllm_recorder,),
        arguments: Sequence[str] = (),
        tick_seconds: float | None = 0.002,
    ) -> None:
        super().__init__(python, model, folder)
        self.spool = folder / "spool"
        (folder / "spool-folder").mkdir()
        self.point_spool_to(folder / "spool-folder")
        self.log = folder / "vllm-1.log"
        self._extra = list(arguments)
        self._records = folder / "records"
        self._records.mkdir()
        self._tick_seconds = tick_seconds
        # First on the path, first among the plugins: what they change in the agent is changed before it runs.
        self._path = [*(install_plugin(folder / "plugins", module) for module in plugins), folder / "agent"]
        command = [sys.executable, "-m", "kvgauge_agent.bundle", str(folder / "agent")]
        subprocess.run(command, check=True, env={"PYTHONPATH": str(AGENT)})

    def point_spool_to(self, target: Path) -> None:
        """Has the spool's path lead somewhere else, from one moment to the next."""
        link = self.spool.with_name("new-link")
        link.symlink_to(target)
        link.replace(self.spool)

    def files(self) -> list[Facts]:
        """The agents' files now."""
        return [json.loads(path.read_bytes()) for path in self.spool.glob("*.json")]

    def file(self, role: str) -> Facts:
        """The one file of a role. Raises AssertionError where there is none, or more."""
        found = [facts for facts in self.files() if facts["role"] == role]
        assert len(found) == 1, f"{len(found)} files of a {role}"
        return found[0]

    def scheduler_file(self) -> Facts:
        return self.file("scheduler")

    def settled_file(self) -> Facts:
        """The scheduler's file once it describes an idle engine, every block counted."""
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            with contextlib.suppress(AssertionError):
                facts = self.scheduler_file()
                part = facts["scheduler"]
                ages = (part["reading_age_seconds"], part["cached_blocks_age_seconds"])
                if (
                    ages == (0, 0)
                    and part["running"] + part["waiting"] == 0
                    and (part["steps"] == 0 or self.last_steps() == part["steps"])
                ):
                    return facts
            time.sleep(0.05)
        raise AssertionError(f"the scheduler's file does not settle: {self.files()}")

    def records(self) -> list[Facts]:
        """What the recorder counted at each step of the scheduler, in order."""
        return [json.loads(line) for line in self._record_lines()]

    def record(self, steps: int) -> Facts | None:
        """What the recorder counted at one step."""
        # Thousands of lines are not taken apart for one: each look at a running engine counts.
        lines = (line for line in reversed(self._record_lines()) if f'"steps": {steps},' in line)
        return next((record for record in map(json.loads, lines) if record["steps"] == steps), None)

    def last_steps(self) -> int:
        """The step that the recorder counted last."""
        return int(json.loads(self._record_lines()[-1])["steps"])

    def _record_lines(self) -> list[str]:
        lines = [line for path in self._records.glob("*.jsonl") for line in path.read_text().splitlines()]
        return [line for line in lines if line.endswith("}")]

    def watched(self, keep_on: Iterator[bool]) -> dict[int, Facts]:
        """Every reading of the scheduler's that could be seen while `keep_on` says so, by its step."""
        seen: dict[int, Facts] = {}
        while next(keep_on):
            with contextlib.suppress(AssertionError, FileNotFoundError):
                part = self.scheduler_file().get("scheduler", {"steps": 0})
                seen[part["steps"]] = part
            time.sleep(0.002)
        return seen

    def _arguments(self) -> list[str]:
        return [*super()._arguments(), *self._extra]

    def _environment(self) -> dict[str, str]:
        environment = super()._environment() | {
            "PYTHONPATH": ":".join(map(str, self._path)),
            "KVGAUGE_SPOOL": str(self.spool),
            "KVGAUGE_TEST_RECORD": str(self._records),
        }
        if self._tick_seconds is not None:
            environment["KVGAUGE_TEST_TICK_SECONDS"] = str(self._tick_seconds)
        return environment


def install_plugin(folder: Path, module: ModuleType) -> Path:
    """Puts a module of the tests where vLLM finds it as a plugin; returns the folder for PYTHONPATH."""
    assert module.__file__ is not None
    name = module.__name__.rpartition(".")[2]
    information = folder / f"{name}-1.dist-info"
    information.mkdir(parents=True)
    shutil.copy(module.__file__, folder)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (information / "entry_points.txt").write_text(f"[vllm.general_plugins]\n{name} = {module.ENTRY_POINT}\n")
    return folder


def write_hybrid_model(folder: Path, window: int) -> None:
    """Makes a Gemma-3 of a tiny Llama's folder: five layers with a window for each without. It has no weights."""
    shape = json.loads((folder / "config.json").read_text())
    (folder / "model.safetensors").unlink()
    kept = ("dtype", "vocab_size", "rms_norm_eps", "bos_token_id", "eos_token_id", "max_position_embeddings")
    config = {
        **{key: shape[key] for key in kept},
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 12,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": window,
        "sliding_window_pattern": 6,
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 2,
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "tie_word_embeddings": True,
        "attention_bias": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
