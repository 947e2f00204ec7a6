"""Multi-head attention with rotary positions, of one sequence or of two that attend to both."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from models.layers.linear import linear
from models.layers.norm import RMSNorm
from models.layers.rope import apply_rope
from models.ops.attention import MaskSpec, attend

Phases = tuple[jax.Array, jax.Array]


class SelfAttention(nnx.Module):
    """q, k, v projections, optional RMS norm of q and k per head, rotary positions, attention, output projection.

    ``heads * dim_head`` need not equal ``dim``.  ``output=False`` leaves out the last projection, for a sequence that
    is only attended to (see ``joint_attention``).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        dim_head: int,
        *,
        qk_norm: str | None = None,
        rope_heads: int | None = None,
        output: bool = True,
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
        self.out = linear(inner, dim, rngs=rngs, dtype=dtype) if output else None
        self.q_norm = RMSNorm(dim_head) if qk_norm else None
        self.k_norm = RMSNorm(dim_head) if qk_norm else None
        self.heads, self.dim_head, self.rope_heads, self.impl = heads, dim_head, rope_heads, impl

    def __call__(self, x: jax.Array, phases: Phases, mask: MaskSpec) -> jax.Array:
        """x [b, t, dim], phases from ``rope_phases`` -> [b, t, dim]."""
        q, (k, v) = self.queries(x, phases), self.keys_values(x, phases)
        return self.merge(checkpoint_name(attend(q, k, v, mask=mask, impl=self.impl), "attention"))

    def queries(self, x: jax.Array, phases: Phases) -> jax.Array:
        """x [b, t, dim] -> [b, t, heads, dim_head]."""
        q = self._split(self.q(x))
        q = q if self.q_norm is None else self.q_norm(q)
        return apply_rope(q, *phases, heads=self.rope_heads)

    def keys_values(self, x: jax.Array, phases: Phases) -> tuple[jax.Array, jax.Array]:
        """x [b, t, dim] -> two of [b, t, heads, dim_head]."""
        k, v = self._split(self.k(x)), self._split(self.v(x))
        k = k if self.k_norm is None else self.k_norm(k)
        return apply_rope(k, *phases, heads=self.rope_heads), v

    def merge(self, heads: jax.Array) -> jax.Array:
        """What attention found [b, t, heads, dim_head] -> [b, t, dim]."""
        assert self.out is not None
        return self.out(heads.reshape(*heads.shape[:2], -1))

    def _split(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], self.heads, self.dim_head)


def joint_attention(
    first: SelfAttention,
    second: SelfAttention,
    x: jax.Array,
    y: jax.Array,
    phases: tuple[Phases, Phases],
    mask: MaskSpec,
) -> tuple[jax.Array, jax.Array | None]:
    """Two sequences, each with its own projections and positions, attend to both at once (MM-DiT, arXiv:2403.03206).

    Args:
      first, second: projections of ``x`` and of ``y``.
      x, y: [b, t, dim], [b, u, dim].
      phases: rotary phases of both.
      mask: over the t + u keys, those of ``x`` first.

    Returns:
      [b, t, dim] and [b, u, dim]; None for the latter, and no work for it, if ``second`` has no output projection.
    """
    q = first.queries(x, phases[0])
    if second.out is not None:
        q = jnp.concatenate([q, second.queries(y, phases[1])], 1)
    pairs = zip(first.keys_values(x, phases[0]), second.keys_values(y, phases[1]), strict=True)
    k, v = (jnp.concatenate(pair, 1) for pair in pairs)
    found = checkpoint_name(attend(q, k, v, mask=mask, impl=first.impl), "attention")
    own, other = found[:, : x.shape[1]], found[:, x.shape[1] :]
    return first.merge(own), second.merge(other) if second.out is not None else None
