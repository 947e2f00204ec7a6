"""Time grids: closed forms, monotone in the whole legal range, refused outside."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampling import grids
from sampling.paths import VE, FlowPath, TrigFlow, VPCosine, VPLinear

GOLDEN = Path(__file__).parents[1] / "golden" / "f5_tts" / "timesteps.npz"


@given(st.integers(1, 64), st.floats(*grids.SWAY_RANGE), st.booleans())
def test_every_legal_grid_runs_from_zero_to_one(steps, coefficient, pruned):
    grid = grids.flow_grid(steps, sway_coefficient=coefficient, pruned=pruned)
    assert grid.dtype == np.float64 and grid.shape == (steps + 1,)
    assert grid[0] == 0.0 and grid[-1] == pytest.approx(1.0, abs=1e-12)
    assert (np.diff(grid) > -1e-12).all()


def test_sway_minus_one_is_one_minus_cosine():
    t = grids.uniform(32)
    np.testing.assert_allclose(grids.sway(t, -1.0), 1.0 - np.cos(np.pi * t / 2), atol=1e-15)


def test_just_outside_the_legal_range_time_runs_backwards():
    low, high = grids.SWAY_RANGE
    fine = grids.uniform(4096)
    for coefficient in (low - 0.01, high + 0.01):
        swayed = fine + coefficient * (np.cos(np.pi / 2 * fine) - 1 + fine)
        assert (np.diff(swayed) < 0).any()
        with pytest.raises(ValueError, match="sway coefficient"):
            grids.sway(fine, coefficient)


def test_sixteen_steps_are_pruned_unless_told_otherwise():
    assert grids.flow_grid(16, sway_coefficient=None)[1] == 1 / 32
    assert grids.flow_grid(16, sway_coefficient=None, pruned=False)[1] == 1 / 16
    assert grids.flow_grid(9, sway_coefficient=None)[1] == 1 / 9  # no table for nine


@pytest.mark.parametrize(
    "grid, message",
    [
        ([0.0], "at least two"),
        ([0.0, 0.5, 0.5, 1.0], "step 1 goes from 0.5 to 0.5"),
        ([1.0, 0.0], "run from noise to data"),
        ([0.0, float("nan")], "not finite"),
        ([0.0, 1.5], "lie in"),
    ],
)
def test_wrong_grids_are_named(grid, message):
    with pytest.raises(ValueError, match=message):
        grids.check(np.array(grid), FlowPath())


def test_golden_time_grids():
    stored = np.load(GOLDEN)
    assert len(stored.files) > 10
    for name in stored.files:
        steps, table, swayed = name.removeprefix("t_n").split("_")
        coefficient = None if swayed == "raw" else float(swayed.removeprefix("sway"))
        grid = grids.flow_grid(int(steps), sway_coefficient=coefficient, pruned=table == "epss")
        np.testing.assert_allclose(grid, stored[name], atol=1e-6, err_msg=name)


@given(st.integers(2, 40), st.floats(1e-3, 0.5), st.floats(1.0, 100.0), st.floats(1.0, 9.0))
def test_noise_levels_fall_from_the_largest_to_zero(steps, low, high, rho):
    for levels in (
        grids.karras(steps, low, high, rho),
        grids.exponential(steps, low, high),
        grids.polyexponential(steps, low, high, rho),
    ):
        assert levels.shape == (steps + 1,) and levels[-1] == 0.0
        np.testing.assert_allclose(levels[[0, -2]], [high, low], rtol=1e-9)
        assert (np.diff(levels) < 0).all()
        grids.check(levels, VE(sigma_max=high))


def test_noise_levels_in_closed_form():
    np.testing.assert_allclose(np.diff(grids.karras(9, 0.1, 5.0, rho=3.0)[:-1] ** (1 / 3), 2), 0.0, atol=1e-12)
    np.testing.assert_allclose(np.diff(np.log(grids.exponential(9, 0.1, 5.0)[:-1]), 2), 0.0, atol=1e-12)
    t, path = np.linspace(1.0, 1e-3, 12), VPLinear()
    np.testing.assert_allclose(grids.vp(12)[:-1], path.sigma(t) / path.alpha(t), rtol=1e-9)


def test_a_shift_is_applied_once():
    levels = np.linspace(1.0, 0.0, 9)
    np.testing.assert_allclose(grids.shift(levels, 3.0), 3 * levels / (1 + 2 * levels))
    twice = grids.shift(grids.shift(levels, 3.0), 3.0)
    np.testing.assert_allclose(twice, grids.shift(levels, 9.0))  # what shifting twice would be: another factor
    np.testing.assert_allclose(grids.shift(levels, 1.0), levels)


@pytest.mark.parametrize("path", [FlowPath(), FlowPath(0.0), VPLinear(), VPCosine(), VE(), TrigFlow()], ids=str)
def test_noise_levels_can_be_taken_to_every_path(path):
    levels = grids.karras(12, 0.01, 70.0)
    times = grids.check(path.time_at(levels), path)
    np.testing.assert_allclose(path.sigma(times) / path.alpha(times), levels, rtol=1e-9, atol=1e-12)
    assert times[-1] == path.data_time


def test_what_is_no_grid_is_refused():
    for make in (
        lambda: grids.karras(0),
        lambda: grids.exponential(5, 0.0, 1.0),
        lambda: grids.polyexponential(5, 2.0, 1.0),
        lambda: grids.shift(np.array([2.0, 0.0]), 3.0),
        lambda: grids.shift(np.array([1.0, 0.0]), 0.0),
        lambda: grids.explicit([1.0, 0.5, 0.6]),
        lambda: grids.explicit([1.0, np.nan]),
        lambda: grids.vp(0),
    ):
        with pytest.raises(ValueError):
            make()
    np.testing.assert_array_equal(grids.explicit([1, 0.5, 0]), [1.0, 0.5, 0.0])
    with pytest.raises(ValueError, match="step 2 goes from 1 to 3"):
        grids.check(np.array([9.0, 4.0, 1.0, 3.0, 0.0]), VE())
    with pytest.raises(ValueError, match=r"lie in \[0, 80\]"):
        grids.check(np.array([90.0, 4.0, 0.0]), VE())
