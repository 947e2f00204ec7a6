"""Test beds with a closed form, Gaussian data N(m, s²) and a mixture, seen through every kind of prediction."""

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


def mixture_denoiser(x: jax.Array, t: jax.Array, condition: jax.Array) -> Prediction:
    """The exact network of ½N(−1, 0.3²) + ½N(1.2, 0.5²), for which no solver is exact by luck."""
    means, stds = jnp.array([-1.0, 1.2], x.dtype), jnp.array([0.3, 0.5], x.dtype)
    variance = (t * stds) ** 2 + (1.0 - t) ** 2
    away = x[..., None] - t * means
    share = jax.nn.softmax(-0.5 * away**2 / variance - 0.5 * jnp.log(variance), axis=-1)
    slope = means + (t * stds**2 - (1.0 - t)) * away / variance  # E[data − noise | x_t, component]
    return Prediction((share * slope).sum(-1), "velocity")
