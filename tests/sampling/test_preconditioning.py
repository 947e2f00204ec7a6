"""Preconditioners: they are the paths' own F, keep numbers at unit size, and pin f at the smallest noise."""

import jax
import jax.numpy as jnp
import numpy as np

from sampling.paths import VE
from sampling.preconditioning import consistency, edm, edm_weight
from sampling.prediction import coefficients

SIGMA = np.geomspace(0.01, 50.0, 12)


def test_edm_is_how_the_path_reads_f():
    for size in (0.5, 1.0):
        skip, out = coefficients(VE(sigma_data=size), SIGMA, "F", "data")
        around = edm(SIGMA, size)
        np.testing.assert_allclose(around.skip, skip, rtol=1e-12)
        np.testing.assert_allclose(around.out, out, rtol=1e-12)


def test_input_and_target_have_unit_variance_and_the_weight_evens_errors_out():
    size, around = 0.5, edm(SIGMA, 0.5)
    np.testing.assert_allclose(around.into**2 * (size**2 + SIGMA**2), 1.0)
    # target = (data − skip·(data + σ·noise)) / out
    np.testing.assert_allclose(((1 - around.skip) ** 2 * size**2 + (around.skip * SIGMA) ** 2) / around.out**2, 1.0)
    np.testing.assert_allclose(edm_weight(SIGMA, size) * around.out**2, 1.0)


def test_consistency_is_the_identity_at_epsilon_and_edms_far_from_it():
    at = consistency(0.002, 0.5, 0.002)
    assert at.skip == 1.0 and at.out == 0.0
    far, plain = consistency(50.0, 0.5, 0.002), edm(50.0, 0.5)
    np.testing.assert_allclose([far.skip, far.out], [plain.skip, plain.out], rtol=2e-4)


def test_traced_and_host_numbers_agree():
    host, traced = edm(SIGMA, 0.5), jax.jit(lambda s: edm(s, 0.5))(jnp.asarray(SIGMA, jnp.float32))
    for a, b in zip(host, traced, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
