"""Frames from known pages: what is unknown is no 0, what is odd breaks nothing, what is long fits."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.observe.records import SourceError
from kvgauge.top.asking import Seen
from kvgauge.top.drawing import frame
from kvgauge.top.reading import pod_view

from .pages import ADVICE, ASSESSMENT, OBSERVATION

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def drawn(advice: dict[str, Any] = ADVICE, width: int = 80, age: float = 0.5, trouble: str | None = None) -> str:
    view = pod_view(advice, ASSESSMENT, OBSERVATION)
    return frame([Seen("http://127.0.0.1:9838", view, age, trouble)], 0, width).plain


def test_a_frame() -> None:
    text = drawn()
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert lines["load"].split()[1] == "0.84"
    assert "21 running, 3 waiting; safe 37, kv binds" in text
    assert "kv 37*, max_num_seqs 64" in text
    assert "50.0k active, 25.0k reclaimable, 25.0k free of 100.0k tokens" in text
    assert "in 2 min at this trend" in text
    assert "agent DOWN (stale)" in text
    endless = {**ADVICE, "kv_exhaustion_seconds": None}
    assert "full      not known" in drawn(endless)
    assert "full      not heading there" in drawn({**endless, "terms": {"trend_tokens_per_second": -3.5}})
    assert "off by +20.0%" in text
    assert "block_tail 1.0 GiB" in text
    assert "Memory grows." in text
    assert "37 requests may run together." in text
    # The bars are to scale: active is twice what can be had again, and the two parts of memory are as 4 to 5.
    assert lines["kv"].count("█") == pytest.approx(2 * lines["kv"].count("▒"), abs=1)
    assert lines["predicted"].count("█") / lines["actual"].count("█") == pytest.approx(0.8, abs=0.03)


def test_what_nobody_told_is_no_zero() -> None:
    nothing = {"valid": False, "explanation": ["No engine answers."]}
    view = pod_view(nothing, {}, {})
    text = frame([Seen("http://a:1", view, 0.1)], 0, 80).plain
    assert "- running, - waiting; safe -" in text
    assert "no engine is seen" in text
    assert "advice is not valid" in text
    assert " 0 " not in text


def test_age_is_said_first() -> None:
    assert "STALE, 2 min old: GET /v1/advice: no connection (refused)" in drawn(
        age=130.0, trouble="GET /v1/advice: no connection (refused)", width=120
    )
    assert "STALE, 61 s old: it stands still" in drawn(age=61.0)
    assert "unreachable: x" in frame([Seen("http://a:1", trouble="x")], 0, 80).plain
    assert frame([Seen("http://a:1")], 0, 80).plain == "a:1  asked"


def test_another_program_is_no_sidecar() -> None:
    with pytest.raises(SourceError, match="no advice"):
        pod_view({"status": "ok"}, {}, {})


def test_what_steers_a_terminal_is_not_passed_on() -> None:
    text = drawn({**ADVICE, "explanation": ["a\x1b[2Jb\x07"], "binding_limit": "\x1b]0;x\x07"})
    assert "\x1b" not in text
    assert "\x07" not in text


@given(width=st.integers(20, 220), height=st.integers(2, 60), chosen=st.integers(0, 29), many=st.integers(1, 30))
def test_a_frame_fits_its_window(width: int, height: int, chosen: int, many: int) -> None:
    view = pod_view(ADVICE, ASSESSMENT, OBSERVATION)
    seen = [Seen(f"http://pod-{number}.example:9838", view, 0.5) for number in range(many)]
    lines = frame(seen, min(chosen, many - 1), width, height).plain.split("\n")
    assert len(lines) == height
    assert all(len(line) <= width for line in lines)


@given(st.dictionaries(st.sampled_from([*ADVICE]), JSON), JSON, JSON)
def test_no_answer_breaks_a_frame(advice: dict[str, Any], assessment: Any, observation: Any) -> None:
    told = [
        {**ADVICE, **advice, "valid": True},
        {"pools": assessment, "gpus": [assessment], "warnings": assessment},
        {"engine": observation, "gpus": [observation], "sources": [observation]},
    ]
    frame([Seen("http://a:1", pod_view(*json.loads(json.dumps(told))), 0.5)], 0, 80, 24)


def test_what_rounds_to_nothing_has_no_minus() -> None:
    size = 40 * (1 << 30)
    total = {"component": "total", "expected_bytes": size + 4096, "actual_bytes": size}
    assessment = {"gpus": [{"uuid": "GPU-1", "components": [], "total": total}]}
    view = pod_view(ADVICE, assessment, OBSERVATION)
    assert "off by +0.0%" in frame([Seen("http://127.0.0.1:9838", view, 0.5)], 0, 80).plain


def test_the_age_is_first_where_the_name_leaves_no_room() -> None:
    view = pod_view(ADVICE, ASSESSMENT, OBSERVATION)
    seen = [Seen("http://a-pod-with-a-rather-long-name.llm.svc:9838", view, 42.0, "no connection (refused)")]
    for width in (20, 40):
        assert frame(seen, 0, width).plain.startswith("STALE, 42 s old")
    assert frame(seen, 0, 200).plain.startswith("a-pod-with")
