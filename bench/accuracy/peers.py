"""The same models through other estimators: hf-mem run here, others as they are reported."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.accuracy.configs import Config, Library
from bench.accuracy.models import Comparison, KnownModel
from bench.accuracy.page import paragraphs, table, whole

HF_MEM_VERSION = "0.5.6"
LENGTHS = (8192, 131_072)
TITLE = "Peers side by side"
_CLASSES = ("ForCausalLM", "ForConditionalGeneration")
_NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads")
_WITHIN = 0.005


@dataclass(frozen=True, slots=True)
class PeerSize:
    """One model through the peer: bytes by length, None where it gives no figure."""

    sizes: Mapping[int, int | None]
    why: str


def peer_python(version: str = HF_MEM_VERSION) -> Path:
    """The Python of an environment outside the project with this hf-mem in it, made where it is missing."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvgauge" / f"hf-mem-{version}"
    python = home / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    check = "import importlib.metadata as m, sys; sys.exit(m.version('hf-mem') != sys.argv[1])"
    if subprocess.run([str(python), "-c", check, version], stderr=subprocess.DEVNULL, check=False).returncode:
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-qq", f"hf-mem=={version}"]
        subprocess.run(pip, check=True)
    return python


def peer_configs(models: Sequence[KnownModel], library: Library) -> dict[str, Config]:
    """The config that each model is run with: as published if at hand, else written out in full.

    hf-mem wants a class name, which some of the latter leave out: they get one.
    """
    found: dict[str, Config] = {}
    for model in models:
        config = library.file("published_configs", model.id) or library.file("configs", model.id)
        if config is not None:
            found[model.id] = config if config.get("architectures") else {**config, "architectures": ["ForCausalLM"]}
    return found


def run_hf_mem(configs: Mapping[str, Config]) -> dict[str, PeerSize]:
    """hf-mem's figures for all models. Raises CalledProcessError where it cannot be installed or run."""
    driver = Path(__file__).with_name("peer_hf_mem.py")
    answer = subprocess.run(
        [str(peer_python()), str(driver)],
        input=json.dumps({"configs": configs, "lengths": LENGTHS}),
        capture_output=True,
        text=True,
        check=True,
    )
    return {
        model: PeerSize({int(length): size for length, size in row["bytes"].items()}, row["why"])
        for model, row in json.loads(answer.stdout).items()
    }


def why_no_figure(config: Config, said: str) -> str:
    """Why hf-mem gives none: from what it looks for in a config, else in its own words."""
    names = config.get("architectures") or []
    if not any(part in name for name in names for part in _CLASSES):
        return "the class is neither a ...ForCausalLM nor a ...ForConditionalGeneration"
    nested = "text_config" in config and any("ForConditionalGeneration" in name for name in names)
    text = config["text_config"] if nested else config
    missing = [name for name in _NEEDED if name not in text]
    if missing:
        return f"the config has no {', '.join(missing)}"
    words = " ".join(said.split())
    return words if len(words) <= 90 else f"{words[:90]}..."


def peers_text(
    models: Sequence[KnownModel],
    comparisons: Sequence[Comparison],
    configs: Mapping[str, Config],
    peer: Mapping[str, PeerSize],
) -> str:
    """The section on peers: hf-mem measured, others reported."""
    ours = {one.model.id: one for one in reversed(comparisons)}
    rows = []
    for model in models:
        if model.id in configs:
            size, mine = peer[model.id], ours[model.id].ours
            rows.append(_row(model, size, configs[model.id], None if mine is None else mine.totals))
    ran = [model for model in models if model.id in configs and peer[model.id].sizes[LENGTHS[-1]] is not None]
    left_out = [model.id for model in models if model.id not in configs]
    summary = [_summary(length, ran, peer, ours) for length in LENGTHS]
    return paragraphs(
        f"hf-mem {HF_MEM_VERSION} (PyPI), installed by this command into an environment of its own and run on the "
        "same configs. It takes a model's name and fetches config and headers from a model hub; here its two fetching "
        "functions hand it the local config and the header of one small tensor, and everything it makes of them is "
        "its own. It is asked for a cache in 16 bits, one sequence. It counts window layers of mixed models at full "
        "length on purpose, as an upper bound, and knows K and V only, no state. Models without a list of class names "
        "in their file get one, since hf-mem asks for it. `ratio` is its figure over the truth.",
        f"Run on {len(configs)} models; {len(ran)} got a figure. Without any config, so not run: "
        f"{', '.join(left_out) or 'none'}.",
        table(["at", ">models", ">hf-mem exact", ">within 0.5 %", ">too low", ">over twice", ">ours exact"], summary),
        table(
            [
                "model",
                f">truth at {LENGTHS[-1]:,}, B",
                ">ours",
                ">hf-mem",
                f">ratio at {LENGTHS[-1]:,}",
                f">ratio at {LENGTHS[0]:,}",
                "why no figure",
            ],
            rows,
        ),
        _REPORTED,
    )


def _ratio(size: int | None, truth: float) -> str:
    return "-" if size is None or not truth else f"{size / truth:.3f}"


def _row(model: KnownModel, peer: PeerSize, config: Config, ours: Mapping[int, float] | None) -> list[str]:
    longest, shorter = LENGTHS[-1], LENGTHS[0]
    truth = model.truth.totals
    size = peer.sizes[longest]
    return [
        model.id,
        whole(truth[longest]),
        "-" if ours is None else whole(ours[longest]),
        whole(size),
        _ratio(size, truth[longest]),
        _ratio(peer.sizes[shorter], truth[shorter]),
        why_no_figure(config, peer.why) if size is None else "",
    ]


def _summary(
    length: int, ran: Sequence[KnownModel], peer: Mapping[str, PeerSize], ours: Mapping[str, Comparison]
) -> list[str]:
    ratios = [(peer[model.id].sizes[length] or 0) / model.truth.totals[length] for model in ran]
    mine = [ours[model.id].ours for model in ran]
    return [
        f"{length:,} tokens",
        str(len(ran)),
        str(sum(ratio == 1 for ratio in ratios)),
        str(sum(abs(ratio - 1) <= _WITHIN for ratio in ratios)),
        str(sum(ratio < 1 - _WITHIN for ratio in ratios)),
        str(sum(ratio > 2 for ratio in ratios)),
        str(
            sum(
                own is not None and own.totals[length] == model.truth.totals[length]
                for own, model in zip(mine, ran, strict=True)
            )
        ),
    ]


_REPORTED = """
Reported by others, not measured by this command:

- llm-d-planner states a mean error of 0.89 % on weights and 0.34 % on the KV pool over 57 runs of vLLM
  (llm-d-incubation/llm-d-planner, pull request 205). Its predictions published before it took those runs' activation
  sizes as constants were compared with 34 of the start-ups: 8.15 % mean error, 21 within 5 %.
- AIConfigurator states its estimates within 2 % or one sequence on 72 points of TensorRT-LLM (issue 652 of its
  repository).
"""
