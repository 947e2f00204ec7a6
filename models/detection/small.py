"""A small backbone for small images: it learns from scratch within minutes on a CPU."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.detection.layers import EPS, conv, inside, kaiming, norm_channels
from models.layers.axes import Rules
from models.layers.conv import zero_outside
from models.layers.norm import LayerNorm

AXES: Rules = [
    (r"(enter|shrink)/\d+/conv/kernel", ("conv", "conv", None, "embed")),
    (r"blocks/\d+/\d+/(first|second)/conv/kernel", ("conv", "conv", None, "embed")),
    (r".*norm/(scale|bias)", ("norm",)),
]


class Unit(nnx.Module):
    """3×3 convolution and a norm over the channels of each cell, which no padding can touch."""

    def __init__(self, din: int, dout: int, *, stride: int = 1, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = conv(din, dout, 3, stride=stride, kernel_init=kaiming(9 * din), dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(dout, eps=EPS)

    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        """x [b, h, w, din] whose real cells ``mask`` tells."""
        return norm_channels(self.norm, self.conv(zero_outside(x, mask)))


class Block(nnx.Module):
    """Two of them around a shortcut."""

    def __init__(self, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.first = Unit(dim, dim, dtype=dtype, rngs=rngs)
        self.second = Unit(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        return jax.nn.relu(x + self.second(jax.nn.relu(self.first(x, mask)), mask))


class SmallBackbone(nnx.Module):
    """Images -> maps at strides 4, 8, …, one per width.

    Args:
      widths: channels of each map.
      depths: residual blocks at each resolution.
      dtype: type of the convolutions.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int] = (64, 96, 128),
        depths: Sequence[int] = (1, 1, 1),
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if len(widths) != len(depths):
            raise ValueError(f"widths {tuple(widths)} and depths {tuple(depths)} differ in length")
        self.channels, self.strides = tuple(widths), tuple(4 * 2**i for i in range(len(widths)))

        def shrink(din, dout):
            return Unit(din, dout, stride=2, dtype=dtype, rngs=rngs)

        self.enter = nnx.List([shrink(3, widths[0] // 2), shrink(widths[0] // 2, widths[0])])
        self.shrink = nnx.List([shrink(*pair) for pair in itertools.pairwise(widths)])
        self.blocks = nnx.List(
            [
                nnx.List([Block(width, dtype=dtype, rngs=rngs) for _ in range(depth)])
                for width, depth in zip(widths, depths, strict=True)
            ]
        )

    def __call__(self, images: jax.Array, size: jax.Array | None = None, key: jax.Array | None = None):
        """images [b, H, W, 3] normalised, ``size`` as in ``layers`` -> a map per width, finest first."""
        del key  # nothing is random
        x, out = images, []
        for i, unit in enumerate(self.enter):
            x = jax.nn.relu(unit(x, inside(size, 2**i, x.shape)))
        for i, (stride, blocks) in enumerate(zip(self.strides, self.blocks, strict=True)):
            if i:
                x = jax.nn.relu(self.shrink[i - 1](x, inside(size, stride // 2, x.shape)))
            for block in blocks:
                x = block(x, inside(size, stride, x.shape))
            out.append(x)
        return tuple(out)
