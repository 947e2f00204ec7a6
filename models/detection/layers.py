"""Parts that the networks of detection share.  Images and maps are [b, height, width, channels].

``size`` [b, 2] is what of every padded image is real, (height, width) in pixels. Networks that are given it see zeros
beyond, wherever a neighbour is looked at, so that a padded image has the features of the image alone; without it the
padding is part of the image, as in the released detectors.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.layers.linear import uniform_init
from models.layers.norm import LayerNorm
from models.ops.attention import MaskSpec, attend

EPS = 1e-5  # PyTorch's, in every norm of the released detectors


def extent(size: jax.Array, stride: int) -> jax.Array:
    """Real rows and columns [b, 2] of a map with ``stride`` pixels per cell; a cell with one real pixel is real."""
    return -(-size // stride)


def inside(size: jax.Array | None, stride: int, shape: tuple[int, ...]) -> jax.Array | None:
    """[b, height, width] bool: which cells of a map of this shape are real; None = all."""
    if size is None:
        return None
    rows, columns = extent(size, stride).T[..., None, None]
    return (jnp.arange(shape[1])[:, None] < rows) & (jnp.arange(shape[2]) < columns)


def xavier(fan_in: int, fan_out: int):
    """U(-a, a) with a = sqrt(6 / (fan_in + fan_out))."""
    return uniform_init((fan_in + fan_out) / 6)


def kaiming(fan: int):
    """N(0, 2 / fan): keeps the variance through ReLUs, forwards for fan in, backwards for fan out."""
    return nnx.initializers.normal(math.sqrt(2 / fan))


def conv(
    din: int,
    dout: int,
    width: int,
    *,
    stride: int = 1,
    use_bias: bool = False,
    kernel_init=None,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """Square convolution with zeros around the map, which gives ceil(size / stride) cells; kernel [w, w, in, out]."""
    return nnx.Conv(
        din,
        dout,
        (width, width),
        strides=stride,
        padding=[(width // 2, width // 2)] * 2,
        use_bias=use_bias,
        kernel_init=kaiming(width * width * dout) if kernel_init is None else kernel_init,
        dtype=dtype,
        rngs=rngs,
    )


class Attention(nnx.Module):
    """Multi-head self-attention that knows no order; starts as PyTorch's does, whose q, k and v are one matrix."""

    def __init__(self, dim: int, heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        if dim % heads:
            raise ValueError(f"{heads} attention heads do not divide {dim} channels")

        def project(outputs):
            init = xavier(dim, outputs)
            return nnx.Linear(dim, dim, kernel_init=init, dtype=dtype, rngs=rngs)

        self.q, self.k, self.v, self.out = project(3 * dim), project(3 * dim), project(3 * dim), project(dim)
        self.heads = heads

    def __call__(self, x: jax.Array, mask: MaskSpec | None = None, bias: jax.Array | None = None) -> jax.Array:
        """x [b, t, dim]; mask and bias as in ``attend`` -> [b, t, dim]."""
        q, k, v = (part(x).reshape(*x.shape[:2], self.heads, -1) for part in (self.q, self.k, self.v))
        return self.out(attend(q, k, v, mask=mask or MaskSpec(), bias=bias).reshape(x.shape))


def norm_channels(norm: LayerNorm, x: jax.Array) -> jax.Array:
    """A layer norm over the channels of every cell."""
    return norm(x.reshape(len(x), -1, x.shape[-1])).reshape(x.shape)
