"""Embeddings of time and of absolute position."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.layers.linear import linear


def time_sinusoid(time: jax.Array, dim: int = 256, scale: float = 1000.0) -> jax.Array:
    """time [b] in [0, 1] -> [b, dim] = [sin | cos] of scale·t·exp(-k ln(10000) / (dim/2 - 1)), float32."""
    half = dim // 2
    frequency = jnp.exp(-jnp.arange(half, dtype=jnp.float32) * (math.log(10000) / (half - 1)))
    phase = scale * time.astype(jnp.float32)[:, None] * frequency
    return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], -1)


def position_sinusoid(frames: int, dim: int, most: int | None = None) -> jax.Array:
    """[frames, dim] = [cos | sin] of position · 10000^(-2k/dim), float32.

    Positions from ``most`` on are that of the last one before, as in a table of that size.
    """
    frequency = 10000 ** (-jnp.arange(0, dim, 2, dtype=jnp.float32)[: dim // 2] / dim)
    position = jnp.arange(frames, dtype=jnp.float32)
    position = position if most is None else jnp.minimum(position, most - 1)
    phase = position[:, None] * frequency
    return jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], -1)


class TimeEmbedding(nnx.Module):
    """Sinusoid of the time, then a two-layer perceptron: [b] -> [b, dim].

    ``scale`` sets the highest frequency, 1000 as everywhere; where the derivative by the time is trained on, less.
    """

    def __init__(
        self, dim: int, *, width: int = 256, scale: float = 1000.0, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ):
        self.up = linear(width, dim, rngs=rngs, dtype=dtype)
        self.down = linear(dim, dim, rngs=rngs, dtype=dtype)
        self.width, self.scale = width, scale

    def __call__(self, time: jax.Array) -> jax.Array:
        return self.down(jax.nn.silu(self.up(time_sinusoid(time, self.width, self.scale))))
