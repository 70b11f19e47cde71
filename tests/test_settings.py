from pathlib import Path

import pytest

from kvgauge.complaints import InputError
from kvgauge.settings import Settings, load, to_toml


def settings(*arguments: str, environ: dict[str, str] | None = None) -> Settings:
    return load(arguments, environ or {})[0]


def complaint(*arguments: str, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(InputError) as error:
        load(arguments, environ or {})
    assert "\n" not in str(error.value)
    return str(error.value)


def test_defaults_are_those_of_the_contract() -> None:
    chosen = settings()
    assert (chosen.engine, chosen.engine_url, chosen.port, chosen.host) == (
        "auto",
        "http://127.0.0.1:8000",
        9838,
        "0.0.0.0",
    )
    assert (chosen.interval, chosen.stale_after, chosen.model) == (1.0, 5.0, None)


def test_flags_win_over_variables_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "kvgauge.toml"
    file.write_text('port = 1\nhost = "127.0.0.1"\ninterval = "2s"\n')
    chosen = settings("--port", "3", environ={"KVGAUGE_CONFIG": str(file), "KVGAUGE_PORT": "2", "KVGAUGE_HOST": "::1"})
    assert (chosen.port, chosen.host, chosen.interval) == (3, "::1", 2.0)
    assert settings("--config", str(file)).port == 1


@pytest.mark.parametrize(("text", "seconds"), [("1s", 1), ("500ms", 0.5), ("2m", 60), ("0.2s", 0.2), ("3", 3)])
def test_durations(text: str, seconds: float) -> None:
    chosen = settings("--interval", text) if seconds < 60 else None
    assert chosen is None or chosen.interval == seconds
    assert settings("--stale-after", text).stale_after in {seconds, 120}


def test_kubernetes_service_variables_are_not_ours() -> None:
    assert settings(environ={"KVGAUGE_PORT": "tcp://10.0.0.1:9838", "KVGAUGE_SERVICE_HOST": "10.0.0.1"}).port == 9838


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--port", "70000"], ["port", "70000"]),
        (["--port", "http"], ["port", "http"]),
        (["--interval", "soon"], ["interval", "soon"]),
        (["--interval", "0"], ["interval", "0"]),
        (["--interval", "nan"], ["interval", "nan"]),
        (["--stale-after", "1e9"], ["stale_after", "1e9"]),
        (["--engine", "triton3"], ["engine", "triton3", "vllm"]),
        (["--engine-url", "127.0.0.1:8000"], ["engine_url", "127.0.0.1:8000"]),
        (["--engine-url", "http://user:pw@127.0.0.1"], ["engine_url"]),
        (["--engine-url", "http://127.0.0.1:99999"], ["engine_url", "99999"]),
        (["--log-format", "xml"], ["log_format", "xml"]),
        (["--tp", "0"], ["tp", "0"]),
        (["--slo-tpot", "0s"], ["slo_tpot", "0"]),
        (["--slo-ttft", "2h"], ["slo_ttft", "2h"]),
        (["--nonsense"], ["--nonsense"]),
        (["--port"], ["--port"]),
        (["--config", "/nowhere/kvgauge.toml"], ["config", "/nowhere/kvgauge.toml"]),
    ],
)
def test_bad_flags_are_one_line_that_names_them(arguments: list[str], names: list[str]) -> None:
    line = complaint(*arguments)
    assert all(name in line for name in names), line


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("prot = 1", ["prot", "no such setting"]),
        ("port = 'x'", ["port", "x"]),
        ("port = [1]", ["port"]),
        ("port = ", ["config", "kvgauge.toml"]),
        ("\x00", ["config", "kvgauge.toml"]),
        ("[sidecar]\nport = 1", ["sidecar"]),
        ("x = " + "[" * 5000, ["config"]),
        ("# " + "x" * 1_100_000, ["config", "larger"]),
    ],
)
def test_bad_files_are_one_line_that_names_the_setting(tmp_path: Path, text: str, names: list[str]) -> None:
    file = tmp_path / "kvgauge.toml"
    file.write_text(text)
    line = complaint("--config", str(file))
    assert all(name in line for name in names), line


def test_a_bad_variable_names_the_setting() -> None:
    assert complaint(environ={"KVGAUGE_INTERVAL": "often"}).startswith("interval: ")


def test_the_printed_config_reads_back_and_hides_the_key(tmp_path: Path) -> None:
    chosen, print_config = load(["--print-config", "--model", 'a "b"', "--engine-api-key", "hush"], {})
    assert print_config
    text = to_toml(chosen)
    assert "hush" not in text
    assert "# engine_api_key is set" in text
    file = tmp_path / "kvgauge.toml"
    file.write_text(text)
    assert settings("--config", str(file)) == chosen.model_copy(update={"engine_api_key": None})


def test_a_wrong_key_is_not_repeated() -> None:
    file_free = complaint(environ={"KVGAUGE_ENGINE_API_KEY": "hush", "KVGAUGE_PORT": "-1"})
    assert "hush" not in file_free
