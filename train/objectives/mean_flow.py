"""MeanFlow: a network of average velocities: one step crosses the whole path (Geng et al. 2025, arXiv:2505.13447).

u(x_t, t, s) is the average of dx/dt between t and s, so x_s = x_t + (s − t) u.  By s − t times it and differentiated
along the trajectory, that is the identity u = v + (s − t) du/dt, whose right side is the target: one forward-mode
derivative of the network along (v, 1) in (x, t), s held.  Where s = t it is flow matching.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from sampling.grids import uniform
from sampling.paths import Path, expand
from sampling.prediction import Prediction
from sampling.solvers import Euler, Solver
from train.objectives.generation import Draws, Network, Networks, log_normal_time, row_noise, row_uniforms, shown


@dataclasses.dataclass(frozen=True)
class MeanFlow:
    """The objective's settings; the paper's values.

    Attributes:
      path: a flow; any path will do.
      apart: share of the rows whose two times differ.
      time_mean, time_std: both times are where ln(σ/α) is N(mean, std²).
      power, c: a row is weighed by 1 / (‖error‖² + c)^power, as a constant; power 0 = plain squares.
    """

    path: Path
    apart: float = 0.25
    time_mean: float = -0.4
    time_std: float = 1.0
    power: float = 1.0
    c: float = 1e-3
    spans = True
    needs_teacher = False
    passes = 4

    def __post_init__(self) -> None:
        if not 0.0 <= self.apart <= 1.0:
            raise ValueError(f"apart is a share of the rows, got {self.apart}")
        if self.power < 0 or self.c <= 0:
            raise ValueError(f"need power ≥ 0 and c > 0, got {self.power} and {self.c}")

    def draw(self, key: jax.Array, index: jax.Array, shape: tuple[int, ...], step: jax.Array) -> Draws:
        """``time`` is the noisier of the two."""
        del step
        noise_key, time_key = jax.random.split(key)
        first, second, choice = row_uniforms(time_key, index, 3)
        a, b = (log_normal_time(self.path, u, self.time_mean, self.time_std) for u in (first, second))
        noisier = (a - b) * self.path.outward > 0
        time, end = jnp.where(noisier, a, b), jnp.where(noisier, b, a)
        return Draws(row_noise(noise_key, index, shape), time, jnp.where(choice < self.apart, end, time))

    def loss(self, networks: Networks, data: jax.Array, draws: Draws, step: jax.Array) -> dict[str, jax.Array]:
        """``mean_flow``: weighted squared distance from the target; ‖·‖² is a sum, as the weight needs it."""
        del step
        error = self.residual(networks.student, data, draws)
        total = jnp.square(error).sum(tuple(range(1, error.ndim)))
        return {"mean_flow": total / jax.lax.stop_gradient(total + self.c) ** self.power}

    def residual(self, network: Network, data: jax.Array, draws: Draws) -> jax.Array:
        """u − (v + (s − t) du/dt) [b, ...], the bracket a constant."""
        t, end = draws.time, draws.end
        x = self.path.interpolate(data, draws.noise, t)
        v = self.path.velocity(data, draws.noise, t)
        u, rate = jax.jvp(lambda x, t: self.average(network, x, t, end), (x, t), (v, jnp.ones_like(t)))
        return u - jax.lax.stop_gradient(v + expand(end - t, x) * rate)

    def average(self, network: Network, x: jax.Array, t: jax.Array, end: jax.Array) -> jax.Array:
        """Average velocity between times ``t`` and ``end`` [b] on the trajectory through x at t."""
        x, told = shown(self.path, x, t)
        return network(x, told, jnp.abs(t - end))

    def denoise(self, network: Network, x: jax.Array, t: jax.Array) -> Prediction:
        """The velocity at t: the average over no time."""
        return Prediction(self.average(network, x, t, t), "velocity")

    def sampler(self, steps: int) -> tuple[Solver, np.ndarray]:
        """Euler's steps, for a guide that tells the network where each ends (``sampling.few_step``)."""
        return Euler(), uniform(steps, self.path.noise_time, self.path.data_time)
