"""Dense layers and tables with PyTorch's initial distributions: training starts where published recipes start."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike


def uniform_init(fan_in: float):
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): torch's default for the kernels and biases of Linear and Conv."""
    bound = 1 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        return jax.random.uniform(key, shape, dtype, -bound, bound, out_sharding=out_sharding)

    return init


def linear(
    din: int, dout: int, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32, use_bias: bool = True, zero: bool = False
) -> nnx.Linear:
    """``x [..., din] -> [..., dout]`` with kernel [din, dout]; ``zero`` starts it as the zero map (AdaLN-zero)."""
    init = nnx.initializers.zeros if zero else uniform_init(din)
    return nnx.Linear(din, dout, use_bias=use_bias, dtype=dtype, kernel_init=init, bias_init=init, rngs=rngs)


class Table(nnx.Module):
    """Rows of learned vectors, standard normal at the start."""

    def __init__(self, rows: int, dim: int, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.table = nnx.Param(jax.random.normal(rngs.params(), (rows, dim)))
        self.dtype = dtype

    def __call__(self, ids: jax.Array) -> jax.Array:
        """ids [...] int -> [..., dim].  An id outside the table gives NaN rather than some other row."""
        return jnp.take(self.table[...], ids, axis=0, mode="fill").astype(self.dtype)
