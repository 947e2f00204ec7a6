"""Log-weights.  Every function reduces the last axis, subtracts the maximum first, and expects float32 or more.

Weights that all vanish have no normalisation: here they become uniform, and ``log_mean`` says −inf.
"""

import jax
import jax.numpy as jnp


def log_mean(logw: jax.Array) -> jax.Array:
    """log of the mean weight, [..., k] -> [...]: −inf if all vanish, NaN if one is NaN."""
    return jax.nn.logsumexp(logw, axis=-1) - jnp.log(jnp.asarray(logw.shape[-1], logw.dtype))


def normalise(logw: jax.Array) -> jax.Array:
    """Weights that sum to 1; uniform where the log-weights have no finite sum."""
    dead = ~jnp.isfinite(log_mean(logw))[..., None]
    return jax.nn.softmax(jnp.where(dead, 0.0, logw), axis=-1)


def effective(logw: jax.Array) -> jax.Array:
    """Effective number of particles 1/Σw², between 1 and k; 0 where the log-weights have no finite sum."""
    alive = jnp.isfinite(log_mean(logw))
    return jnp.where(alive, 1.0 / (normalise(logw) ** 2).sum(-1), 0.0)
