"""Sampling of models that know where a step will end: MeanFlow (arXiv:2505.13447), shortcut models (arXiv:2410.12557).

Such a network answers the average velocity between two times, so a step of any length is exact and is Euler's:

    guide = AverageVelocity(network, condition, grid)
    result = sample(guide, noise, grid, path=path)

Models that know the end of the whole trajectory are sampled by ``sampling.solvers.Consistency``.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from sampling.guidance import Guided, GuidePlan, Row
from sampling.paths import Path
from sampling.prediction import Prediction

Average = Callable[[jax.Array, jax.Array, jax.Array, Any], jax.Array]
"""(x [b, ...], time, the step's end, condition) -> average velocity [b, ...]; times are scalars."""


class AverageVelocity:
    """A guide that tells the network where each step ends; for ``Euler``, on the grid given here.

    Args:
      network: see ``Average``.
      condition: what it is given, a pytree of arrays with leading dimension b.
      grid: host times [n + 1], those of ``sample``.
    """

    def __init__(self, network: Average, condition: Any, grid: np.ndarray):
        self.network, self.condition, self.grid = network, condition, np.asarray(grid, np.float64)

    def plan(self, path: Path, times: np.ndarray) -> GuidePlan:
        """Every step's end.

        Raises:
          ValueError: a solver that evaluates elsewhere than once at each step's beginning, or another grid.
        """
        if times.shape[1:] != (1,) or not np.array_equal(times[:, 0], self.grid[:-1]):
            raise ValueError("average velocities are followed by Euler's steps, on the grid that the guide was given")
        return GuidePlan({"end": self.grid[1:, None]}, np.ones(times.shape, int))

    def __call__(self, x: jax.Array, t: jax.Array, row: Row) -> Guided:
        velocity = Prediction(self.network(x, t, row["end"], self.condition), "velocity")
        return Guided(velocity, (velocity,))  # no exponents: an average velocity is no score
