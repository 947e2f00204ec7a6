"""Continuous-time consistency models on the circle (sCM, Lu and Song 2024, arXiv:2410.11081).

    x_t = cos t · data + sin t · (σ_d · noise),  f(x, t) = cos t · x − sin t · σ_d F(x / σ_d, t)

f must not change along a trajectory.  Its rate of change, the tangent, is one forward-mode derivative of the network;
each step moves F a little against it.  The rates of the trajectories come from a teacher, or from the data (training).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sampling.paths import TrigFlow, expand
from sampling.prediction import Prediction
from sampling.solvers import Consistency, Solver
from train.objectives.generation import (
    Draws,
    Network,
    Networks,
    even_angles,
    log_normal_time,
    row_noise,
    row_uniforms,
    shown,
    squared,
)


class Tangent(NamedTuple):
    """``output`` F [b, ...] of the network, differentiable; ``value`` g = cos t · df/dt [b, ...], a constant."""

    output: jax.Array
    value: jax.Array


@dataclasses.dataclass(frozen=True)
class ContinuousConsistency:
    """The objective's settings; the paper's values where it has any.

    Attributes:
      path: the circle, for data of its ``sigma_data``.
      warmup: steps over which the tangent's unstable part comes in; before, the network learns to denoise.
      time_mean, time_std: ln(σ_d tan t) is N(mean, std²).
      c: g is divided by ‖g‖ + c.
      rate: who knows dx/dt: "data" (training) or "teacher" (distillation).
    """

    path: TrigFlow
    warmup: int = 10_000
    time_mean: float = -1.0
    time_std: float = 1.4
    c: float = 0.1
    rate: str = "data"
    spans = False

    def __post_init__(self) -> None:
        if not isinstance(self.path, TrigFlow):
            raise ValueError(f"continuous-time consistency lives on the TrigFlow path, got {self.path}")
        if self.rate not in ("data", "teacher"):
            raise ValueError(f'rate must be "data" or "teacher", got {self.rate!r}')
        if self.warmup < 0 or self.c < 0:
            raise ValueError(f"warmup and c must not be negative, got {self.warmup} and {self.c}")

    @property
    def needs_teacher(self) -> bool:
        """See ``Objective``."""
        return self.rate == "teacher"

    @property
    def passes(self) -> int:
        """See ``Objective``."""
        return 5 if self.needs_teacher else 4

    def draw(self, key: jax.Array, index: jax.Array, shape: tuple[int, ...], step: jax.Array) -> Draws:
        """See ``Objective``."""
        del step
        noise_key, time_key = jax.random.split(key)
        [u] = row_uniforms(time_key, index, 1)
        time = log_normal_time(self.path, u, self.time_mean, self.time_std)
        return Draws(row_noise(noise_key, index, shape), time, time)

    def tangent(self, network: Network, x: jax.Array, rate: jax.Array, t: jax.Array, share: jax.Array) -> Tangent:
        """g of the paper before it is normalised.

        Args:
          x, rate: x_t and dx_t/dt [b, ...].
          t: [b].
          share: r, 1 for the true tangent; 0 leaves the error of the denoiser alone.
        """
        size = self.path.sigma_data
        cos, sin = (expand(a, x) for a in (jnp.cos(t), jnp.sin(t)))
        # cos t sin t goes into the derivative's direction, as in the paper: the product stays bounded towards t = π/2.
        along = (cos * sin * rate, jnp.cos(t) * jnp.sin(t))
        output, bent = jax.jvp(lambda x, t: network(*shown(self.path, x, t), None), (x, t), along)
        still = jax.lax.stop_gradient(output)
        value = -(cos**2) * (size * still - rate) - share * (cos * sin * x + size * bent)
        return Tangent(output, jax.lax.stop_gradient(value))

    def loss(self, networks: Networks, data: jax.Array, draws: Draws, step: jax.Array) -> dict[str, jax.Array]:
        """``tangent``: e^w/D ‖F − F⁻ − g‖² − w of each row, whose value says little and whose gradient is the point."""
        t = draws.time
        x = self.path.interpolate(data, draws.noise, t)
        rate = self.path.velocity(data, draws.noise, t)
        if self.needs_teacher and networks.teacher is not None:
            rate = self.path.sigma_data * jax.lax.stop_gradient(networks.teacher(*shown(self.path, x, t), None))
        share = jnp.minimum(step / max(self.warmup, 1), 1.0)
        output, g = self.tangent(networks.student, x, rate, t, share)
        norm = jnp.sqrt(jnp.square(g).sum(tuple(range(1, g.ndim))))
        error = output - jax.lax.stop_gradient(output) - g / expand(norm + self.c, g)
        if networks.log_variance is None:
            return {"tangent": squared(error)}
        weight = -networks.log_variance(t)
        return {"tangent": jnp.exp(weight) * squared(error) - weight}

    def denoise(self, network: Network, x: jax.Array, t: jax.Array) -> Prediction:
        """F, whose data prediction on this path is f."""
        return Prediction(network(*shown(self.path, x, t), None), "F")

    def sampler(self, steps: int) -> tuple[Solver, np.ndarray]:
        """Jumps to the data, with noise put back in between."""
        return Consistency(), even_angles(self.path, steps)
