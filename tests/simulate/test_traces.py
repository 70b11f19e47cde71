"""Recorded traces: every public form, copies and cuts, and one line for whatever is no trace."""

import gzip
import io
import json
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kvgauge.complaints import InputError
from kvgauge.simulate.spec import Request
from kvgauge.simulate.trace_file import MAX_LINE_CHARACTERS
from kvgauge.simulate.traces import MAX_TOKENS, Trace, read_trace

PLAIN = "t_s,prompt_tokens,output_tokens\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens"
BURST_GPT = "Model,Request tokens,Response tokens,Total tokens,Log Type\n"
in_one_folder = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
fuzzed = settings(in_one_folder, max_examples=500)


def _read(folder: Path, body: str | bytes, name: str = "trace.csv", **how: float) -> Trace:
    path = folder / name
    path.write_bytes(body.encode() if isinstance(body, str) else body)
    return read_trace(path, **how)  # type: ignore[arg-type]


def _plain(rows: list[tuple[float, int, int]]) -> str:
    return PLAIN + "".join(f"{at!r},{prompt},{output}\n" for at, prompt, output in rows)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (PLAIN + "0.5,10,1\n2,20,2\n", [(0.0, 10, 1), (1.5, 20, 2)]),
        (
            # Azure 2023 writes seven digits and a line end of its own.
            f"{AZURE}\r\n2023-11-16 18:15:59.6805900,3,4\r\n2023-11-16 18:16:00.93059,5,6",
            [(0.0, 3, 4), (1.25, 5, 6)],
        ),
        (
            f"{AZURE}\n2024-05-10 00:00:00+00:00,7,8\n2024-05-10T02:00:01+02:00,9,10\n",
            [(0.0, 7, 8), (1.0, 9, 10)],
        ),
        (
            f"Timestamp,{BURST_GPT}5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,1087,230,1317,API log\n",
            [(0.0, 472, 18), (40.0, 1087, 230)],
        ),
        (f"Timestamp,Session ID,Elapsed time,{BURST_GPT}5,a-b,1.5,GPT-4,472,18,490,API log\n", [(0.0, 472, 18)]),
        ("request_id,timestamp,input_tokens,output_tokens\n0,0.25,3,4\n1,0.5,5,6\n", [(0.0, 3, 4), (0.25, 5, 6)]),
        ("arrived_at,num_prefill_tokens,num_decode_tokens\n1,3,4\n", [(0.0, 3, 4)]),
        ("request_id,arrival_timestamp,prompt_size,token_size\n0,1,3,4\n", [(0.0, 3, 4)]),
        ("timestamp_ms;prompt_tokens;output_tokens\n250;3;4\n500;5;6\n", [(0.0, 3, 4), (0.25, 5, 6)]),
        ("\ufeff\n\nt_s,prompt_tokens,output_tokens\n\n0,374.0, 44 \n", [(0.0, 374, 44)]),
    ],
)
def test_reads_the_public_forms(tmp_path: Path, body: str, expected: list[tuple[float, int, int]]) -> None:
    trace = _read(tmp_path, body)
    found = [(one.arrival_seconds, one.prompt_tokens, one.output_tokens) for one in trace.requests()]
    assert [one[1:] for one in found] == [one[1:] for one in expected]
    assert [one[0] for one in found] == pytest.approx([one[0] for one in expected], abs=1e-6)
    assert trace.duration_seconds == found[-1][0]
    assert trace.warnings == ()


def test_reads_mooncake_in_milliseconds_with_blocks_of_512(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 3000, "input_length": 1000, "output_length": 5, "hash_ids": [46, 47]},
        {"timestamp": 4500, "input_length": 1500, "output_length": 6, "hash_ids": [46, 47, 48]},
    ]
    trace = _read(tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "trace.jsonl")
    assert list(trace.requests()) == [Request(0.0, 1000, 5, (46, 47), 512), Request(1.5, 1500, 6, (46, 47, 48), 512)]


