"""The exact expectation of a Feynman–Kac run on Gaussian data, without Monte Carlo.

For q_t = N(0, v_t) every step is x' = a·x + c·z and every increment A·x² + e, so E[exp(Σ increments) | x_k = x] stays
exp(P·x² + m): a backward Riccati recursion.  Where 1 − 2P'c² ≤ 0 the expectation is infinite.  The coefficients are
those of the very solver and corrector that runs use.
"""

from typing import NamedTuple

import numpy as np

from sampling.paths import Path
from sampling.smc.correctors import FeynmanKac
from sampling.solvers import ReverseSDE


class Moments(NamedTuple):
    """Of a particle's weight W, without resampling, in one dimension.

    Attributes:
      bias: log E[Ẑ] − log ∫q^β at the last time.
      second: log E[W²]/E[W]²; NaN where E[W] is infinite.
    """

    bias: float
    second: float


def moments(variance: float, beta: float, zeta: float, path: Path, grid: np.ndarray) -> Moments:
    """Annealing N(0, variance) to the power β, started from the exact N(0, v_T/β), with left-point divergence."""
    v = path.alpha(grid) ** 2 * variance + path.sigma(grid) ** 2
    step = ReverseSDE(zeta).plan(path, grid).rows
    weigh = FeynmanKac("left").plan(path, grid, (1, 1))
    a = step["keep"] - step["push"] * beta / v[:-1]
    c2 = step["spread"] ** 2 if zeta else np.zeros_like(a)
    quadratic = weigh["half"] * beta * (beta - 1.0) / v[:-1] ** 2
    constant = (beta - 1.0) * weigh["divergence"]

    def log_mean(power: float) -> float:
        """log E[exp(power·Σ increments)]."""
        p = m = 0.0
        for k in reversed(range(len(a))):
            room = 1.0 - 2.0 * p * c2[k]
            if room <= 0.0:
                return np.inf
            m += power * constant[k] - 0.5 * np.log(room)
            p = power * quadratic[k] + p * a[k] ** 2 / room
        room = 1.0 - 2.0 * p * v[0] / beta
        return m - 0.5 * np.log(room) if room > 0.0 else np.inf

    first = log_mean(1.0)
    truth = log_constant(v[-1], beta) - log_constant(v[0], beta)
    return Moments(first - truth, log_mean(2.0) - 2.0 * first if np.isfinite(first) else np.nan)


def log_constant(v: float, beta: float) -> float:
    """log ∫N(x; 0, v)^β dx."""
    return 0.5 * ((1.0 - beta) * np.log(2.0 * np.pi * v) - np.log(beta))
