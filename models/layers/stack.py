"""Depth as a loop: one traced layer, parameters stacked along a leading axis.

Compile time then does not grow with depth. The parameters are stacked whether the loop is scanned or unrolled, so
checkpoints, sharding rules and converters know one layout.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

_POLICIES = jax.checkpoint_policies
REMAT: dict[str, Callable[..., Any] | None] = {
    "full": None,  # keep only each layer's input
    "dots": _POLICIES.checkpoint_dots,  # keep matrix products, recompute the elementwise rest
    "dots_no_batch": _POLICIES.dots_with_no_batch_dims_saveable,  # as dots, but attention scores are recomputed
    "attention": _POLICIES.save_only_these_names("attention"),  # keep attention outputs, recompute the rest
}


def stacked(make: Callable[[nnx.Rngs], nnx.Module], depth: int, rngs: nnx.Rngs) -> nnx.Module:
    """``depth`` independent copies of ``make(rngs)`` as one module, parameters stacked along a new first axis."""

    @nnx.split_rngs(splits=depth)
    @nnx.vmap(in_axes=0, out_axes=0)
    def build(rngs):
        return make(rngs)

    return build(rngs)


def run_stack(
    module: nnx.Module,
    x: Any,
    call: Callable[[Any, Any, jax.Array], Any],
    *,
    scan: bool = True,
    remat: str = "none",
) -> Any:
    """Applies the copies in a ``stacked`` module one after the other.

    Args:
      x: what flows through, an array or a pytree.
      call: ``call(layer, x, index) -> x`` with one copy and its number.
      scan, remat: see ``scan_stack``.
    """
    return scan_stack(module, x, lambda layer, x, index, _: (call(layer, x, index), None), scan=scan, remat=remat)[0]


def scan_stack(
    module: nnx.Module,
    x: Any,
    call: Callable[[Any, Any, jax.Array, Any], tuple[Any, Any]],
    rows: Any = None,
    *,
    scan: bool = True,
    remat: str = "none",
) -> tuple[Any, Any]:
    """``run_stack`` for layers that also take something of their own and leave something behind.

    Args:
      call: ``call(layer, x, index, row) -> (x, left)``.
      rows: pytree of arrays [depth, ...], ``row`` being one layer's part.
      scan: ``lax.scan`` (compiles one layer) or an unrolled loop (compiles all; XLA may fuse across layers).
      remat: "none" or a key of ``REMAT``: what the backward pass keeps.

    Returns:
      x, and what the layers left, stacked along a new first axis.
    """
    if remat != "none" and remat not in REMAT:
        raise ValueError(f"remat is {remat!r}; expected none, {', '.join(REMAT)}")
    graph, state = nnx.split(module)
    depth = jax.tree.leaves(state)[0].shape[0]

    def body(carry, layer):
        index, params, row = layer
        return call(nnx.merge(graph, params), carry, index, row)

    if remat != "none":
        # Inside scan the loop itself keeps XLA from merging the recomputation with the first computation.
        body = jax.checkpoint(body, policy=REMAT[remat], prevent_cse=not scan)
    if scan:
        return jax.lax.scan(body, x, (jnp.arange(depth), state, rows))
    # lax.split, not indexing: its gradient is one concatenation instead of `depth` sums of padded arrays.
    columns = jax.tree.map(lambda p: [row[0] for row in jax.lax.split(p, (1,) * depth, axis=0)], (state, rows))
    outer, inner = jax.tree.structure((state, rows)), jax.tree.structure([0] * depth)
    left = []
    for index, (params, row) in enumerate(jax.tree.transpose(outer, inner, columns)):
        x, rest = body(x, (jnp.asarray(index), params, row))
        left.append(rest)
    return x, jax.tree.map(lambda *a: jnp.stack(a), *left)
