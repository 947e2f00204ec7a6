"""Transformer blocks steered by the time embedding (AdaLN-zero, arXiv:2212.09748), and the norm that ends them."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.layers.attention import Phases, SelfAttention
from models.layers.conv import zero_outside
from models.layers.dropout import dropout, split_key
from models.layers.linear import linear
from models.layers.norm import layer_norm
from models.ops.attention import MaskSpec
from models.ops.spread import spread


class AdaLNBlock(nnx.Module):
    """Transformer block whose norms are shifted, scaled and gated by the time embedding, starting as the identity.

    ``enter`` and ``leave`` are what comes before and after attention, for blocks that attend together.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        dim_head: int,
        hidden: int,
        *,
        qk_norm: str | None,
        rope_heads: int | None = None,
        rate: float,
        attn_impl: str,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.modulation = linear(dim, 6 * dim, rngs=rngs, dtype=dtype, zero=True)
        self.attn = SelfAttention(
            dim, heads, dim_head, qk_norm=qk_norm, rope_heads=rope_heads, impl=attn_impl, dtype=dtype, rngs=rngs
        )
        self.up = linear(dim, hidden, rngs=rngs, dtype=dtype)
        self.down = linear(hidden, dim, rngs=rngs, dtype=dtype)
        self.rate = rate

    def __call__(
        self,
        x: jax.Array,
        time: jax.Array,
        phases: Phases,
        mask: MaskSpec,
        inside: jax.Array | None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """x [b, t, dim], time [b, dim] after SiLU, inside [b, t] bool or None -> [b, t, dim]."""
        y, rest = self.enter(x, time)
        y = dropout(self.attn(y, phases, mask), self.rate, split_key(key, 0))
        return self.leave(x, y, rest, inside, split_key(key, 1))

    def enter(self, x: jax.Array, time: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        """What attention sees [b, t, dim], and what ``leave`` needs of the time embedding."""
        parts = jnp.split(self.modulation(time)[:, None], 6, -1)
        shift, scale, *rest = (spread(part, x.shape) for part in parts)
        return layer_norm(x) * (1 + scale) + shift, rest

    def leave(
        self, x: jax.Array, y: jax.Array, rest: list[jax.Array], inside: jax.Array | None, key: jax.Array | None
    ) -> jax.Array:
        """Adds what attention found, ``y``, and then the feed-forward."""
        gate_attention, shift, scale, gate = rest
        x = x + gate_attention * zero_outside(y, inside)
        y = jax.nn.gelu(self.up(layer_norm(x) * (1 + scale) + shift), approximate=True)
        return x + gate * self.down(dropout(y, self.rate, key))


def final_norm(modulation: nnx.Linear, x: jax.Array, time: jax.Array) -> jax.Array:
    """The last norm: scaled and shifted by ``modulation`` of the time embedding [b, dim] after SiLU."""
    scale, shift = jnp.split(modulation(time)[:, None], 2, -1)  # this order, unlike the blocks'
    return layer_norm(x) * (1 + scale) + shift
