import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.cluster.quantities import MOST_MILLI, milli, quantity


@pytest.mark.parametrize(
    ("value", "up", "text"),
    [
        (0.84, True, "840m"),
        (0.8401, True, "841m"),
        (0.8401, False, "840m"),
        (1.0, True, "1"),
        (0.1 + 0.2, True, "300m"),
        (0.1 + 0.2, False, "300m"),
        (37, False, "37"),
        (0, True, "0"),
        (-1.5, True, "-1500m"),
    ],
)
def test_rounding(value: float, up: bool, text: str) -> None:
    thousandths = milli(value, up=up)
    assert thousandths is not None
    assert quantity(thousandths) == text


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e300, -1e300])
def test_what_no_quantity_holds(value: float) -> None:
    assert milli(value, up=True) is None


@given(st.floats(0, 1e9), st.booleans())
def test_rounded_to_the_safe_side_by_less_than_a_thousandth(value: float, up: bool) -> None:
    thousandths = milli(value, up=up)
    assert thousandths is not None
    assert 0 <= thousandths <= MOST_MILLI
    away = thousandths - value * 1000
    noise = 1e-6 * max(value * 1000, 1)
    assert -noise <= away < 1 if up else -1 < away <= noise
