"""Paths between noise and data: x_t = α(t)·data + σ(t)·noise.

A path stores its own direction of time (F5's flow has its data at t = 1, others at t = 0), so nothing else ever flips
a sign.  What depends on a direction, the stochastic differential equation, is given in τ, which always runs from data
to noise at the same pace as t.  Every function takes float64 numpy on the host, where sampling coefficients are made,
or traced JAX arrays.
"""

import abc
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Time = Any  # float, float64 numpy array or JAX array


def expand(coefficient: Time, x: jax.Array) -> Time:
    """A per-row coefficient [b] shaped to multiply ``x`` [b, ...]; scalars pass unchanged."""
    shape = getattr(coefficient, "shape", ())
    return coefficient.reshape(shape + (1,) * (x.ndim - len(shape))) if shape else coefficient


def array_module(t: Time) -> Any:
    """``jax.numpy`` for traced times, ``numpy`` (float64) for those of the host."""
    return jnp if isinstance(t, jax.Array) else np


class Path(abc.ABC):
    """α(t), σ(t) and what follows from them.  Times are scalars, or [b] against arrays [b, ...].

    Attributes:
      noise_time, data_time: where a path starts and where it ends.
    """

    noise_time: float
    data_time: float

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

    @property
    def outward(self) -> float:
        """dτ/dt: +1 where time runs from data to noise, −1 where it runs the other way."""
        return math.copysign(1.0, self.noise_time - self.data_time)

    def drift_rate(self, t: Time) -> Time:
        """d log α/dτ: the drift of dx = drift_rate·x dτ + g dW.  Infinite where α = 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.outward * self.alpha_rate(t) / self.alpha(t)

    def diffusion(self, t: Time) -> Time:
        """g² = dσ²/dτ − 2σ²·d log α/dτ ≥ 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            bend = self.sigma(t) * self.alpha_rate(t) / self.alpha(t)
            return 2.0 * self.outward * self.sigma(t) * (self.sigma_rate(t) - bend)

    def log_snr(self, t: Time) -> Time:
        """log(α²/σ²), twice the λ of the exponential integrators; ±inf at the ends."""
        xp = array_module(t)
        with np.errstate(divide="ignore"):
            return 2.0 * (xp.log(self.alpha(t)) - xp.log(self.sigma(t)))

    @abc.abstractmethod
    def time_at(self, ratio: Time) -> Time:
        """The time at which σ/α is ``ratio`` > 0."""

    def network_basis(self, t: Time) -> tuple[Time, Time] | None:
        """(a, b) of a preconditioned network's own output F = a·data + b·noise; None where nobody defines one."""
        del t
        return None

    def interpolate(self, data: jax.Array, noise: jax.Array, t: Time) -> jax.Array:
        """x_t of a pair."""
        return expand(self.alpha(t), data) * data + expand(self.sigma(t), noise) * noise

    def velocity(self, data: jax.Array, noise: jax.Array, t: Time) -> jax.Array:
        """dx_t/dt of a pair, in this path's time."""
        return expand(self.alpha_rate(t), data) * data + expand(self.sigma_rate(t), noise) * noise


@dataclasses.dataclass(frozen=True)
class FlowPath(Path):
    """Straight lines between noise and data (https://arxiv.org/abs/2210.02747).

    ``data_time=1``: F5-TTS's, x = t·data + (1 − t)·noise, v = data − noise.  ``data_time=0``: SD3's and FLUX's, whose
    time is the noise level, x = (1 − t)·data + t·noise, v = noise − data.
    """

    data_time: float = 1.0

    def __post_init__(self) -> None:
        if self.data_time not in (0.0, 1.0):
            raise ValueError(f"a flow has its data at time 0 or at time 1, got data_time={self.data_time}")

    @property
    def noise_time(self) -> float:
        return 1.0 - self.data_time

    def alpha(self, t: Time) -> Time:
        return 1.0 * t if self.data_time else 1.0 - t

    def sigma(self, t: Time) -> Time:
        return 1.0 - t if self.data_time else 1.0 * t

    def alpha_rate(self, t: Time) -> Time:
        return 0.0 * t - self.outward

    def sigma_rate(self, t: Time) -> Time:
        return 0.0 * t + self.outward

    def time_at(self, ratio: Time) -> Time:
        return (1.0 if self.data_time else ratio) / (1.0 + ratio)


