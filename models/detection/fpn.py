"""Feature pyramid: every level sees what the coarser ones know (arXiv:1612.03144)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.detection.layers import conv, inside
from models.layers.axes import Rules
from models.layers.conv import zero_outside
from models.layers.linear import uniform_init

AXES: Rules = [
    (r"(lateral|output)/\d+/kernel", ("conv", "conv", None, "embed")),
    (r"(lateral|output)/\d+/bias", ("norm",)),
]


class FPN(nnx.Module):
    """1×1 convolutions to one width, sums from coarse to fine by repetition, 3×3 convolutions.

    Args:
      channels: of the maps it is given, finest first, each twice as coarse as the one before.
      dim: of the levels.
      levels: how many it returns, the finest ones; None = all.
    """

    def __init__(
        self,
        channels: Sequence[int],
        dim: int,
        *,
        levels: int | None = None,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        levels = len(channels) if levels is None else levels
        if not 1 <= levels <= len(channels):
            raise ValueError(f"levels is {levels}; the backbone has {len(channels)}")

        def layer(din, width):
            init = uniform_init(din * width * width / 3)
            return conv(din, dim, width, use_bias=True, kernel_init=init, dtype=dtype, rngs=rngs)

        self.lateral = nnx.List([layer(din, 1) for din in channels])
        self.output = nnx.List([layer(dim, 3) for _ in range(levels)])

    def __call__(
        self, maps: Sequence[jax.Array], strides: Sequence[int], size: jax.Array | None = None
    ) -> tuple[jax.Array, ...]:
        """maps [b, H_l, W_l, c_l], ``strides`` pixels per cell, size as in ``layers`` -> levels [b, H_l, W_l, dim]."""
        above, merged = None, []
        for lateral, x in reversed(list(zip(self.lateral, maps, strict=True))):
            x = lateral(x)
            if above is not None:
                twice = above.repeat(2, axis=1).repeat(2, axis=2)
                x = x + twice[:, : x.shape[1], : x.shape[2]]
            merged.insert(0, above := x)
        merged = [zero_outside(x, inside(size, stride, x.shape)) for x, stride in zip(merged, strides, strict=True)]
        return tuple(output(x) for output, x in zip(self.output, merged, strict=False))
