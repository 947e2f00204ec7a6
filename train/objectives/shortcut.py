"""Shortcut models: a velocity that knows how long a step will follow it (Frans et al. 2024, arXiv:2410.12557).

The step of length 2d must end where two steps of length d end.  Three quarters of the rows learn flow matching (d = 0),
one quarter learns that, from the smallest length 1/128 up to the whole path, the shorter steps being taken by the
network's own average.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from sampling.grids import uniform
from sampling.paths import FlowPath, expand
from sampling.prediction import Prediction
from sampling.solvers import Euler, Solver
from train.objectives.generation import Draws, Network, Networks, row_noise, row_uniforms, squared


@dataclasses.dataclass(frozen=True)
class Shortcut:
    """The objective's settings; the paper's values.

    Attributes:
      path: a flow, whose time runs over [0, 1].
      smallest: 1 / the shortest step, a power of two.
      doubled: share of the rows that learn from two steps.
    """

    path: FlowPath
    smallest: int = 128
    doubled: float = 0.25
    spans = True
    needs_teacher = False
    passes = 5

    def __post_init__(self) -> None:
        if not isinstance(self.path, FlowPath):
            raise ValueError(f"shortcut models live on a flow path, got {self.path}")
        if self.smallest < 2 or self.smallest & (self.smallest - 1):
            raise ValueError(f"smallest must be a power of two, got {self.smallest}")
        if not 0.0 <= self.doubled <= 1.0:
            raise ValueError(f"doubled is a share of the rows, got {self.doubled}")

    def draw(self, key: jax.Array, index: jax.Array, shape: tuple[int, ...], step: jax.Array) -> Draws:
        """``time`` and ``end`` lie one whole (doubled) step apart, a multiple of it from the ends of the path."""
        del step
        noise_key, time_key = jax.random.split(key)
        place, choice, length = row_uniforms(time_key, index, 3)
        sizes = int(math.log2(self.smallest))
        span = 2.0 ** -jnp.floor(length * sizes)  # 1, 1/2, …, 2 / smallest
        begin = jnp.floor(place / span) * span  # from the noise on
        alone = choice >= self.doubled
        begin, span = jnp.where(alone, place, begin), jnp.where(alone, 0.0, span)
        time, end = (self.path.noise_time - self.path.outward * a for a in (begin, begin + span))
        return Draws(row_noise(noise_key, index, shape), time, end)

    def loss(self, networks: Networks, data: jax.Array, draws: Draws, step: jax.Array) -> dict[str, jax.Array]:
        """``shortcut``: mean squared distance of the velocity from the pair's, or from two shorter steps'."""
        del step
        t, end = draws.time, draws.end
        x, middle = self.path.interpolate(data, draws.noise, t), 0.5 * (t + end)
        first = self.average(networks.target, x, t, middle)
        second = self.average(networks.target, x + expand(middle - t, x) * first, middle, end)
        pair = self.path.velocity(data, draws.noise, t)
        target = jnp.where(expand(t == end, x), pair, 0.5 * (first + second))
        error = self.average(networks.student, x, t, end) - jax.lax.stop_gradient(target)
        return {"shortcut": squared(error)}

    def average(self, network: Network, x: jax.Array, t: jax.Array, end: jax.Array) -> jax.Array:
        """Velocity at x for a step from ``t`` to ``end`` [b]."""
        return network(x, t, jnp.abs(t - end))

    def denoise(self, network: Network, x: jax.Array, t: jax.Array) -> Prediction:
        """The velocity for steps of no length."""
        return Prediction(self.average(network, x, t, t), "velocity")

    def sampler(self, steps: int) -> tuple[Solver, np.ndarray]:
        """Euler's steps, for a guide that tells the network where each ends (``sampling.few_step``)."""
        return Euler(), uniform(steps, self.path.noise_time, self.path.data_time)
