"""What a container runs, told without running or guessing."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.cluster.injector.pods import Container
from kvgauge.cluster.injector.reading import EngineFacts, read_engine
from kvgauge.cluster.injector.words import MAX_SCRIPT_LENGTH, MAX_WORDS, commands_in, expanded, options_in, words_of


def facts(*command: str, image: str = "", env: dict[str, str] | None = None, **fields: object) -> EngineFacts:
    variables = [{"name": name, "value": value} for name, value in (env or {}).items()]
    return read_engine(
        Container.model_validate({"name": "x", "image": image, "command": list(command), "env": variables, **fields})
    )


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("--port=$(PORT)", "--port=8080"),
        ("$(PORT)$(PORT)", "80808080"),
        ("$$(PORT)", "$(PORT)"),
        ("$$$(PORT)", "$8080"),
        ("$(NOWHERE)", "$(NOWHERE)"),
        ("a$(SECRET)b", None),
        ("$(", "$("),
        ("$(PO$(PORT)RT)", "$(PO8080RT)"),
        ("$PORT", "$PORT"),
    ],
)
def test_references_as_the_kubelet_replaces_them(text: str, result: str | None) -> None:
    assert expanded(text, {"PORT": "8080", "SECRET": None}) == result


def test_a_reference_cannot_blow_up() -> None:
    assert expanded("$(A)" * 4000, {"A": "x" * 4000}) is None
    assert expanded("x" * (MAX_SCRIPT_LENGTH + 1), {}) is None
    assert len(words_of(["x"] * 100_000, [], {})) == MAX_WORDS


def commands(script: str, *shell: str) -> list[tuple[str | None, ...]]:
    return list(commands_in([*(shell or ("/bin/sh", "-c")), script]))


def test_scripts() -> None:
    assert commands("vllm serve x --port 1") == [("vllm", "serve", "x", "--port", "1")]
    assert commands("a b && c 'd e'; f | g & (h)") == [("a", "b"), ("c", "d e"), ("f",), ("g",), ("h",)]
    assert commands("A=1 B=2 vllm serve") == [("vllm", "serve")]
    assert commands("# vllm serve not-this\nvllm serve this # nor this") == [("vllm", "serve", "this")]
    assert commands("vllm serve \\\n  --port 1 \\\n  x > log 2>&1") == [("vllm", "serve", "--port", "1", "x", "2")]
    assert commands("vllm serve $MODEL `id` ~/x *.gguf a[1] {a,b}") == [("vllm", "serve", *[None] * 6)]
    assert commands("vllm serve $(cat model)")[0][:3] == ("vllm", "serve", None)


@pytest.mark.parametrize(
    "shell",
    [
        ("sh", "-c"),
        ("bash", "-lc"),
        ("/bin/bash", "-euxo", "pipefail", "-c"),
        ("bash", "-o", "pipefail", "-ec"),
        ("sh", "-c", "--"),
    ],
)
def test_shells(shell: Sequence[str]) -> None:
    assert commands("vllm serve", *shell) == [("vllm", "serve")]


@pytest.mark.parametrize(
    "script", ["cat <<EOF\nvllm serve x\nEOF", "echo 'a\nvllm serve x\n'", 'vllm serve "x', "x" * 20_000, "x\n" * 1000]
)
def test_what_is_more_than_plain_commands_is_not_read(script: str) -> None:
    assert commands(script) == []


def test_a_script_file_is_not_read() -> None:
    assert list(commands_in(["bash", "/start.sh", "-c", "vllm serve x"])) == []


def test_options() -> None:
    words = ["--a", "1", "--b=2", "-c", "--d_e", "x", "--f", "-1", "--g", None, "--h"]
    assert options_in(words) == {"--a": "1", "--b": "2", "-c": "", "--d-e": "x", "--f": "-1", "--g": None, "--h": ""}
    assert options_in(["--a", "1", "--a", "2"])["--a"] == "2"


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (["vllm", "serve", "m"], "vllm"),
        (["/opt/venv/bin/python3.12", "-u", "-m", "vllm.entrypoints.openai.api_server", "--model", "m"], "vllm"),
        (["numactl", "--interleave=all", "vllm", "serve", "m"], "vllm"),
        (["sh", "-c", "exec python3 -m sglang.launch_server --model-path m"], "sglang"),
        (["sglang", "serve", "--model-path", "m"], "sglang"),
        (["text-generation-launcher", "--model-id", "m"], "tgi"),
        (["mpirun", "-n", "2", "trtllm-serve", "m"], "tensorrt-llm"),
        (["python", "-m", "dynamo.sglang", "--model-path", "m"], "dynamo"),
        (["/app/llama-server", "-m", "m"], "llama.cpp"),
        (["lmdeploy", "serve", "api_server", "m"], "lmdeploy"),
        (["max", "serve", "--model", "m"], "max"),
    ],
)
def test_commands_of_engines(command: list[str], kind: str) -> None:
    found = facts(*command)
    assert (found.kind, found.model) == (kind, "m")


@pytest.mark.parametrize(
    "command",
    [
        ["transformers", "serve"],
        ["ollama", "serve"],
    ],
)
def test_commands_that_name_no_model(command: list[str]) -> None:
    assert facts(*command).kind == command[0]


@pytest.mark.parametrize(
    "command",
    [
        ["sh", "-c", "echo vllm serve m"],
        ["sh", "-c", "pip install vllm"],
        ["sh", "-c", "vllm serve a & sglang serve --model-path b"],
        ["vllm", "bench"],
        ["bash", "-c", "$RUN vllm serve m"],
    ],
)
def test_what_only_looks_like_an_engine(command: list[str]) -> None:
    found = facts(*command)
    assert (found.kind, found.model, found.settings) == (None, None, {})


def test_two_engines_of_one_kind_have_a_kind_only() -> None:
    found = facts("sh", "-c", "if a; then\nvllm serve a --port 1\nelse\nvllm serve b --port 2\nfi")
    assert (found.kind, found.model, found.port) == ("vllm", None, 8000) or found.kind is None


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        ("vllm/vllm-openai:v0.19.0", "vllm"),
        ("registry.example:5000/mirror/vllm-openai@sha256:" + "0" * 64, "vllm"),
        ("lmsysorg/sglang", "sglang"),
        ("registry.example/nim/meta/llama-3.1-8b-instruct:1.8", "nim"),
        ("registry.example/nvidia/ai-dynamo/vllm-runtime:0.7.0", "dynamo"),
        ("ollama/ollama", "ollama"),
        ("vllm.example/team/app:vllm", None),
        ("minim/app:1", None),
        ("", None),
        (":", None),
    ],
)
def test_images(image: str, kind: str | None) -> None:
    assert facts(image=image).kind == kind


def test_an_images_own_entry_point_takes_the_arguments() -> None:
    assert facts(image="vllm/vllm-openai", args=["m", "--port=1"]) == facts("vllm", "serve", "m", "--port", "1")
    assert facts(image="vllm/vllm-openai", args=["serve", "m"]) == facts("vllm", "serve", "m")
    # A script's arguments are the script's.
    assert facts("/start.sh", "--port=1", image="vllm/vllm-openai").port == 8000


def test_ports() -> None:
    assert facts("vllm", "serve", "m").port == 8000
    assert facts("vllm", "serve", "m", ports=[{"containerPort": 9000}]).port == 9000
    assert facts("vllm", "serve", "m", ports=[{"containerPort": 9000}, {"containerPort": 8000}]).port == 8000
    assert facts("vllm", "serve", "m", "--port", "$(P)", env={"P": "7000"}).port == 7000
    assert facts("sh", "-c", "vllm serve m --port $P", ports=[{"containerPort": 9000}]).port == 9000
    assert facts("vllm", "serve", "--port", "99999").port == 8000
    assert facts("llama-server", env={"LLAMA_ARG_PORT": "9001"}).port == 9001
    assert facts("ollama", "serve", env={"OLLAMA_HOST": "[::]:11500"}).port == 11500
    assert facts("ollama", "serve", env={"OLLAMA_HOST": "0.0.0.0"}).port == 11434
    assert facts("x", ports=[{"containerPort": 53, "protocol": "UDP"}, {"containerPort": 8443}]).port == 8443
    assert facts("x").port is None


def test_values_that_are_none() -> None:
    found = facts("vllm", "serve", "m", "--max-num-batched-tokens", "8k", "--max-num-seqs", "0", "-tp", "two")
    assert found.settings == {}
    assert facts("vllm", "serve", "m\n--engine=x").model is None
    assert facts("vllm", "serve", "$(M)").model is None
    assert facts("vllm", "serve", "--tensor-parallel-size", "2", "m").settings == {"tp": "2"}


def test_gpus() -> None:
    def limits(**values: object) -> int | None:
        return facts(
            "x", resources={"limits": {name.replace("__", "."): value for name, value in values.items()}}
        ).gpu_count

    assert limits(**{"nvidia.com/gpu": "2", "nvidia.com/gpumem": "3000"}) == 2
    assert limits(**{"nvidia.com/mig-1g.10gb": 1, "nvidia.com/mig-2g.20gb": "2"}) == 3
    assert limits(**{"nvidia.com/gpu": "1k"}) is None
    assert limits(cpu="1") is None
    assert facts("x", env={"NVIDIA_VISIBLE_DEVICES": "GPU-00000001, MIG-00000002"}).gpu_uuids == (
        "GPU-00000001",
        "MIG-00000002",
    )
    assert facts("x", env={"NVIDIA_VISIBLE_DEVICES": "all"}).gpu_uuids == ()
    assert facts("x", env={"NVIDIA_VISIBLE_DEVICES": "GPU-00000001,0"}).gpu_uuids == ()


@given(
    st.lists(st.text(max_size=40), max_size=6), st.text(max_size=30), st.dictionaries(st.text(max_size=5), st.text())
)
def test_nothing_that_is_said_can_break_it(command: list[str], image: str, env: dict[str, str]) -> None:
    for words in (command, ["sh", "-c", *command], ["vllm", "serve", *command]):
        found = facts(*words, image=image, env=env)
        assert found.port is None or 0 < found.port < 65536
        for text in (found.model, found.hub_cache, *found.settings.values()):
            assert text is None or text is True or (str(text).isprintable() and "$" not in str(text))