def test_reads_qwen_bailian_in_seconds_with_blocks_of_16(tmp_path: Path) -> None:
    row = {"chat_id": 159, "parent_chat_id": -1, "timestamp": 61.1, "input_length": 33, "output_length": 132}
    later = row | {"timestamp": 61.6, "parent_chat_id": 159, "hash_ids": [1, 2, 9]}
    body = json.dumps(row | {"hash_ids": [1, 2, 3]}) + "\n\n" + json.dumps(later) + "\n"
    first, second = _read(tmp_path, body, "trace.jsonl").requests()
    assert first == Request(0.0, 33, 132, (1, 2, 3), 16)
    assert second.arrival_seconds == pytest.approx(0.5)
    assert second.prefix_blocks == (1, 2, 9)


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ("0-2", (0, 1, 2)),
        ("7", (7,)),
        ("5-6 9", (5, 6, 9)),
        ('"[5, 6, 9]"', (5, 6, 9)),
        ('"5,6,9"', (5, 6, 9)),
        ("", ()),
        ("[]", ()),
    ],
)
def test_reads_block_ids_of_a_csv(tmp_path: Path, blocks: str, expected: tuple[int, ...]) -> None:
    trace = _read(tmp_path, f"t_s,prompt_tokens,output_tokens,hits,block_ids_512\n0,1500,4,0,{blocks}\n")
    assert trace.recorded == (Request(0.0, 1500, 4, expected, 512),)
    assert trace.warnings == ()


def test_blocks_end_with_the_prompt_however_many_are_named(tmp_path: Path) -> None:
    trace = _read(tmp_path, "t_s,prompt_tokens,output_tokens,block_ids_64\n0,100,4,5-999999999999999\n1,100,4,5-6\n")
    assert [one.prefix_blocks for one in trace.requests()] == [(5, 6), (5, 6)]
    assert trace.recorded[0].prefix_block_tokens == 64
    assert trace.warnings == ("1 rows name more prefix blocks than their prompt has; the rest is left out",)


def test_gzip_is_read_whatever_its_name(tmp_path: Path) -> None:
    body = gzip.compress((PLAIN + "0,1,2\n").encode())
    assert _read(tmp_path, body, "trace.csv").recorded == _read(tmp_path, body, "trace.csv.gz").recorded
    assert _read(tmp_path, body).recorded == (Request(0.0, 1, 2),)


def test_odd_rows_are_mended_and_named(tmp_path: Path) -> None:
    trace = _read(tmp_path, PLAIN + "2000,1,1\n1990,2,0\n1000,3,3\n1000.5,0,0\n")
    assert [(one.arrival_seconds, one.prompt_tokens) for one in trace.requests()] == [(0.0, 3), (1000.0, 1)]
    assert trace.warnings == (
        "2 rows without output tokens are left out",
        "1 rows come before an earlier one; sorted by arrival",
        "no request for 1000 seconds from second 0 on, the longest gap",
    )


def test_the_cut_counts_from_the_earliest_arrival(tmp_path: Path) -> None:
    body = _plain([(100.0, 1, 1), (90.0, 2, 1), (104.0, 3, 1), (110.0, 4, 1), (99.0, 5, 1)])
    trace = _read(tmp_path, body, duration_seconds=15.0)
    assert [(one.arrival_seconds, one.prompt_tokens) for one in trace.requests()] == [
        (0.0, 2),
        (9.0, 5),
        (10.0, 1),
        (14.0, 3),
    ]
    assert trace.duration_seconds == 15.0
    assert _read(tmp_path, body, duration_seconds=60.0).duration_seconds == 20.0


def test_what_lies_far_behind_the_cut_is_not_read(tmp_path: Path) -> None:
    rows = [(0.0, 1, 1), (5.0, 1, 1), (700.0, 1, 1)]
    trace = _read(tmp_path, _plain(rows) + "701,never,read\n", duration_seconds=10.0)
    assert len(trace.recorded) == 2
    assert trace.duration_seconds == 10.0
    with pytest.raises(InputError, match="never"):
        _read(tmp_path, _plain(rows) + "701,never,read\n")


row_lists = st.lists(st.tuples(st.floats(0, 1000), st.integers(1, 5000), st.integers(1, 500)), min_size=1, max_size=60)


@in_one_folder
@given(rows=row_lists)
def test_as_recorded_nothing_is_lost_or_changed(tmp_path: Path, rows: list[tuple[float, int, int]]) -> None:
    trace = _read(tmp_path, _plain(rows))
    first = min(row[0] for row in rows)
    assert [(one.arrival_seconds, one.prompt_tokens, one.output_tokens) for one in trace.requests()] == [
        (at - first, prompt, output) for at, prompt, output in sorted(rows, key=lambda row: row[0])
    ]


