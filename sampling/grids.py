"""Time grids, made on the host in float64.  A grid of n steps is an ascending or descending array of n + 1 times.

Sway sampling and the hand-made EPSS tables are F5-TTS's (https://arxiv.org/abs/2410.06885, https://arxiv.org/abs/2505.19931).
The grids of noise levels σ are for VE, where σ is the time; ``path.time_at(levels)`` takes them to every other path.
"""

import math
from collections.abc import Sequence

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


def karras(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> np.ndarray:
    """EDM's noise levels, equal in σ^(1/ρ), then 0 (https://arxiv.org/abs/2206.00364): [steps + 1]."""
    low, high = _levels(steps, sigma_min, sigma_max)
    ramp = np.linspace(0.0, 1.0, steps)
    return _to_zero((high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho)


def exponential(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0) -> np.ndarray:
    """Noise levels equal in log σ, then 0: [steps + 1]."""
    return polyexponential(steps, sigma_min, sigma_max, rho=1.0)


def polyexponential(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 1.3) -> np.ndarray:
    """Noise levels polynomial in log σ, then 0; ρ > 1 spends more of them near the data: [steps + 1]."""
    low, high = np.log(_levels(steps, sigma_min, sigma_max))
    return _to_zero(np.exp(low + np.linspace(1.0, 0.0, steps) ** rho * (high - low)))


def vp(steps: int, beta_min: float = 0.1, beta_max: float = 20.0, end: float = 1e-3) -> np.ndarray:
    """Noise-to-signal ratios of ``VPLinear`` at equal times from 1 to ``end``, then 0: [steps + 1]."""
    if steps < 1:
        raise ValueError(f"a grid needs at least one step, got {steps}")
    t = np.linspace(1.0, end, steps)
    return _to_zero(np.sqrt(np.expm1(0.5 * (beta_max - beta_min) * t**2 + beta_min * t)))


def shift(levels: np.ndarray, factor: float) -> np.ndarray:
    """s·t/(1 + (s − 1)·t), once: a flow's noise levels t in [0, 1] for s times the resolution.

    t is the noise level, so SD3's time (``FlowPath(data_time=0)``); for F5's, shift 1 − t.
    """
    levels = np.asarray(levels, np.float64)
    if factor <= 0 or levels.min() < 0 or levels.max() > 1:
        raise ValueError(f"a shift takes noise levels in [0, 1] and a factor > 0, got {levels} and {factor}")
    return factor * levels / (1.0 + (factor - 1.0) * levels)


def explicit(times: Sequence[float] | np.ndarray) -> np.ndarray:
    """The given times as a grid, if they run one way."""
    grid = np.asarray(times, np.float64)
    if grid.ndim != 1 or grid.size < 2 or not np.isfinite(grid).all() or not len(set(np.sign(np.diff(grid)))) == 1:
        raise ValueError(f"a grid is at least two times that rise or fall throughout, got {times}")
    return grid


def _levels(steps: int, low: float, high: float) -> tuple[float, float]:
    if steps < 1 or not 0 < low <= high or (steps > 1 and low == high):
        raise ValueError(f"noise levels need steps ≥ 1 and 0 < sigma_min < sigma_max, got {steps}, {low}, {high}")
    return low, high


def _to_zero(levels: np.ndarray) -> np.ndarray:
    return np.append(levels, 0.0)


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
