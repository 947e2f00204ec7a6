"""Muon: momentum whose update is made orthogonal by Newton-Schulz iterations.

Jordan et al. 2024, kellerjordan.github.io/posts/muon.

Why not ``optax.contrib.muon``: it keeps the iteration's coefficients in its state (a checkpoint would override the
code), brings its own partition into Muon and Adam, which cannot be combined with ours by path, and returns states with
masked holes where we keep plain dicts.  The iteration here runs on whole stacks ``[layers, in, out]`` in batched
matmuls.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
SCALES = ("rms", "shape")


def orthogonalize(g: jax.Array, *, steps: int = STEPS, dtype: Any = jnp.float32) -> jax.Array:
    """Replaces the singular values of every matrix in ``g [..., m, n]`` by values near one (about 0.7 to 1.2).

    The coefficients are chosen for the slope at zero, so five steps lift singular values of 1e-3 of the norm; the
    result is not exactly ``U V^T`` and need not be.  A zero matrix stays zero.
    """
    a, b, c = COEFFICIENTS
    tall = g.shape[-2] > g.shape[-1]
    x = (jnp.swapaxes(g, -1, -2) if tall else g).astype(jnp.float32)  # the Gram matrix is the smaller one
    # Dividing by the largest entry first keeps the norm's squares inside float32 whatever the gradient's size.
    x = x / jnp.maximum(jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True), jnp.finfo(jnp.float32).tiny)
    x = (x / jnp.maximum(jnp.linalg.norm(x, axis=(-2, -1), keepdims=True), 1e-7)).astype(dtype)
    for _ in range(steps):
        gram = x @ jnp.swapaxes(x, -1, -2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = jnp.swapaxes(x, -1, -2) if tall else x
    return x.astype(g.dtype)


def update_scale(shape: tuple[int, ...], scale: str) -> float:
    """Factor on the orthogonal update of a kernel ``[..., in, out]``.

    ``rms``: ``0.2 * sqrt(max(in, out))`` gives the update the root mean square that AdamW's has, so both take the same
    learning rate and weight decay (Liu et al. 2025, arXiv:2502.16982).  ``shape``: ``sqrt(max(1, out / in))``, the
    original, whose learning rates are around 0.02.
    """
    rows, columns = shape[-2:]
    if scale == "rms":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, columns / rows))


def scale_by_muon(momentum: float = 0.95, *, nesterov: bool = True, scale: str = "rms") -> optax.GradientTransformation:
    """Transformation of gradients of matrices and stacks of matrices; its state is ``{"mu": momentum}``, float32.

    Raises:
      ValueError: unknown ``scale``, or a leaf that is not a matrix.
    """
    if scale not in SCALES:
        raise ValueError(f"muon scale {scale!r} is not known; choose one of {', '.join(SCALES)}")

    def init(params: Any) -> dict[str, Any]:
        if any(p.ndim < 2 for p in jax.tree.leaves(params)):
            raise ValueError("Muon updates matrices only; give vectors to AdamW")
        return {"mu": jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)}

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        mu = jax.tree.map(lambda m, g: momentum * m + (1 - momentum) * g, state["mu"], updates)
        ahead = jax.tree.map(lambda m, g: momentum * m + (1 - momentum) * g, mu, updates) if nesterov else mu
        return jax.tree.map(lambda x: update_scale(x.shape, scale) * orthogonalize(x), ahead), {"mu": mu}

    return optax.GradientTransformation(init, update)
