"""One table converts between all kinds of prediction: exact on known pairs, and a group (round trips, composition)."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from sampling.paths import FlowPath
from sampling.prediction import KINDS, Prediction, basis, coefficients, convert


def pair(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(5, 3, 2)), rng.normal(size=(5, 3, 2)), rng.uniform(0.05, 0.95, 5)


@pytest.mark.parametrize("source, target", itertools.product(KINDS, KINDS))
def test_every_conversion_is_exact_on_a_known_pair(source, target):
    path, (data, noise, t) = FlowPath(), pair()
    x = path.interpolate(data, noise, t)

    def truth(kind):
        a, b = basis(path, t, kind)
        return a[:, None, None] * data + b[:, None, None] * noise

    cx, cp = coefficients(path, t, source, target)
    got = cx[:, None, None] * x + cp[:, None, None] * truth(source)
    np.testing.assert_allclose(got, truth(target), rtol=1e-9, atol=1e-10)


def test_velocity_of_the_flow_is_data_minus_noise():
    data, noise, t = pair()
    np.testing.assert_allclose(FlowPath().velocity(data, noise, t), data - noise, rtol=1e-12)


def test_traced_conversion_equals_the_host_table():
    path, (data, noise, t) = FlowPath(), pair()
    x = jnp.asarray(path.interpolate(data, noise, t), jnp.float32)
    got = convert(Prediction(jnp.asarray(data, jnp.float32), "data"), x, jnp.asarray(t, jnp.float32), path, "velocity")
    np.testing.assert_allclose(got.value, data - noise, atol=2e-5)
    assert got.kind == "velocity"


def test_velocity_converts_everywhere_and_data_does_not_at_the_data():
    ends = np.array([0.0, 1.0])
    assert np.isfinite(coefficients(FlowPath(), ends, "velocity", "data")).all()
    assert not np.isfinite(coefficients(FlowPath(), ends, "data", "velocity")[0][1])


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="unknown prediction kind 'eps'"):
        Prediction(jnp.zeros(1), "eps")
