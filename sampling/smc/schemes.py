"""Resampling schemes: normalised weights and uniform numbers in, parents' indices out.

Every scheme is unbiased: E[copies of i] = N·w_i.  The common rule: uniform u picks the first i with w_0 + … + w_i > u.
Systematic, stratified and residual resampling are reviewed by Douc, Cappé & Moulines (https://arxiv.org/abs/cs/0507025).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp


def pick(weights: jax.Array, u: jax.Array) -> jax.Array:
    """The first index [m] whose cumulative weight exceeds u [m]; never one of weight zero, however sums round."""
    return jnp.minimum(jnp.searchsorted(jnp.cumsum(weights), u, side="right"), _last(weights)).astype(jnp.int32)


def _last(weights: jax.Array) -> jax.Array:
    """The last index with any weight."""
    return jnp.max(jnp.where(weights > 0, jnp.arange(weights.shape[0]), 0))


def multinomial(weights: jax.Array, u: jax.Array) -> jax.Array:
    """N independent draws; ``u`` [N]."""
    return pick(weights, u)


def stratified(weights: jax.Array, u: jax.Array) -> jax.Array:
    """One draw in each of N equal strata; ``u`` [N].

    Same indices as ``pick``, by counting instead of searching: particle i is past the first ⌊N·(w_0 + … + w_i)⌋ points,
    give or take one, which three comparisons settle.
    """
    n = weights.shape[0]
    reach, inf = jnp.cumsum(weights), jnp.full(2, jnp.inf, weights.dtype)
    points = jnp.concatenate([-inf[:1], (jnp.arange(n) + u) / n, inf])  # of strata −1 … n + 1
    guess = jnp.clip(jnp.floor(n * reach).astype(jnp.int32), 0, n)
    passed = guess - 1 + sum((points[guess + j] < reach).astype(jnp.int32) for j in range(3))
    parents = jnp.cumsum(jnp.zeros(n + 1, jnp.int32).at[passed].add(1))[:n]  # how many pass no more than k points
    return jnp.minimum(parents, _last(weights).astype(jnp.int32))


def systematic(weights: jax.Array, u: jax.Array) -> jax.Array:
    """N equally spaced points with one common offset ``u``: copies differ from N·w by less than one."""
    return stratified(weights, u)


def residual_systematic(weights: jax.Array, u: jax.Array) -> jax.Array:
    """⌊N·w⌋ copies of each, in order, and the rest systematically in proportion to what is left; ``u`` scalar."""
    return _residual(weights, lambda k, rest: (k + u) / rest)


def residual_multinomial(weights: jax.Array, u: jax.Array) -> jax.Array:
    """⌊N·w⌋ copies of each, in order, and the rest independently in proportion to what is left; ``u`` [N]."""
    return _residual(weights, lambda k, rest: u[k])


def _residual(weights: jax.Array, points: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
    n = weights.shape[0]
    expected = n * weights
    whole = jnp.floor(expected + 1e-12)  # 3.0 may come as 2.9999999999999996
    certain = whole.sum().astype(jnp.int32)
    left = jnp.maximum(expected - whole, 0.0)
    place = jnp.arange(n)
    copies = jnp.searchsorted(jnp.cumsum(whole), place, side="right").astype(jnp.int32)
    drawn = pick(left / jnp.maximum(left.sum(), jnp.finfo(left.dtype).tiny),
                 points(jnp.maximum(place - certain, 0), jnp.maximum(n - certain, 1)))  # fmt: skip
    return jnp.where(place < certain, copies, drawn)


@dataclasses.dataclass(frozen=True)
class Scheme:
    """A rule and how many uniform numbers a swarm needs for it: one, or one per particle."""

    parents: Callable[[jax.Array, jax.Array], jax.Array]
    one_uniform: bool


SCHEMES = {
    "multinomial": Scheme(multinomial, False),
    "stratified": Scheme(stratified, False),
    "systematic": Scheme(systematic, True),
    "residual_systematic": Scheme(residual_systematic, True),
    "residual_multinomial": Scheme(residual_multinomial, False),
}


def scheme(name: str) -> Scheme:
    """A scheme by its name."""
    if name not in SCHEMES:
        raise ValueError(f"unknown resampling scheme {name!r}; expected one of {', '.join(SCHEMES)}")
    return SCHEMES[name]
