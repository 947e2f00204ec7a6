"""Dropout with its randomness as an argument."""

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes entries with probability ``rate`` and scales the rest up; the identity without a key or with rate 0.

    Args:
      x: [b, ...].
      key: one key for the whole array, or one per row [b]. With keys per row, a row's mask depends neither on the
        other rows nor on padding behind its end, so batching, sharding and accumulation leave it alone.
    """
    if key is None or rate == 0.0:
        return x
    if key.ndim:
        keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - rate, x.shape[1:]))(key)
    else:
        keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def split_key(key: jax.Array | None, index: jax.Array | int) -> jax.Array | None:
    """``fold_in`` that accepts what ``dropout`` accepts: None, one key, or keys per row."""
    if key is None:
        return None
    fold = jax.vmap(jax.random.fold_in, (0, None)) if key.ndim else jax.random.fold_in
    return fold(key, index)
