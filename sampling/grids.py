"""Time grids, made on the host in float64.  A grid of n steps is an ascending or descending array of n + 1 times.

Sway sampling and the hand-made EPSS tables are F5-TTS's (https://arxiv.org/abs/2410.06885, https://arxiv.org/abs/2505.19931).
"""

import math

import numpy as np

from sampling.paths import Path

SWAY_RANGE = (-1.0, 2.0 / (math.pi - 2.0))  # outside, the swayed grid runs backwards somewhere

# Empirically pruned step sampling: few steps, most of them near the noise; numerators over 32.
EPSS = {
    5: (0, 2, 4, 8, 16, 32),
    6: (0, 2, 4, 6, 8, 16, 32),
    7: (0, 2, 4, 6, 8, 16, 24, 32),
    10: (0, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32),
    12: (0, 2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32),
    16: (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32),
}


def uniform(steps: int, start: float = 0.0, end: float = 1.0) -> np.ndarray:
    """``steps`` equal steps from ``start`` to ``end``: [steps + 1] float64."""
    if steps < 1:
        raise ValueError(f"a grid needs at least one step, got {steps}")
    return np.linspace(start, end, steps + 1, dtype=np.float64)


def epss(steps: int) -> np.ndarray:
    """The EPSS grid on [0, 1]; step counts without a table get the uniform one, as in the release."""
    return np.asarray(EPSS[steps], np.float64) / 32.0 if steps in EPSS else uniform(steps)


def sway(grid: np.ndarray, coefficient: float) -> np.ndarray:
    """t + s·(cos(πt/2) − 1 + t): s < 0 spends more steps near the noise, s > 0 near the data.

    Raises:
      ValueError: ``coefficient`` outside [−1, 2/(π−2)], where times would no longer increase.
    """
    low, high = SWAY_RANGE
    if not low - 1e-9 <= coefficient <= high + 1e-9:
        raise ValueError(f"sway coefficient {coefficient} outside [{low:g}, {high:.4f}]: times would run backwards")
    grid = np.asarray(grid, np.float64)
    return grid + coefficient * (np.cos(np.pi / 2.0 * grid) - 1.0 + grid)


def flow_grid(
    steps: int, *, sway_coefficient: float | None = -1.0, pruned: bool = True, start: float = 0.0
) -> np.ndarray:
    """F5-TTS's grid from ``start`` to 1: EPSS table (``pruned``, only from 0) or uniform, then sway.

    Note that with the release's default ``pruned=True`` sixteen steps are not uniform before the sway.
    """
    grid = epss(steps) if pruned and start == 0.0 else uniform(steps, start)
    return grid if sway_coefficient is None else sway(grid, sway_coefficient)


def check(grid: np.ndarray, path: Path) -> np.ndarray:
    """``grid`` as float64, if it runs strictly from the path's noise towards its data inside the path's times.

    Raises:
      ValueError: naming the first pair of times that does not.
    """
    grid = np.asarray(grid, np.float64)
    if grid.ndim != 1 or grid.size < 2:
        raise ValueError(f"a grid is a list of at least two times, got shape {grid.shape}")
    if not np.isfinite(grid).all():
        raise ValueError(f"the grid holds a time that is not finite: {grid}")
    sign = math.copysign(1.0, path.data_time - path.noise_time)
    wrong = np.flatnonzero(np.diff(grid) * sign <= 0)
    if wrong.size:
        i = int(wrong[0])
        raise ValueError(f"times must run from noise to data, but step {i} goes from {grid[i]:g} to {grid[i + 1]:g}")
    low, high = sorted((path.noise_time, path.data_time))
    if grid.min() < low - 1e-9 or grid.max() > high + 1e-9:
        raise ValueError(f"times must lie in [{low:g}, {high:g}], got {grid.min():g} to {grid.max():g}")
    return grid
