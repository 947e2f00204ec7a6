"""Schedules of consistency training: how many noise levels there are at a step, which pair is drawn, what it weighs.

CT and CD: Song et al. 2023, arXiv:2303.01469.  iCT: Song and Dhariwal 2023, arXiv:2310.14189.  Functions of the step
take Python integers (float64 results) or traced scalars.  "Points" count noise levels σ_1 < … < σ_N, so there are
N − 1 intervals; an interval has the number of its lower end, counted from 0.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sampling.paths import array_module

Step = Any  # Python integer, integer array, or traced scalar
CONVENTIONS = ("paper", "release")
LEVELS = ("ct", "ict", "fixed")
PROPOSALS = ("uniform", "log_normal")


@dataclasses.dataclass(frozen=True)
class Levels:
    """Which two neighbouring noise levels a step of the training compares.

    Attributes:
      kind: how many levels there are: "ct" and "ict" grow with the step, "fixed" = ``most`` always.
      steps: of the whole training.
      fewest, most: s₀ and s₁ of these schedules, intervals at the start and at the end.
      proposals: which neighbours: "uniform", or "log_normal": ln σ is N(mean, std²).
    """

    kind: str = "ict"
    steps: int = 1
    fewest: int = 10
    most: int = 1280
    proposals: str = "log_normal"
    mean: float = -1.1
    std: float = 2.0

    def __post_init__(self) -> None:
        for name, value, known in (("levels", self.kind, LEVELS), ("proposals", self.proposals, PROPOSALS)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if self.steps < 1 or not 1 < self.fewest <= self.most:
            raise ValueError(f"need steps ≥ 1 and 1 < fewest ≤ most, got {self.steps}, {self.fewest}, {self.most}")

    def points(self, step: Step) -> Any:
        """How many noise levels there are at a step."""
        step = array_module(step).minimum(step, self.steps)
        if self.kind == "ct":
            return ct_points(step, self.steps, self.fewest, self.most)
        if self.kind == "ict":
            return ict_points(step, self.steps, self.fewest, self.most)
        return self.most

    def pair(self, u: jax.Array, step: Step, sigma_min: float, sigma_max: float, rho: float) -> tuple[Any, Any]:
        """Neighbouring levels σ [b] from uniform numbers [b], the smaller first."""
        points, spread = self.points(step), (sigma_min, sigma_max, rho)
        if self.proposals == "uniform":
            interval = jnp.floor(u * (points - 1))
        else:
            interval = draw_interval(u, points, *spread, self.mean, self.std)
        return karras_level(interval, points, *spread), karras_level(interval + 1, points, *spread)


def ct_points(step: Step, total: int, low: int = 2, high: int = 150) -> Any:
    """CT's N(k) = ⌈√(k/K · ((s₁+1)² − s₀²) + s₀²) − 1⌉ + 1."""
    xp = array_module(step)
    share = xp.asarray(step) / total
    return xp.ceil(xp.sqrt(share * ((high + 1) ** 2 - low**2) + low**2) - 1) + 1


def ct_decay(
    step: Step, total: int, initial: float = 0.9, low: int = 2, high: int = 150, convention: str = "paper"
) -> Any:
    """CT's decay of the target's average, μ(k) = exp(s₀ ln μ₀ / N(k)).

    ``convention``: "paper" divides by N(k); "release" (OpenAI's code) by N(k) − 1, N before one is added to it.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention must be one of {', '.join(CONVENTIONS)}, got {convention!r}")
    points = ct_points(step, total, low, high) - (convention == "release")
    return array_module(step).exp(low * math.log(initial) / points)


def ict_points(step: Step, total: int, low: int = 10, high: int = 1280) -> Any:
    """iCT's N(k) = min(s₀ 2^⌊k/K'⌋, s₁) + 1: doubled after every K' = ⌊K / (log₂⌊s₁/s₀⌋ + 1)⌋ steps."""
    xp = array_module(step)
    doublings = math.log2(high // low)
    every = max(math.floor(total / (doublings + 1)), 1)
    times = xp.minimum(xp.asarray(step) // every, math.ceil(doublings) + 1)  # else the power would overflow
    return xp.minimum(low * 2.0**times, high) + 1


def karras_level(i: Any, points: Any, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Any:
    """σ of point ``i`` = 0 … points − 1, ascending: equal steps in σ^(1/ρ) (arXiv:2206.00364)."""
    first, last = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (first + i / (points - 1) * (last - first)) ** rho


def draw_interval(
    u: jax.Array, points: Any, sigma_min: float, sigma_max: float, rho: float, mean: float, std: float
) -> jax.Array:
    """Intervals [b] float32 from uniform numbers [b], exactly with iCT's probabilities (``interval_probabilities``).

    These are what a normal law of ln σ leaves between neighbouring levels, so the interval is the one into which such
    an ln σ falls, cut to the range of the levels.  No table, so the number of points may be traced.
    """
    ends = jax.scipy.special.ndtr((jnp.log(jnp.array([sigma_min, sigma_max])) - mean) / std)
    log_sigma = mean + std * jax.scipy.special.ndtri(ends[0] + u * (ends[1] - ends[0]))
    first, last = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    place = (jnp.exp(log_sigma / rho) - first) / (last - first) * (points - 1)
    return jnp.clip(jnp.floor(place), 0, points - 2)


def interval_probabilities(sigmas: Any, mean: float = -1.1, std: float = 2.0) -> jax.Array:
    """iCT's p of each interval [n − 1] of ascending levels [n]: ∝ differences of erf((ln σ − P_mean)/(√2 P_std))."""
    mass = jnp.diff(jax.scipy.special.erf((jnp.log(jnp.asarray(sigmas)) - mean) / (math.sqrt(2.0) * std)))
    return mass / mass.sum()


def interval_weights(sigmas: Any) -> Any:
    """iCT's λ of each interval: 1 / (σ_{i+1} − σ_i)."""
    return 1.0 / np.diff(sigmas)


def pseudo_huber_constant(size: int) -> float:
    """iCT's c for data of ``size`` numbers: 0.00054 √size."""
    return 0.00054 * math.sqrt(size)


def pseudo_huber(error: jax.Array, c: float) -> jax.Array:
    """√(‖error‖² + c²) − c of each row [b]: the square near 0, the norm far away."""
    total = jnp.square(error).sum(tuple(range(1, error.ndim)))
    return total / (jnp.sqrt(total + c**2) + c)  # the same without cancellation
