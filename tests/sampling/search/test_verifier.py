"""Ranks and ensembles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sampling.search.candidates import best
from sampling.search.verifier import Ensemble, host, merit, ranks, score


def test_ranks_agree_with_counting():
    scores = np.random.default_rng(0).integers(0, 6, (20, 3, 2)).astype(np.float32)  # with ties
    expected = 1 + (scores[None] > scores[:, None]).sum(1)
    np.testing.assert_array_equal(jax.jit(ranks)(scores), expected)


def test_an_ensemble_does_not_see_scales():
    scores = jax.random.normal(jax.random.key(0), (12, 5, 3))
    squeezed = scores.at[..., 1].set(jnp.tanh(scores[..., 1]) * 1e-3 + 7.0).at[..., 2].multiply(1e6)
    np.testing.assert_array_equal(merit(scores), merit(squeezed))
    order = jnp.array([3, 1, 0, 2, 4, 7, 6, 5, 11, 10, 9, 8])
    np.testing.assert_array_equal(merit(scores[order]), merit(scores)[order])


def test_nan_is_below_everything_and_the_first_of_equals_wins():
    scores = jnp.array([[jnp.nan, 0.0], [-jnp.inf, 1.0], [-5.0, 1.0], [jnp.nan, -1.0]])[..., None]
    np.testing.assert_array_equal(best(scores, 2), [[2, 1], [1, 2]])
    two = jnp.stack([scores, scores.at[2, 0].set(jnp.nan)], axis=-1)[..., 0, :]
    assert not np.isfinite(merit(two))[[0, 2, 3], 0].any(), "what one member cannot judge is not chosen"


def test_scores_are_float32_at_least():
    samples = jnp.ones((4, 2), jnp.bfloat16)
    assert score(lambda x, c: x[:, 0], samples, None, 4).dtype == jnp.float32
    assert score(lambda x, c: jnp.arange(4), samples, None, 4).dtype == jnp.float32


def test_a_verifier_may_be_plain_python():
    verifier = host(lambda x, c: np.asarray(x).sum(-1) - np.asarray(c))
    samples = jnp.arange(24.0).reshape(3, 4, 2)
    got = jax.jit(jax.vmap(lambda x: verifier(x, jnp.arange(4.0))))(samples)
    np.testing.assert_allclose(got, samples.sum(-1) - jnp.arange(4.0))


def test_an_empty_ensemble_is_refused():
    with pytest.raises(ValueError, match="at least one verifier"):
        Ensemble(())
