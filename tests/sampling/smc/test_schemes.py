"""Resampling schemes: exact rules, unbiasedness over many uniforms, and the bounds that each one promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sampling.smc.schemes import SCHEMES, pick, scheme
from sampling.smc.weights import effective, log_mean, normalise

DRAWS = 10_000


@functools.cache
def counts(name: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(weights [n], copies of each in every draw [DRAWS, n])."""
    rng = np.random.default_rng(n)
    weights = rng.gamma(0.4, size=n)
    weights /= weights.sum()
    rule = scheme(name)
    u = rng.uniform(size=(DRAWS,) if rule.one_uniform else (DRAWS, n))
    copies = jax.vmap(lambda w, u: jnp.bincount(rule.parents(w, u), length=n), (None, 0))
    with jax.enable_x64(True):
        return weights, np.asarray(jax.jit(copies)(weights, u))


@pytest.mark.parametrize("n", [5, 24])
@pytest.mark.parametrize("name", SCHEMES)
def test_unbiased(name, n):
    weights, copies = counts(name, n)
    assert (copies.sum(1) == n).all()
    error = np.abs(copies.mean(0) - n * weights)
    spread = copies.std(0) / np.sqrt(DRAWS)
    assert (error <= 5 * spread + 1e-12).all(), error / spread


@pytest.mark.parametrize("n", [5, 24])
def test_systematic_copies_are_within_one_of_their_mean(n):
    weights, copies = counts("systematic", n)
    assert (np.abs(copies - n * weights) < 1).all()


@pytest.mark.parametrize("name", ["residual_systematic", "residual_multinomial"])
def test_residual_keeps_the_whole_part(name):
    weights, copies = counts(name, 24)
    assert (copies >= np.floor(24 * weights)).all()


def test_variance_falls_from_multinomial_to_systematic_schemes():
    variance = {name: counts(name, 24)[1].var(0).sum() for name in SCHEMES}
    for better in ("stratified", "systematic", "residual_multinomial", "residual_systematic"):
        assert variance[better] < variance["multinomial"]


@pytest.mark.parametrize("name", SCHEMES)
def test_equal_weights_lose_nobody_where_the_rule_says_so(name):
    n = 16
    u = jnp.float32(0.3) if scheme(name).one_uniform else jnp.linspace(0.01, 0.99, n)
    got = np.asarray(scheme(name).parents(jnp.full(n, 1 / n), u))
    if name != "multinomial":
        np.testing.assert_array_equal(got, np.arange(n))


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("u", [0.0, 0.5, 1.0 - 2.0**-24])
def test_a_particle_of_weight_zero_is_never_copied(name, u):
    """At the ends of the unit interval too, and where float32 sums do not reach 1."""
    rng = np.random.default_rng(3)
    weights = rng.uniform(size=1001).astype(np.float32)
    weights[[0, 1, 500, 999, 1000]] = 0.0
    weights /= weights.sum()
    rule = scheme(name)
    got = np.asarray(
        jax.jit(rule.parents)(weights, jnp.float32(u) if rule.one_uniform else jnp.full(1001, u, jnp.float32))
    )
    assert (weights[got] > 0).all()


@pytest.mark.parametrize("n", [1, 2, 3, 1000])
def test_counting_is_searching(n):
    """The fast rule of strata against the definition, with zero weights and ties."""
    rng = np.random.default_rng(n)
    for trial in range(20):
        weights = rng.gamma(0.2, size=n) * (rng.uniform(size=n) < 0.7) + (np.arange(n) == trial % n)
        weights = np.round(weights / weights.sum() * 64) / 64 if trial % 2 else weights / weights.sum()
        weights = np.where(np.arange(n) == n - 1, weights + 1 - weights.sum(), weights).clip(0).astype(np.float32)
        u = (
            rng.choice([0.0, 0.25, 0.999], size=n).astype(np.float32)
            if trial % 2
            else rng.uniform(size=n).astype(np.float32)
        )
        points = (jnp.arange(n) + u) / n
        np.testing.assert_array_equal(COUNT(weights, u), SEARCH(weights, points))


COUNT, SEARCH = jax.jit(SCHEMES["stratified"].parents), jax.jit(pick)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="systematic"):
        scheme("systemic")


def test_weights_survive_scales_and_say_when_they_vanish():
    logw = jnp.array(
        [[0.0, 1.0, -1.0], [900.0, 901.0, 899.0], [-jnp.inf, 0.0, -jnp.inf], [-jnp.inf] * 3, [0.0, jnp.nan, 0.0]]
    )
    weights, ess, mean = normalise(logw), effective(logw), log_mean(logw)
    np.testing.assert_allclose(weights.sum(1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(weights[0], weights[1], rtol=1e-4)
    np.testing.assert_allclose(mean[1] - mean[0], 900.0, rtol=1e-6)
    np.testing.assert_allclose(ess[:3], [1 / (np.asarray(weights[0]) ** 2).sum(), ess[0], 1.0], rtol=1e-4)
    np.testing.assert_array_equal(ess[3:], [0.0, 0.0])
    assert mean[3] == -np.inf and np.isnan(mean[4])
    np.testing.assert_allclose(weights[3], 1 / 3, rtol=1e-6)
