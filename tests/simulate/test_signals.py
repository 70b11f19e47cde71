"""Signals by name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.simulate.fleet_views import PLAN, state, view

from kvgauge.complaints import InputError
from kvgauge.simulate.baselines import Static
from kvgauge.simulate.fleet import Fleet
from kvgauge.simulate.hpa_behavior import Behavior, ScalingRules
from kvgauge.simulate.signals import NAMES, Kind, make_signal, register
from kvgauge.simulate.spec import Request

LOAD = [Request(second / 2, 700, 60) for second in range(1200)]


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_name_alone_gives_a_signal_that_keeps_to_the_bounds(name: str) -> None:
    signal = make_signal(name, PLAN, LOAD)
    assert signal.name == name
    result = Fleet(PLAN, signal, keep_samples=True).run(LOAD, 600.0)
    assert result.requests == 600
    assert all(PLAN.min_replicas <= sample.replicas <= PLAN.max_replicas for sample in result.samples)
    assert result == Fleet(PLAN, make_signal(name, PLAN, LOAD), keep_samples=True).run(LOAD, 600.0)


@given(st.floats(0.01, 1e6))
def test_a_value_after_the_colon_is_the_target(target: float) -> None:
    # Ten times the target on two pods asks for ten; half of it for one, which the stabilisation puts off.
    signal = make_signal(f"queue:{target!r}", PLAN)
    waiting = round(5 * target * 1000) // 1000 + 1
    signal.observe(view(7.5, [state(7.5, waiting=waiting), state(7.5, waiting=waiting)]))
    assert signal.replicas(view(15.0, [state(7.5), state(7.5)])) == 4


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("queu", "signal: should be one of aibrix-kpa, clairvoyant, cpu,"),
        ("", "not ''"),
        ("queue:0", "signal queue: requests per replica should be a number, at least 0.001, not '0'"),
        ("queue:nan", "not 'nan'"),
        ("queue:inf", "not 'inf'"),
        ("queue:", "not ''"),
        ("queue:1,2", "signal queue: takes requests per replica, not '1,2'"),
        ("kv:80", "signal kv: ratio should be a number, at least 0.001 and at most 1, not '80'"),
        ("static:2.5", "signal static: replicas should be a whole number, at least 1 and at most 10000, not '2.5'"),
        ("static:-1", "not '-1'"),
        ("wva-v1:3", "signal wva-v1: takes no value, not '3'"),
        ("queue-or-running:1,many", "signal queue-or-running: running requests should be a number"),
        ("slo-aware:0.4,0.5", "signal slo-aware: down should be at most up (0.4), not 0.5"),
        ("clairvoyant", "signal clairvoyant: needs the load in advance"),
    ],
)
def test_what_cannot_be_is_named(text: str, complaint: str) -> None:
    with pytest.raises(InputError) as caught:
        make_signal(text, PLAN)
    assert complaint in str(caught.value)


@given(st.one_of(st.text(max_size=30), st.from_regex(r"[a-z]+(-[a-z0-9]+)?:[0-9.,e-]{0,12}", fullmatch=True)))
def test_any_text_gives_a_signal_or_one_line(text: str) -> None:
    try:
        named = make_signal(text, PLAN, LOAD[:1]).name
    except InputError as error:
        complaint = str(error)
        named = text.strip()
    else:
        complaint = ""
    assert named == text.strip()
    assert "\n" not in complaint


def test_a_behavior_given_replaces_the_signals_own() -> None:
    frozen = Behavior(ScalingRules((), select="Disabled"), ScalingRules((), select="Disabled"))
    busy = [state(7.5, running=100), state(7.5, running=100)]
    wanted = []
    for behavior in (None, frozen):
        signal = make_signal("running", PLAN, behavior=behavior)
        signal.observe(view(7.5, busy))
        wanted.append(signal.replicas(view(15.0, busy)))
    assert wanted == [4, 2]


def test_static_holds_what_it_is_given_or_finds() -> None:
    fleet = view(15.0, [state(15.0)] * 3)
    assert make_signal("static:8", PLAN).replicas(fleet) == 8
    assert make_signal("static", PLAN).replicas(fleet) == 3


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="signal queue is registered twice"):
        register(Kind("queue", "", lambda wish: Static(wish.text, 1)))
    assert make_signal("queue", PLAN).replicas(view(15.0, [state(15.0)] * 2)) == 2
