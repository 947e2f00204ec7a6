"""A test bed with a closed form, Gaussian data N(m, s²), seen through every kind of prediction."""

import jax
import jax.numpy as jnp

from sampling.paths import FlowPath, expand
from sampling.prediction import Prediction, convert

MEAN, STD = 1.5, 0.4


def exact_state(x: jax.Array, t: float) -> jax.Array:
    """Where the probability flow takes noise ``x`` from time 0 to t."""
    return t * MEAN + ((t * STD) ** 2 + (1.0 - t) ** 2) ** 0.5 * x


def denoiser(kind: str = "velocity"):
    """The exact network: E[data | x_t], handed out as ``kind``."""

    def denoise(x: jax.Array, t: jax.Array, shift: jax.Array) -> Prediction:
        t = jnp.asarray(t)
        variance = (t * STD) ** 2 + (1.0 - t) ** 2
        mean = MEAN + expand(shift, x)
        data = mean + t * STD**2 * (x - t * mean) / variance
        noise = (1.0 - t) * (x - t * mean) / variance  # E[noise | x_t], so velocity is finite at both ends
        if kind == "velocity":
            return Prediction(data - noise, kind)
        return convert(Prediction(data, "data"), x, t, FlowPath(), kind)

    return denoise
