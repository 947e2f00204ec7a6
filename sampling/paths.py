"""Paths between noise and data: x_t = α(t)·data + σ(t)·noise.

A path stores its own direction of time (F5's flow has its data at t = 1, others at t = 0), so nothing else ever flips
a sign.  Every function takes float64 numpy on the host, where sampling coefficients are made, or traced JAX arrays.
"""

import abc
import dataclasses
from typing import Any, ClassVar

import jax

Time = Any  # float, float64 numpy array or JAX array


def expand(coefficient: Time, x: jax.Array) -> Time:
    """A per-row coefficient [b] shaped to multiply ``x`` [b, ...]; scalars pass unchanged."""
    shape = getattr(coefficient, "shape", ())
    return coefficient.reshape(shape + (1,) * (x.ndim - len(shape))) if shape else coefficient


class Path(abc.ABC):
    """α(t), σ(t) and what follows from them.  Times are scalars, or [b] against arrays [b, ...]."""

    noise_time: ClassVar[float]
    data_time: ClassVar[float]

    @abc.abstractmethod
    def alpha(self, t: Time) -> Time: ...

    @abc.abstractmethod
    def sigma(self, t: Time) -> Time: ...

    @abc.abstractmethod
    def alpha_rate(self, t: Time) -> Time:
        """dα/dt."""

    @abc.abstractmethod
    def sigma_rate(self, t: Time) -> Time:
        """dσ/dt."""

    def interpolate(self, data: jax.Array, noise: jax.Array, t: Time) -> jax.Array:
        """x_t of a pair."""
        return expand(self.alpha(t), data) * data + expand(self.sigma(t), noise) * noise

    def velocity(self, data: jax.Array, noise: jax.Array, t: Time) -> jax.Array:
        """dx_t/dt of a pair, in this path's time."""
        return expand(self.alpha_rate(t), data) * data + expand(self.sigma_rate(t), noise) * noise


@dataclasses.dataclass(frozen=True)
class FlowPath(Path):
    """Straight lines from noise at t = 0 to data at t = 1: v = data − noise (F5-TTS, https://arxiv.org/abs/2410.06885)."""

    noise_time: ClassVar[float] = 0.0
    data_time: ClassVar[float] = 1.0

    def alpha(self, t: Time) -> Time:
        return 1.0 * t

    def sigma(self, t: Time) -> Time:
        return 1.0 - t

    def alpha_rate(self, t: Time) -> Time:
        return 0.0 * t + 1.0

    def sigma_rate(self, t: Time) -> Time:
        return 0.0 * t - 1.0
