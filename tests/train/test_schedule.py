"""Learning rates: the release's numbers, and what holds for every kind."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import UserError
from train.schedule import KINDS, make_schedule


def test_linear_is_the_release():
    """Warm-up 20, total 100, peak 7.5e-5: rates that torch's chained LinearLR used, in float64 and in float32."""
    golden = {
        0: 7.499999999999999e-13,
        1: 3.7500007125e-06,
        2: 7.500000675e-06,
        10: 3.750000037499999e-05,
        19: 7.125000003749998e-05,
        20: 7.5e-05,
        21: 7.406250000937499e-05,
        40: 5.62500001875e-05,
        60: 3.750000037499998e-05,
        99: 9.375007406250039e-07,
        100: 7.500000013273422e-13,
        101: 7.500000013273422e-13,
    }
    lr = make_schedule("linear", 7.5e-5, total=100, warmup=20, init_ratio=1e-8, final_ratio=1e-8)
    traced = jax.jit(lr)
    for step, expected in golden.items():
        assert lr(step) == pytest.approx(expected, rel=1e-8), step
        assert float(traced(np.int32(step))) == pytest.approx(expected, rel=1e-6), step


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(KINDS), st.integers(0, 50), st.integers(1, 200), st.floats(0, 1))
def test_every_kind_rises_to_the_peak_and_ends_at_its_ratio(kind, warmup, rest, final):
    total = warmup + rest
    lr = make_schedule(kind, 2.0, total=total, warmup=warmup, init_ratio=0.01, final_ratio=final)
    rates = [float(lr(step)) for step in range(total + 5)]
    assert rates[warmup] == pytest.approx(2.0)
    assert rates[0] == pytest.approx(2.0 if warmup == 0 else 0.02)
    assert all(a <= b for a, b in itertools.pairwise(rates[: warmup + 1]))
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(rates[warmup:]))
    for after in rates[total:]:
        assert after == pytest.approx(2.0 if kind == "constant" else 2.0 * final, abs=1e-12)


def test_mistakes_are_named():
    with pytest.raises(UserError, match="cosin"):
        make_schedule("cosin", 1.0, total=10)
    with pytest.raises(UserError, match="warmup_steps=10"):
        make_schedule("linear", 1.0, total=10, warmup=10)


def test_milestones_take_nine_tenths_each():
    lr = make_schedule("constant", 2.0, total=100, warmup=10, init_ratio=0.1, milestones=(50, 80))
    assert [round(float(lr(step)), 9) for step in (0, 5, 10, 49, 50, 79, 80, 99)] == [
        0.2,
        1.1,
        2,
        2,
        0.2,
        0.2,
        0.02,
        0.02,
    ]
