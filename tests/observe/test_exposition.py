import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from kvgauge.observe.exposition import MAX_LINE_BYTES, MAX_LINES, label, read_page, sample_names
from kvgauge.observe.records import SourceError

WANTED = {b"vllm:usage", b"vllm:info"}


def test_reads_only_what_was_asked_for() -> None:
    page = read_page(b'# HELP x y\nvllm:usage{a="b"} 0.5\nother{broken 1\n', WANTED)
    assert [(row.labels, row.value) for row in page.rows("vllm:usage")] == [({"a": "b"}, 0.5)]
    assert page.bad_lines == 0
    assert page.rows("other") == ()


@pytest.mark.parametrize(
    "bad",
    [
        b'vllm:usage{a="b} 1',
        b'vllm:usage{a="b"} -nan(ind)',
        b'vllm:usage{a="b"}',
        b"vllm:usage{a=b} 1",
        b"vllm:usage zero",
        b"vllm:usage",
    ],
)
def test_a_bad_line_is_lost_alone(bad: bytes) -> None:
    page = read_page(b'vllm:usage{a="1"} 1\n' + bad + b'\nvllm:usage{a="2"} 2\n', WANTED)
    assert [row.value for row in page.rows("vllm:usage")] == [1.0, 2.0]
    assert page.bad_lines == 1


def test_three_digit_exponents_timestamps_and_exemplars_are_read() -> None:
    page = read_page(
        b'vllm:usage{a="1"} 1.15e+011\nvllm:usage{a="2"} 2 1700000000000\nvllm:usage{a="3"} 3 # {id="x"} 1 2\n# EOF\n',
        WANTED,
    )
    assert [row.value for row in page.rows("vllm:usage")] == [1.15e11, 2.0, 3.0]


def test_a_line_of_a_megabyte_is_refused_and_counted() -> None:
    page = read_page(b'vllm:info{v="' + b"x" * 1_000_000 + b'"} 1\nvllm:usage 1\n', WANTED)
    assert page.bad_lines == 1
    assert len(page.rows("vllm:usage")) == 1
    assert MAX_LINE_BYTES < 1_000_000


def test_label_values_are_cut() -> None:
    page = read_page(b'vllm:info{v="' + b"x" * 1000 + b'"} 1\n', WANTED)
    value = label(page.rows("vllm:info")[0], "v")
    assert value is not None
    assert len(value) == 256


def test_pythons_none_is_no_value() -> None:
    page = read_page(b'vllm:info{v="None",w=""} 1\n', WANTED)
    row = page.rows("vllm:info")[0]
    assert label(row, "v") is None
    assert label(row, "w") is None
    assert label(row, "absent") is None


def test_too_many_lines_are_refused_quickly() -> None:
    body = b'vllm:usage{a="b"} 1\n' * 200_000
    began = time.process_time()
    with pytest.raises(SourceError) as refusal:
        read_page(body, WANTED)
    assert refusal.value.reason == "too_many_lines"
    assert str(MAX_LINES) in refusal.value.message
    assert time.process_time() - began < 1


def test_names_are_seen_without_parsing() -> None:
    assert list(sample_names(b"# TYPE a gauge\na{broken\nb 1\n")) == [b"a", b"b", b""]


@given(st.binary(max_size=400))
def test_no_page_raises_anything_else(body: bytes) -> None:
    read_page(b"vllm:usage{" + body, WANTED)


_NAMES = st.from_regex(r"[a-z_:][a-z0-9_:]{0,6}", fullmatch=True)
_PAIRS = st.tuples(st.from_regex(r"[a-z_]\w{0,3}", fullmatch=True), st.text(max_size=6).map(repr))
_VALUES = st.one_of(
    st.floats().map(repr),
    st.integers().map(str),
    st.sampled_from(["+Inf", "-Inf", "NaN", "1.5e+07", "1_0", "0x1", ".", ""]),
)


@given(_NAMES, st.lists(_PAIRS, max_size=3), _VALUES, st.sampled_from([" ", "  ", "\t", ""]))
def test_plain_lines_read_as_by_the_library(name: str, pairs: list[tuple[str, str]], value: str, gap: str) -> None:
    labels = ",".join(f'{key}="{quoted[1:-1]}"' for key, quoted in pairs)
    line = f"{name}{{{labels}}}{gap}{value}" if pairs else f"{name} {value}"
    try:
        expected = [sample for family in text_string_to_metric_families(line + "\n") for sample in family.samples]
    except ValueError:
        expected = []
    page = read_page(line.encode(), {name.encode()})
    assert [(each.name, each.labels, repr(float(each.value))) for each in page.rows(name)] == [
        (each.name, each.labels, repr(float(each.value))) for each in expected if each.name == name
    ]