@dataclasses.dataclass(frozen=True)
class VPLinear(Path):
    """Variance preserving with g² = β(t) linear in t (https://arxiv.org/abs/2011.13456): data at 0, noise at 1."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    noise_time = 1.0
    data_time = 0.0

    def _log_alpha(self, t: Time) -> Time:
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def alpha(self, t: Time) -> Time:
        return array_module(t).exp(self._log_alpha(t))

    def sigma(self, t: Time) -> Time:
        xp = array_module(t)
        return xp.sqrt(-xp.expm1(2.0 * self._log_alpha(t)))

    def alpha_rate(self, t: Time) -> Time:
        return self.drift_rate(t) * self.alpha(t)

    def sigma_rate(self, t: Time) -> Time:
        """Infinite at the data."""
        with np.errstate(divide="ignore"):
            return -self.drift_rate(t) * self.alpha(t) ** 2 / self.sigma(t)

    def drift_rate(self, t: Time) -> Time:
        return -0.5 * self.diffusion(t)

    def diffusion(self, t: Time) -> Time:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def time_at(self, ratio: Time) -> Time:
        xp = array_module(ratio)
        total, rise = xp.log1p(ratio**2), self.beta_max - self.beta_min  # ½ rise t² + β_min t = log(1 + σ²/α²)
        return 2.0 * total / (self.beta_min + xp.sqrt(self.beta_min**2 + 2.0 * rise * total))


@dataclasses.dataclass(frozen=True)
class VPCosine(Path):
    """Variance preserving on a circle, α = cos(πt/2), σ = sin(πt/2) (https://arxiv.org/abs/2102.09672).

    Without the paper's offset, which keeps the first of its thousand discrete steps from being too small.
    """

    noise_time = 1.0
    data_time = 0.0

    def alpha(self, t: Time) -> Time:
        return array_module(t).sin(0.5 * math.pi * (1.0 - t))  # exactly 0 at the noise, which a cosine is not

    def sigma(self, t: Time) -> Time:
        return array_module(t).sin(0.5 * math.pi * t)

    def alpha_rate(self, t: Time) -> Time:
        return -0.5 * math.pi * self.sigma(t)

    def sigma_rate(self, t: Time) -> Time:
        return 0.5 * math.pi * self.alpha(t)

    def time_at(self, ratio: Time) -> Time:
        return array_module(ratio).arctan(ratio) / (0.5 * math.pi)


@dataclasses.dataclass(frozen=True)
class VE(Path):
    """Variance exploding in EDM's time, σ = t and α = 1 (https://arxiv.org/abs/2206.00364).

    Attributes:
      sigma_max, sigma_min: the times of noise and of data.
      sigma_data: standard deviation of the data, of the preconditioning alone.
    """

    sigma_max: float = 80.0
    sigma_min: float = 0.0
    sigma_data: float = 0.5

    @property
    def noise_time(self) -> float:
        return self.sigma_max

    @property
    def data_time(self) -> float:
        return self.sigma_min

    def alpha(self, t: Time) -> Time:
        return 0.0 * t + 1.0

    def sigma(self, t: Time) -> Time:
        return 1.0 * t

    def alpha_rate(self, t: Time) -> Time:
        return 0.0 * t

    def sigma_rate(self, t: Time) -> Time:
        return 0.0 * t + 1.0

    def time_at(self, ratio: Time) -> Time:
        return 1.0 * ratio

    def network_basis(self, t: Time) -> tuple[Time, Time]:
        """data = c_skip·x + c_out·F, with c_skip = σ_d²/(σ² + σ_d²) and c_out = σσ_d/√(σ² + σ_d²)."""
        total = array_module(t).sqrt(t**2 + self.sigma_data**2)
        return t / (self.sigma_data * total), -self.sigma_data / total


@dataclasses.dataclass(frozen=True)
class TrigFlow(Path):
    """A quarter circle: x = cos t·data + sin t·(σ_d·noise), F = velocity/σ_d (https://arxiv.org/abs/2410.11081)."""

    sigma_data: float = 1.0
    noise_time = 0.5 * math.pi
    data_time = 0.0

    def alpha(self, t: Time) -> Time:
        return array_module(t).sin(self.noise_time - t)  # exactly 0 at the noise, which a cosine is not

    def sigma(self, t: Time) -> Time:
        return self.sigma_data * array_module(t).sin(t)

    def alpha_rate(self, t: Time) -> Time:
        return -array_module(t).sin(t)

    def sigma_rate(self, t: Time) -> Time:
        return self.sigma_data * array_module(t).cos(t)

    def time_at(self, ratio: Time) -> Time:
        return array_module(ratio).arctan(ratio / self.sigma_data)

    def network_basis(self, t: Time) -> tuple[Time, Time]:
        return self.alpha_rate(t) / self.sigma_data, self.sigma_rate(t) / self.sigma_data
