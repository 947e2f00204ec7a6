"""Rotary position embedding (RoFormer, arXiv:2104.09864).

Phases are float32 always: in float16 the product position × frequency is off by up to 2 rad at position 3000.
"""

import jax
import jax.numpy as jnp

from models.ops.precision import accumulation_dtype


def rope_phases(positions: jax.Array, dim: int, base: float = 10000.0) -> tuple[jax.Array, jax.Array]:
    """positions [...] -> (cos, sin), each [..., dim/2] float32, of position · base^(-2k/dim)."""
    frequency = base ** (-jnp.arange(0, dim, 2, dtype=jnp.float32) / dim)
    phase = positions[..., None].astype(jnp.float32) * frequency
    return jnp.cos(phase), jnp.sin(phase)


def apply_rope(x: jax.Array, cos: jax.Array, sin: jax.Array, *, heads: int | None = None) -> jax.Array:
    """Rotates the interleaved pairs (2k, 2k+1) of every head, as GPT-J and x-transformers do.

    Args:
      x: [b, t, h, dim].
      cos, sin: [t, dim/2] or [b, t, dim/2] from ``rope_phases``.
      heads: rotate only the first ``heads`` heads (F5-TTS v0: one); None = all.
    """
    if heads is not None and heads < x.shape[-2]:
        rotated = apply_rope(x[..., :heads, :], cos, sin)
        return jnp.concatenate([rotated, x[..., heads:, :]], -2)
    y = x.astype(accumulation_dtype(x.dtype))
    cos, sin = cos[..., None, :], sin[..., None, :]  # one phase for all heads
    even, odd = y[..., 0::2], y[..., 1::2]
    pairs = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], -1)
    return pairs.reshape(x.shape).astype(x.dtype)
