"""Normalisations, computed in float32 whatever the type of their input."""

import jax
import jax.numpy as jnp
from flax import nnx

from models.ops.precision import accumulation_dtype
from models.ops.spread import spread


def layer_norm(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """(x - mean) / sqrt(var + eps) over the last axis, no learned part; two-pass variance (no cancellation)."""
    y = x.astype(accumulation_dtype(x.dtype))
    y = y - y.mean(-1, keepdims=True)
    return (y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)).astype(x.dtype)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float = 1e-6) -> jax.Array:
    """x / sqrt(mean(x²) + eps) · scale over the last axis."""
    y = x.astype(accumulation_dtype(x.dtype))
    return (y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps) * scale).astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer norm with learned scale and bias [dim], on [b, t, dim]."""

    def __init__(self, dim: int, *, eps: float = 1e-6):
        self.scale = nnx.Param(jnp.ones(dim))
        self.bias = nnx.Param(jnp.zeros(dim))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = layer_norm(x.astype(accumulation_dtype(x.dtype)), self.eps)
        return (wide * spread(self.scale[...], x.shape) + spread(self.bias[...], x.shape)).astype(x.dtype)


class RMSNorm(nnx.Module):
    """RMS norm with a learned scale [dim]."""

    def __init__(self, dim: int, *, eps: float = 1e-6):
        self.scale = nnx.Param(jnp.ones(dim))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.scale[...], self.eps)


class L2Norm(nnx.Module):
    """x / |x| · sqrt(dim) · scale over the last axis: an RMS norm without an epsilon in the mean, as E2-TTS has it."""

    def __init__(self, dim: int):
        self.scale = nnx.Param(jnp.ones(dim))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(accumulation_dtype(x.dtype))
        energy = jnp.maximum(jnp.square(y).sum(-1, keepdims=True), 1e-24)  # a zero vector stays one, gradients too
        return (y * jax.lax.rsqrt(energy) * (x.shape[-1] ** 0.5 * self.scale[...])).astype(x.dtype)


class GRN(nnx.Module):
    """Global response normalisation over time (ConvNeXt V2, arXiv:2301.00808).

    Every channel's energy over the *whole row* enters, so a padded batch only equals its rows alone if padding is
    left out: ``mask`` does that.
    """

    def __init__(self, dim: int):
        self.gamma = nnx.Param(jnp.zeros(dim))
        self.beta = nnx.Param(jnp.zeros(dim))

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """x [b, t, dim], mask [b, t] bool (frames that count; None = all) -> [b, t, dim]."""
        y = x.astype(accumulation_dtype(x.dtype))
        counted = y if mask is None else jnp.where(mask[..., None], y, 0)
        energy = jnp.square(counted).sum(1, keepdims=True)
        # A channel without energy has no direction: gradient 0 instead of sqrt's infinity.
        norm = jnp.where(energy > 0, jnp.sqrt(jnp.where(energy > 0, energy, 1)), 0)
        response = norm / (norm.mean(-1, keepdims=True) + 1e-6)
        gamma, beta = spread(self.gamma[...], x.shape), spread(self.beta[...], x.shape)
        return (gamma * (y * spread(response, x.shape)) + beta + y).astype(x.dtype)
