import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.cluster.selectors import SelectorError, parse

LABELS = {"app": "llama", "tier": "gold", "example.com/role": "", "track": "a.b-c_d"}


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("", True),
        ("app=llama", True),
        ("app == llama , tier!=silver", True),
        ("app=llama,tier=silver", False),
        ("app", True),
        ("!app", False),
        ("!nothing", True),
        ("nothing!=x", True),
        ("nothing notin (x)", True),
        ("nothing=x", False),
        ("app in (x, llama)", True),
        ("app notin (x,llama)", False),
        ("app in (x)", False),
        ("example.com/role=", True),
        ("example.com/role", True),
        ("example.com/role in (,x)", True),
        ("tier=", False),
        ("track=a.b-c_d,app in (llama),!x", True),
        ("in in (in)", False),
    ],
)
def test_matching(text: str, matches: bool) -> None:
    assert parse(text).matches(LABELS) is matches


@pytest.mark.parametrize(
    "text",
    [
        ",", "app=llama,", "=x", "app===x", "app in x", "app in (x", "app in x)", "app in ()x", "app llama",
        "-app=x", "app=-x", "a/b/c=x", "app=" + "x" * 64, "x" * 64 + "=y", "app=a b", "app in (a b)", "app;drop",
        "app='x'", "app=x)", "(app=x)", "app>5", "a" * 9000, "!!app", "app=\u00e9", "app in (a,,b", "!",
    ],
)  # fmt: skip
def test_what_is_no_selector(text: str) -> None:
    with pytest.raises(SelectorError) as error:
        parse(text)
    assert len(str(error.value)) < 120


@given(st.text(alphabet="ab=!,() in\tnotin/.-'\"\x00é", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        chosen = parse(text)
    except SelectorError:
        return
    assert chosen.matches(LABELS) in {True, False}


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), st.sampled_from(["x", "y"])))
def test_in_and_notin_are_each_others_opposite(labels: dict[str, str]) -> None:
    assert parse("a in (x,y)").matches(labels) is not parse("a notin (x,y)").matches(labels)
    assert parse("b=x").matches(labels) is not parse("b!=x").matches(labels)
    assert parse("c").matches(labels) is not parse("!c").matches(labels)
