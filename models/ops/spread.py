"""Broadcasting a vector over rows in a way whose gradient is cheap everywhere."""

import jax
import jax.numpy as jnp


def spread(vector: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Broadcasts ``vector`` [c] or [b, 1, c] to ``shape`` [b, t, c].

    The gradient of a broadcast is a sum over rows. XLA's CPU backend fuses that sum into what produces the rows and
    then walks them column by column, 20 times slower than a product with a row of ones; so on CPU it is such a product.
    """
    if jax.default_backend() != "cpu":
        return jnp.broadcast_to(vector, shape)
    if vector.ndim == 1:
        return (jnp.ones((shape[0] * shape[1], 1), vector.dtype) @ vector[None]).reshape(shape)
    return jnp.ones((shape[1], 1), vector.dtype) @ vector
