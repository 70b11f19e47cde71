"""The accuracy page: its parts, its tables, and what is said where there is nothing to compare with."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from bench.accuracy import command as accuracy
from bench.accuracy.articles import ArticleFigure, recognised
from bench.accuracy.articles import section as articles_section
from bench.accuracy.configs import Library, config_of_facts, spread_layers
from bench.accuracy.models import Bytes, KnownModel, compare, with_layers_of
from bench.accuracy.models import section as models_section
from bench.accuracy.page import Section, paragraphs, percent, table, whole
from bench.accuracy.peers import PeerSize, peers_text, why_no_figure
from bench.accuracy.planner import Outcome
from bench.table import Figure

from kvmodel import read_architecture
from tests.model.known import LLAMA_8B, known_config

TOTALS = {length: 131072 * length for length in (8192, 131_072)}
KNOWN_LLAMA = KnownModel("some/llama", "gqa", Bytes(131072, 0, 0, 0, TOTALS), (("full", 32),), "published")


def test_tables_align_numbers_and_escape_bars() -> None:
    made = table(["name", ">size"], [["a|b", "1"]])
    assert made.splitlines() == ["| name | size |", "| --- | --: |", "| a\\|b | 1 |"]


def test_numbers() -> None:
    assert [whole(value) for value in (None, 1234567, 3850.25, 2.0)] == ["-", "1,234,567", "3,850.25", "2"]
    assert [percent(value) for value in (0, -0.00001, 0.0114, -0.5)] == ["0.00 %", "0.00 %", "+1.14 %", "-50.00 %"]


def test_the_page_holds_figures_first_and_peers_last() -> None:
    section = Section("Part", "Text.", (Figure("off", "B", 0, 0), Figure("worst", "%", 5, 7)))
    alone, whole_page = accuracy.page((section,), None), accuracy.page((section,), "Others.")
    assert "| off | 0 B | 0 B | met |\n| worst | 5 % | 7 % | missed |" in alone
    assert "scripts/bench accuracy --peers" in alone
    assert whole_page.endswith("## Peers side by side\n\nOthers.\n")
    assert accuracy.without_peers(whole_page) == alone == accuracy.without_peers(alone)


def test_without_vectors_one_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        accuracy.main(["--vectors", str(tmp_path / "nowhere")])
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert "kv_vectors.json is missing" in said.err


def test_a_row_that_is_met_exactly_and_one_that_is_not() -> None:
    exact = compare(KNOWN_LLAMA, "configs", LLAMA_8B)
    assert (exact.off, exact.reason) == (0, "")
    wrong = compare(KNOWN_LLAMA, "published_configs", {**LLAMA_8B, "num_hidden_layers": 31})
    assert wrong.off == 131_072 * 4096
    assert wrong.reason == "not explained"
    made = models_section([KNOWN_LLAMA], [exact, wrong])
    assert not made.figures[0].met
    assert "| some/llama | as published | 536,870,912 | not explained |" in made.text
    refused = compare(KNOWN_LLAMA, "configs", {"model_type": "never-heard-of"})
    assert refused.off is None
    assert refused.reason.startswith("refused: model_type")
    assert not models_section([KNOWN_LLAMA], [refused]).figures[0].met


def test_a_file_with_other_layers_than_the_row() -> None:
    config = {
        **known_config("google/gemma-3-27b-it"),
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
    }
    mended = with_layers_of(config, (("full", 2), ("swa", 2)))
    assert mended is not None
    read = read_architecture(mended)
    truth = Bytes(read.growth_bytes_per_token(), read.window_bytes_per_sequence(), 0, 0, {8: read.bytes_at(8)})
    found = compare(KnownModel("a/b", "swa", truth, (("full", 2), ("swa", 2)), ""), "configs", config)
    assert found.input_error
    assert found.reason == "the file lists 1 full + 3 other layers, the row 2 full + 2 swa; with those, exact"
    assert with_layers_of(LLAMA_8B, (("full", 31),)) is None


def test_outcomes_name_what_differs() -> None:
    same = Outcome("a/b", "", (("blocks", "1"),), (("blocks", "1"),))
    other = Outcome("a/b", "", (("blocks", "1"), ("bytes", "2")), (("blocks", "1"), ("bytes", "3")))
    refused = Outcome("a/b", "", (("error", "tp: 3 does not divide"),), (("blocks", "1"), ("bytes", "3")))
    assert [one.differs for one in (same, other, refused)] == ["", "bytes (theirs 3)", "tp: 3 does not divide"]


def test_full_layers_end_each_period() -> None:
    assert spread_layers(2, 6, "x") == ["x", "x", "full_attention"] * 2
    assert spread_layers(5, 34, "x").count("full_attention") == 5


def test_configs_from_facts() -> None:
    facts = {
        "hf_architecture": "Gemma3ForCausalLM",
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "hidden_size": 1152,
        "sliding_window": 512,
        "full_attention_layers": 1,
        "sliding_layers": 5,
        "notes": "anything",
    }
    config = config_of_facts(facts)
    assert config is not None
    read = read_architecture(config)
    assert read.growth_bytes_per_token() == 2 * 256 * 2
    assert read.window_bytes_per_sequence() == 5 * 512 * 2 * 256 * 2
    assert config_of_facts({"hf_architecture": "NeverHeardOf"}) is None


def test_a_library_prefers_what_was_published(tmp_path: Path) -> None:
    for folder in ("configs", "published_configs"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "some--model.json").write_text(f'{{"model_type": "{folder}"}}')
    (tmp_path / "published_configs" / "some--model.json").rename(tmp_path / "published_configs" / "its--base.json")
    library = Library(tmp_path, {"its/copy": {"architecture_of": "its/base"}})
    assert library.config("some/model") == {"model_type": "configs"}
    assert library.config("its/copy") == {"model_type": "published_configs"}
    assert library.config("no/model") is None
    assert library.architecture("some/model") is None


@pytest.mark.parametrize(
    ("printed", "size", "said"),
    [
        ("1.1 G", 1_073_610_752, "1.1 G: GB, rounded to the nearest"),
        ("about 36 GB", 36 * 2**30, "36 GB: GiB, exact"),
        ("131,072 bytes", 131_072, "131,072 bytes: exact"),
        ("35.2 GB", 34_355_544_064, "35.2 GB: not recognised"),
    ],
)
def test_printed_sizes(printed: str, size: int, said: str) -> None:
    figure = ArticleFigure("S0-1", "a cache", printed, {"bytes": size}, {"bytes": size})
    assert list(recognised(figure)) == [said]
    assert articles_section([figure]).figures[0].met


def test_an_article_s_figure_that_is_not_ours() -> None:
    missing = ArticleFigure("S0-9", "new", "1 GB", {"bytes": 1}, None)
    rounded = ArticleFigure("S0-1", "a cache", None, {"GB": 1.0736, "gpus": 3}, {"GB": 1.07361, "gpus": 4})
    assert missing.differs == ["bytes"]
    assert rounded.differs == ["gpus"]
    assert articles_section([missing, rounded]).figures[0].measured == 2


@pytest.mark.parametrize(
    ("config", "said", "why"),
    [
        (
            {"architectures": ["BertModel"]},
            "",
            "the class is neither a ...ForCausalLM nor a ...ForConditionalGeneration",
        ),
        (
            {"architectures": ["XForCausalLM"], "hidden_size": 1, "n_layer": 2},
            "",
            "the config has no num_hidden_layers",
        ),
        ({**LLAMA_8B}, "TypeError:  it\nfailed", "TypeError: it failed"),
        ({**LLAMA_8B}, "x" * 100, "x" * 90 + "..."),
    ],
)
def test_why_the_peer_gives_no_figure(config: Mapping[str, Any], said: str, why: str) -> None:
    assert why_no_figure(config, said).startswith(why)


def test_the_peers_text() -> None:
    comparisons = [compare(KNOWN_LLAMA, "configs", LLAMA_8B)]
    twice = {length: 3 * total for length, total in TOTALS.items()}
    text = peers_text([KNOWN_LLAMA], comparisons, {"some/llama": LLAMA_8B}, {"some/llama": PeerSize(twice, "")})
    assert "| 131,072 tokens | 1 | 0 | 0 | 0 | 1 | 1 |" in text
    assert "| some/llama | 17,179,869,184 | 17,179,869,184 | 51,539,607,552 | 3.000 | 3.000 |" in text
    assert "not measured by this command" in text


def test_paragraphs_leave_out_what_is_empty() -> None:
    assert paragraphs("a\n", "", " ", "b") == "a\n\nb"


def test_the_page_names_no_place_of_the_machine_it_was_made_on() -> None:
    text = accuracy.PAGE.read_text()
    assert not re.search(r"/(work|root|home|tmp)/|localhost|\bsession", text)
