"""Gaussian mixtures against what they must satisfy: gradients, Bayes' rule by quadrature, closed constants."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sampling.analytic import Mixture, geometric, log_integral
from sampling.paths import FlowPath
from sampling.prediction import Prediction, convert

PATH = FlowPath()
LAW = Mixture(
    [0.2, 0.5, 0.3],
    [[-1.0, 0.5], [1.2, 0.0], [0.1, -1.5]],
    [[[0.30, 0.10], [0.10, 0.2]], [[0.15, -0.05], [-0.05, 0.4]], [[0.25, 0.0], [0.0, 0.1]]],
)
OTHER = Mixture([0.6, 0.4], [[0.0, 0.3], [0.8, -0.4]], [0.2 * np.eye(2), [[0.3, 0.1], [0.1, 0.25]]])


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@functools.partial(jax.jit, static_argnames=("path", "kind"))
def predict(law, x, t, path=PATH, kind="data"):
    return law.predict(x, t, path, kind).value


@functools.partial(jax.jit, static_argnames="path")
def log_density(law, x, t=1.0, path=PATH):
    return law.log_density(x, t, path)


def points(n: int = 6, d: int = 2) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, d))


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_score_is_the_gradient_of_the_log_density(t):
    x = points()
    gradient = jax.jit(jax.vmap(jax.grad(lambda p: LAW.log_density(p[None], t, PATH)[0])))(x)
    np.testing.assert_allclose(jax.jit(lambda x: LAW.score(x, t, PATH))(x), gradient, rtol=1e-10)


def test_data_prediction_is_bayes_rule():
    """E[data | x] by summing over a fine grid of data."""
    t, x = 0.6, points(3)
    side = np.linspace(-6, 6, 241)
    data = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    prior = np.asarray(log_density(LAW, data))
    for point, got in zip(x, predict(LAW, x, t), strict=True):
        logs = prior - 0.5 * ((point - t * data) ** 2).sum(1) / (1 - t) ** 2
        share = np.exp(logs - logs.max())
        np.testing.assert_allclose(got, share @ data / share.sum(), rtol=1e-9)


def test_kinds_agree_with_the_conversion_table_and_stay_finite_at_the_ends():
    x = jnp.asarray(points())
    data = Prediction(predict(LAW, x, 0.4), "data")
    for kind in ("noise", "velocity", "score"):
        exact = predict(LAW, x, 0.4, kind=kind)
        np.testing.assert_allclose(convert(data, x, 0.4, PATH, kind).value, exact, rtol=1e-10)
        for end in (0.0, 1.0):
            assert np.isfinite(predict(LAW, x, end, kind=kind)).all()


def test_a_time_per_row_is_that_time_for_that_row():
    x, t = jnp.asarray(points(4)), jnp.asarray([0.1, 0.4, 0.7, 0.95])
    together = predict(LAW, x, t, kind="velocity")
    for i in range(4):
        alone = predict(LAW, x[i : i + 1], t[i], kind="velocity")
        np.testing.assert_allclose(together[i : i + 1], alone, rtol=1e-12)


def test_a_mixture_is_a_pytree_of_its_arrays():
    x = points()
    through_jit = jax.jit(lambda law, x: law.log_density(x, 0.5, PATH))(LAW, x)
    np.testing.assert_allclose(through_jit, LAW.log_density(jnp.asarray(x), 0.5, PATH), rtol=1e-12)


def test_products_powers_and_constants_agree_with_quadrature():
    box = [(-9.0, 9.0)] * 2

    def total(*factors):
        def logs(x):
            return sum(beta * np.asarray(log_density(law, x)) for law, beta in factors)

        return log_integral(logs, box, 361)

    product, log_z = geometric([LAW, OTHER], [2, 1])
    assert log_z == pytest.approx(total((LAW, 2), (OTHER, 1)), abs=1e-9)
    x = jnp.asarray(points())
    unnormalised = 2 * LAW.log_density(x, 1.0, PATH) + OTHER.log_density(x, 1.0, PATH)
    np.testing.assert_allclose(product.log_density(x, 1.0, PATH), unnormalised - log_z, rtol=1e-9)

    wide, narrow = Mixture([1.0], [[0.2, 0.0]], [0.5 * np.eye(2)]), Mixture([1.0], [[0.5, 0.1]], [0.3 * np.eye(2)])
    assert geometric([wide, narrow], [-1.0, 2.0])[1] == pytest.approx(total((wide, -1), (narrow, 2)), abs=1e-9)
    with pytest.raises(ValueError, match="no finite integral"):
        geometric([narrow, wide], [-1.0, 1.5])
    with pytest.raises(ValueError, match="log_integral"):
        geometric([LAW], [1.5])


def test_draws_have_the_mixture_s_moments():
    draws = np.asarray(LAW.sample(jax.random.key(0), 40_000))
    mean = LAW.weights @ LAW.means
    second = np.einsum("k,kij->ij", LAW.weights, LAW.covariances + LAW.means[:, :, None] * LAW.means[:, None])
    spread = np.sqrt(np.diag(second - np.outer(mean, mean)) / len(draws))
    assert (np.abs(draws.mean(0) - mean) < 5 * spread).all()
    np.testing.assert_allclose(draws.T @ draws / len(draws), second, atol=0.05)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([1.0], [[0.0]], [[[1.0, 0.0]]]), "weights"),
        (([0.0], [[0.0]], [[[1.0]]]), "positive"),
        (([1.0], [[0.0]], [[[-1.0]]]), "definite"),
    ],
)
def test_bad_mixtures_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Mixture(*arguments)