@in_one_folder
@given(rows=row_lists, scale=st.integers(2, 5), seed=st.integers(0, 1000))
def test_whole_copies_keep_the_recorded_and_add_close_by(
    tmp_path: Path, rows: list[tuple[float, int, int]], scale: int, seed: int
) -> None:
    plain = _read(tmp_path, _plain(rows))
    scaled = _read(tmp_path, _plain(rows), scale=scale, seed=seed)
    assert len(scaled.recorded) == scale * len(rows)
    assert scaled == read_trace(tmp_path / "trace.csv", scale=scale, seed=seed)
    arrivals = [one.arrival_seconds for one in scaled.requests()]
    assert arrivals == sorted(arrivals)
    assert not Counter(plain.recorded) - Counter(scaled.recorded)
    # Up to any moment: at least the recorded, and no copy before its original or more than a second after it.
    for moment in arrivals:
        before = sum(one.arrival_seconds <= moment for one in plain.requests())
        assert sum(at <= moment for at in arrivals) <= scale * before
        assert sum(at <= moment + 1 for at in arrivals) >= scale * before
    lengths = {(one.prompt_tokens, one.output_tokens) for one in plain.requests()}
    assert {(one.prompt_tokens, one.output_tokens) for one in scaled.requests()} <= lengths
    assert plain.duration_seconds <= scaled.duration_seconds <= plain.duration_seconds + 1


@pytest.mark.parametrize("scale", [0.25, 0.6, 1.5, 2.75])
def test_fractions_come_as_often_as_they_say(tmp_path: Path, scale: float) -> None:
    rows = [(0.01 * index, 1 + index % 700, 1 + index % 300) for index in range(10_000)]
    scaled = _read(tmp_path, _plain(rows), scale=scale, seed=3)
    # Six standard deviations of a binomial count.
    assert abs(len(scaled.recorded) - scale * 10_000) < 6 * (10_000 * 0.25) ** 0.5
    mean = sum(one.prompt_tokens for one in scaled.requests()) / len(scaled.recorded)
    assert mean == pytest.approx(350.5, rel=0.05)
    assert scaled.recorded != _read(tmp_path, _plain(rows), scale=scale, seed=4).recorded


