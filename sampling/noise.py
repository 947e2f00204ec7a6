"""Noise that belongs to a sample, not to its place in a batch.

Row i's numbers come from ``fold_in(key, sample id)``: the same for every batch size, order, padding and device count.
"""

import jax
import jax.numpy as jnp


def sample_keys(key: jax.Array, ids: jax.Array) -> jax.Array:
    """One key per sample id: [b]."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(ids, jnp.uint32))


def start_noise(key: jax.Array, ids: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """Standard normal numbers [b, *shape].

    A longer first axis only appends numbers (JAX's default generator counts positions), so a sequence padded to another
    bucket keeps the noise of its real frames; ``tests/sampling`` holds it to that.
    """
    return jax.vmap(lambda k: jax.random.normal(k, shape, dtype))(sample_keys(key, ids))
