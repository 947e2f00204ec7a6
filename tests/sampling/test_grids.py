"""Time grids: closed forms, monotone in the whole legal range, refused outside."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampling import grids
from sampling.paths import FlowPath

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