def test_copies_keep_a_burst_a_burst(tmp_path: Path) -> None:
    burst = [(600.0 * which + 0.1 * index, 100, 10) for which in range(3) for index in range(50)]
    scaled = _read(tmp_path, _plain(burst), scale=4)
    within = Counter(int(one.arrival_seconds // 600) for one in scaled.requests() if one.arrival_seconds % 600 < 6)
    assert within == {0: 200, 1: 200, 2: 200}


def test_a_copy_shares_blocks_only_with_its_own_kind(tmp_path: Path) -> None:
    body = "t_s,prompt_tokens,output_tokens,block_ids_512\n0,1024,1,0-1\n100,1536,2,0-1 7\n"
    scaled = _read(tmp_path, body, scale=3)
    early = sorted(one.prefix_blocks for one in scaled.requests() if one.arrival_seconds < 50)
    late = sorted(one.prefix_blocks for one in scaled.requests() if one.arrival_seconds > 50)
    assert early == [(0, 1), (8, 9), (16, 17)]
    assert late == [(0, 1, 7), (8, 9, 15), (16, 17, 23)]


def test_a_shorter_cut_is_the_beginning_of_a_longer_one(tmp_path: Path) -> None:
    body = _plain([(float(index), 1 + index, 1) for index in range(300)])
    long, short = (_read(tmp_path, body, scale=2.5, duration_seconds=cut) for cut in (300.0, 200.0))
    begin = [one for one in long.requests() if one.arrival_seconds < 180]
    assert begin == [one for one in short.requests() if one.arrival_seconds < 180]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "empty"),
        ("\n \n", "empty"),
        (PLAIN, "no requests in it"),
        (PLAIN + "0,5,0\n", "no requests in it"),
        ("t_s,prompt_tokens\n0,1\n", "no column of outputs (output_tokens, "),
        ("0,5,5\n1,5,5\n", "no column of arrivals"),
        (PLAIN + "0,1,1\n1,0,1\n", "row 3, column 'prompt_tokens': should be at least 1, not '0'"),
        (PLAIN + "0,1,1\n1,-5,1\n", "row 3, column 'prompt_tokens': should be from 1 to 10000000, not '-5'"),
        (PLAIN + "0,1,-1\n", "row 2, column 'output_tokens': should be from 1 to 10000000, not '-1'"),
        (
            PLAIN + f"0,{MAX_TOKENS + 1},1\n",
            "row 2, column 'prompt_tokens': should be from 1 to 10000000, not '10000001'",
        ),
        (PLAIN + "0,1.5,1\n", "row 2, column 'prompt_tokens': should be a whole number, not '1.5'"),
        (PLAIN + "0,many,1\n", "row 2, column 'prompt_tokens': should be a number, not 'many'"),
        (PLAIN + "0,1_0,1\n", "row 2, column 'prompt_tokens': should be a number, not '1_0'"),
        (PLAIN + "0,,1\n", "row 2, column 'prompt_tokens': should be a number, not ''"),
        (PLAIN + "0,nan,1\n", "row 2, column 'prompt_tokens': should be a number, not 'nan'"),
        (PLAIN + "soon,1,1\n", "row 2, column 't_s': should be a number or a date and time, not 'soon'"),
        (PLAIN + "inf,1,1\n", "row 2, column 't_s': should be a number or a date and time, not 'inf'"),
        (PLAIN + "1700000000000,1,1\n", "row 2, column 't_s': should be a time in seconds (milliseconds in a column"),
        (PLAIN + "0,1,1\n9e8,1,1\n", "spans 9e+08 seconds, more than ten years"),
        (PLAIN + "0,1,1\n5,1\n", "row 3: no value in column 'output_tokens'"),
        (PLAIN + "0,1," + "1" * MAX_LINE_CHARACTERS, "row 2: longer than 1048576 characters"),
        (PLAIN + '0,1,"' + "1\n" * 200_000, "field larger than field limit"),
        ("t_s,prompt_tokens,output_tokens,block_ids_512\n0,5,5,9-3\n", "ranges upwards, not '9-3'"),
        ("t_s,prompt_tokens,output_tokens,block_ids_512\n0,5,5,-3\n", "column 'block_ids_512': should be block ids"),
        ('{"timestamp": 0, "input_length": 5}\n', "no column of outputs"),
        (
            '{"timestamp": 0, "input_length": 5, "output_length": 1}\n{"timestamp": 1, "input_length": 5}\n',
            "row 2: no value in column 'output_length'",
        ),
        ('{"timestamp": 0, "input_length": 5, "output_length": true}\n', "should be a number, not True"),
        ('{"timestamp": 0, "input_length": 5, "output_length": null}\n', "should be a number, not None"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 1}\n[1]\n', "row 2: not a JSON object: '[1]'"),
        ('{"timestamp": 0, "input_len\n', "row 1: not a JSON object"),
        ("{" + '"a":[' * 100_000 + "\n", "row 1: not a JSON object"),
        (
            '{"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": ["a"]}\n',
            "row 1, column 'hash_ids': should be a list of block ids, not a value of type list",
        ),
        (b"\xff\xfe" + PLAIN.encode("utf-16-le"), "not a text file"),
        (b"\x00" * 3_000_000, "row 1: longer than 1048576 characters"),
        (b"\x1f\x8b\x08\x00 garbage that is no gzip", "broken gzip file"),
        (gzip.compress((PLAIN + "0,1,1\n" * 5000).encode())[:-20], "broken gzip file"),
        (gzip.compress(PLAIN.encode()) + b"more", "broken gzip file"),
        (gzip.compress(b"0" * 50_000_000), "row 1: longer than 1048576 characters"),
    ],
)
def test_bad_input_is_one_line_with_row_column_and_value(tmp_path: Path, body: str | bytes, message: str) -> None:
    with pytest.raises(InputError) as caught:
        _read(tmp_path, body)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"trace: {tmp_path / 'trace.csv'}: ")
    assert len(str(caught.value).splitlines()) == 1


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "none.csv", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (Path("with\0nul"), "embedded null byte"),
        (Path("\ud800"), "surrogates not allowed"),
    ):
        with pytest.raises(InputError, match=message):
            read_trace(path)
    with pytest.raises(InputError, match=r"trace\.csv\.gz: not a gzip file"):
        _read(tmp_path, PLAIN + "0,1,1\n", "trace.csv.gz")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"scale": 0.0}, "scale: should be above 0 and at most 1000, not 0.0"),
        ({"scale": -1.0}, "scale: should be above 0"),
        ({"scale": float("nan")}, "scale: should be above 0"),
        ({"scale": 1001.0}, "scale: should be above 0"),
        ({"scale": 1e-9}, "scale: 1e-09 leaves none of 2 requests"),
        ({"duration_seconds": 0.0}, "duration: should be above 0 seconds, not 0.0"),
        ({"duration_seconds": float("inf")}, "duration: should be above 0 seconds"),
    ],
)
def test_refuses_a_scale_or_cut_that_cannot_be(tmp_path: Path, how: dict[str, float], message: str) -> None:
    with pytest.raises(InputError) as caught:
        _read(tmp_path, PLAIN + "0,1,1\n1,1,1\n", "trace.csv", **how)
    assert message in str(caught.value)


