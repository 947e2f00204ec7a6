"""Multi-head self-attention with rotary positions."""

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from models.layers.linear import linear
from models.layers.norm import RMSNorm
from models.layers.rope import apply_rope
from models.ops.attention import MaskSpec, attend


class SelfAttention(nnx.Module):
    """q, k, v projections, optional RMS norm of q and k per head, rotary positions, attention, output projection.

    ``heads * dim_head`` need not equal ``dim``.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        dim_head: int,
        *,
        qk_norm: str | None = None,
        rope_heads: int | None = None,
        impl: str = "auto",
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        if qk_norm not in (None, "rms_norm"):
            raise ValueError(f"qk_norm is {qk_norm!r}; expected None or 'rms_norm'")
        inner = heads * dim_head
        self.q = linear(dim, inner, rngs=rngs, dtype=dtype)
        self.k = linear(dim, inner, rngs=rngs, dtype=dtype)
        self.v = linear(dim, inner, rngs=rngs, dtype=dtype)
        self.out = linear(inner, dim, rngs=rngs, dtype=dtype)
        self.q_norm = RMSNorm(dim_head) if qk_norm else None
        self.k_norm = RMSNorm(dim_head) if qk_norm else None
        self.heads, self.dim_head, self.rope_heads, self.impl = heads, dim_head, rope_heads, impl

    def __call__(self, x: jax.Array, phases: tuple[jax.Array, jax.Array], mask: MaskSpec) -> jax.Array:
        """x [b, t, dim], phases from ``rope_phases`` -> [b, t, dim]."""
        q, k, v = (p(x).reshape(*x.shape[:2], self.heads, self.dim_head) for p in (self.q, self.k, self.v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q = apply_rope(q, *phases, heads=self.rope_heads)
        k = apply_rope(k, *phases, heads=self.rope_heads)
        out = checkpoint_name(attend(q, k, v, mask=mask, impl=self.impl), "attention")
        return self.out(out.reshape(*x.shape[:2], -1))
