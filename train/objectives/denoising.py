"""Denoising: flow matching, EDM and every other plain regression on a noisy image, by path and kind of prediction.

The network answers one kind of prediction of x_t = α·data + σ·noise; the loss is the squared error of that kind, or of
another one that it stands for.  A flow's velocity gives conditional flow matching (arXiv:2210.02747), F on the VE path
gives EDM with its weights (arXiv:2206.00364), F on the circle TrigFlow (arXiv:2410.11081).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from sampling.grids import karras, uniform
from sampling.paths import VE, Path, expand
from sampling.prediction import Prediction, basis, coefficients, kinds
from sampling.solvers import DPMpp2M, Solver
from train.objectives.generation import (
    Draws,
    Network,
    Networks,
    log_normal_time,
    row_noise,
    row_uniforms,
    shown,
    squared,
)

TIMES = ("uniform", "log_normal")


@dataclasses.dataclass(frozen=True)
class Denoising:
    """The objective's settings.

    Attributes:
      path: between noise and data.
      prediction: what the network answers, a kind of ``sampling.prediction``.
      space: the kind whose squared error is the loss; "" = the prediction's own.
      max_weight: bound of the factor between the two errors, which may grow without limit at an end of the path.
      time: "uniform" over the path, or "log_normal": ln(σ/α) is N(time_mean, time_std²), as EDM's −1.2 and 1.2 (for
        data of deviation 0.5) and the logit-normal times of SD3.
    """

    path: Path
    prediction: str = "velocity"
    space: str = ""
    max_weight: float = 20.0
    time: str = "uniform"
    time_mean: float = 0.0
    time_std: float = 1.0
    spans = False
    needs_teacher = False
    passes = 3

    def __post_init__(self) -> None:
        for name in ("prediction", "space"):
            if (value := getattr(self, name)) and value not in kinds(self.path):
                raise ValueError(f"{name} must be one of {', '.join(kinds(self.path))} on this path, got {value!r}")
        if self.time not in TIMES:
            raise ValueError(f"time must be one of {', '.join(TIMES)}, got {self.time!r}")

    def draw(self, key: jax.Array, index: jax.Array, shape: tuple[int, ...], step: jax.Array) -> Draws:
        """See ``Objective``."""
        del step
        noise_key, time_key = jax.random.split(key)
        [u] = row_uniforms(time_key, index, 1)
        if self.time == "uniform":
            time = self.path.data_time + (self.path.noise_time - self.path.data_time) * u
        else:
            time = log_normal_time(self.path, u, self.time_mean, self.time_std)
        return Draws(row_noise(noise_key, index, shape), time, time)

    def loss(self, networks: Networks, data: jax.Array, draws: Draws, step: jax.Array) -> dict[str, jax.Array]:
        """``denoising``: mean squared error of each row."""
        del step
        t = draws.time
        x = self.path.interpolate(data, draws.noise, t)
        a, b = basis(self.path, t, self.prediction)
        truth = expand(a, data) * data + expand(b, data) * draws.noise
        error = self.denoise(networks.student, x, t).value - truth
        _, scale = coefficients(self.path, t, self.prediction, self.space or self.prediction)
        return {"denoising": squared(error) * jnp.minimum(jnp.abs(scale), self.max_weight) ** 2}

    def denoise(self, network: Network, x: jax.Array, t: jax.Array) -> Prediction:
        """See ``Objective``."""
        return Prediction(network(*shown(self.path, x, t), None), self.prediction)

    def sampler(self, steps: int) -> tuple[Solver, np.ndarray]:
        """DPM-Solver++(2M), second order on every path."""
        if not isinstance(self.path, VE):
            return DPMpp2M(), uniform(steps, self.path.noise_time, self.path.data_time)
        lowest = max(self.path.sigma_min, 4e-3 * self.path.sigma_data)  # EDM's 0.002 for data of deviation 0.5
        return DPMpp2M(), karras(steps, lowest, self.path.sigma_max)
