"""Published set-ups by name: a path, a grid and a solver that belong together."""

import dataclasses

import jax
import numpy as np

from sampling import grids
from sampling.guidance import Guide
from sampling.noise import Noise
from sampling.paths import VE, Path
from sampling.sample import Sample, sample
from sampling.solvers import DDIM, Solver


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to go from standard normal numbers to data; call it with a guide.

    Attributes:
      path: α, σ.
      grid: times from noise to data.
      solver: how they are walked.
    """

    path: Path
    grid: tuple[float, ...]
    solver: Solver

    def __call__(self, guide: Guide, start: jax.Array, noise: Noise | None = None) -> Sample:
        """``start`` [b, ...] standard normal; ``noise`` for solvers that draw some at every step."""
        x = self.path.sigma(self.grid[0]) * start
        return sample(guide, x, np.array(self.grid), path=self.path, solver=self.solver, noise=noise)


def beso(*, sigma_min: float = 0.005, schedule: str = "exponential", steps: int = 3) -> Recipe:
    """BESO's policy in three network calls (https://arxiv.org/abs/2304.02532): deterministic DDIM from σ = 1 to 0.

    Only the action is noised; observations and goal are the guide's condition and stay as they are.  The network is
    preconditioned with σ_data = 0.5 (kind "F", or "data" once that is applied), trained on log-logistic σ around it,
    and guided, where the goal was dropped in training, by λ = w: D_u + λ(D_c − D_u).

    Args:
      sigma_min: 0.005 in the kitchen, 0.05 for block pushing.
      schedule: "exponential", "karras" (with the release's ρ = 5) or "linear".
      steps: network calls without guidance.
    """
    path = VE(sigma_max=1.0, sigma_data=0.5)
    if schedule == "exponential":
        grid = grids.exponential(steps, sigma_min, path.sigma_max)
    elif schedule == "karras":
        grid = grids.karras(steps, sigma_min, path.sigma_max, rho=5.0)
    elif schedule == "linear":
        grid = grids.karras(steps, sigma_min, path.sigma_max, rho=1.0)
    else:
        raise ValueError(f'a schedule of BESO\'s is "exponential", "karras" or "linear", got {schedule!r}')
    return Recipe(path, tuple(grid.tolist()), DDIM())
