"""Muon: the update is orthogonal up to the iteration's known spread, for single matrices and for stacks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train import muon

orthogonalize = jax.jit(muon.orthogonalize)


@pytest.mark.parametrize("shape", [(16, 16), (32, 8), (8, 32), (3, 12, 24), (2, 24, 12)])
@pytest.mark.parametrize("size", [1e-20, 1e-6, 1.0, 1e15])
def test_singular_values_are_near_one(shape, size):
    g = jax.random.normal(jax.random.key(0), shape) * size
    out = np.asarray(orthogonalize(g))
    values = np.linalg.svd(out, compute_uv=False)
    assert values.min() > 0.5 and values.max() < 1.3
    # The same singular vectors: the product with the exact polar factor is close to the identity.
    u, _, vt = np.linalg.svd(np.asarray(g, np.float64), full_matrices=False)
    inner = np.swapaxes(u, -1, -2) @ out @ np.swapaxes(vt, -1, -2)
    diagonal = np.einsum("...ii->...i", inner)
    np.testing.assert_allclose(np.sort(diagonal), np.sort(values), atol=1e-3)


def test_a_stack_is_its_matrices():
    stack = jax.random.normal(jax.random.key(1), (4, 8, 24))
    single = jnp.stack([orthogonalize(g) for g in stack])
    np.testing.assert_allclose(orthogonalize(stack), single, atol=1e-6)


def test_equals_optax_on_a_matrix():
    """Same iteration and same nesterov direction; optax's bias corrections scale the momentum, which changes little."""
    g = jax.random.normal(jax.random.key(2), (12, 20))
    ours, _ = jax.jit((tx := muon.scale_by_muon(scale="shape")).update)({"w": g}, tx.init({"w": g}))
    theirs = optax.contrib.scale_by_muon(weight_dimension_numbers=optax.contrib.MuonDimensionNumbers())
    expected, _ = jax.jit(theirs.update)(g, theirs.init(g))
    np.testing.assert_allclose(ours["w"], np.sqrt(20 / 12) * np.asarray(expected), atol=1e-5)


def test_root_mean_square_matches_adam():
    for shape in [(64, 64), (32, 128)]:
        update = muon.update_scale(shape, "rms") * orthogonalize(jax.random.normal(jax.random.key(3), shape))
        assert 0.12 < float(jnp.sqrt(jnp.mean(update**2))) < 0.25  # 0.2 for exactly orthogonal rows


def test_zero_gradient_gives_zero_and_vectors_are_refused():
    assert not np.asarray(orthogonalize(jnp.zeros((4, 6)))).any()
    with pytest.raises(ValueError, match="matrices only"):
        muon.scale_by_muon().init({"bias": jnp.zeros(3)})