def test_refuses_more_requests_than_can_be_kept(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="scale: 1000 x 5001 requests are more than 5000000; cut the duration"):
        _read(tmp_path, PLAIN + "0,1,1\n" * 5001, scale=1000.0)


HEADS = (
    b"t_s,prompt_tokens,output_tokens,block_ids_512\n",
    b"TIMESTAMP,ContextTokens,GeneratedTokens\n",
    b'{"timestamp": 1, "input_length": 2, "output_length": 3, "hash_ids": [1]}\n',
    b"",
)
FIELDS = st.one_of(
    st.integers(-5, 10**20).map(str),
    st.floats().map(repr),
    st.sampled_from(
        ["0-78", "1-2 5", "[1,2]", '"', "'", "{", "2023-11-16 18:15:46.68", "0001-01-01", "9999-12-31", ""]
    ),
    st.dates().map(str),
    st.datetimes(timezones=st.timezones()).map(str),
    st.text(max_size=8),
)
LINES = st.lists(FIELDS, max_size=6).map(",".join)
ODD_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["timestamp", "input_length", "output_length", "hash_ids", ""]), inner),
    ),
    max_leaves=8,
).map(json.dumps)


def _bodies() -> Iterator[st.SearchStrategy[bytes]]:
    for head in HEADS:
        for rest in (
            st.binary(max_size=200),
            st.lists(LINES, max_size=6).map(lambda lines: "\n".join(lines).encode(errors="replace")),
            st.lists(ODD_JSON, max_size=6).map(lambda lines: "\n".join(lines).encode(errors="replace")),
        ):
            yield rest.map(lambda text, head=head: head + text)  # type: ignore[misc]


@fuzzed
@given(
    body=st.one_of(*_bodies()),
    zipped=st.booleans(),
    cut=st.integers(0, 400),
    scale=st.sampled_from([0.5, 1.0, 2.5]),
    duration=st.sampled_from([None, 10.0]),
)
@example(PLAIN.encode() + b"0001-01-01T00:00:00+14:00,1,1\n9999-12-31T23:59:59-14:00,1,1\n", False, 400, 1.0, None)
def test_anything_else_is_a_trace_or_one_line(
    tmp_path: Path, body: bytes, zipped: bool, cut: int, scale: float, duration: float | None
) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes((gzip.compress(body) if zipped else body)[:cut])
    try:
        trace = read_trace(path, scale=scale, duration_seconds=duration)
    except InputError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017
        return
    arrivals = [one.arrival_seconds for one in trace.requests()]
    assert arrivals
    assert arrivals[0] >= 0
    assert all(before <= after for before, after in pairwise(arrivals))
    assert arrivals[-1] <= trace.duration_seconds


def test_a_day_of_requests_is_read_in_seconds(tmp_path: Path) -> None:
    text = io.StringIO()
    text.write(PLAIN)
    for index in range(100_000):
        text.write(f"{index * 0.05:.3f},{1 + index % 4000},{1 + index % 400}\n")
    path = tmp_path / "trace.csv"
    path.write_text(text.getvalue())
    begin = time.process_time()
    trace = read_trace(path)
    taken = time.process_time() - begin
    assert len(trace.recorded) == 100_000
    # Half a second of processor time where this was written; the bound is for a machine that is slow and busy.
    assert taken < 4
