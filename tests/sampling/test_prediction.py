"""One table converts between all kinds of prediction on every path: exact on known pairs, hence a group."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from sampling.paths import VE, FlowPath, TrigFlow, VPCosine, VPLinear
from sampling.prediction import KINDS, Prediction, basis, coefficients, convert, kinds

PATHS = (FlowPath(), FlowPath(0.0), VPLinear(), VPCosine(), VE(sigma_data=0.7), TrigFlow(0.7))


def pair(path, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    share = rng.uniform(0.05, 0.95, 5)
    t = path.data_time + share * (path.noise_time - path.data_time)
    return rng.normal(size=(5, 3, 2)), rng.normal(size=(5, 3, 2)), t


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_every_conversion_is_exact_on_a_known_pair(path):
    data, noise, t = pair(path)
    x = path.interpolate(data, noise, t)

    def truth(kind):
        a, b = basis(path, t, kind)
        return a[:, None, None] * data + b[:, None, None] * noise

    assert len(kinds(path)) == (5 if isinstance(path, VE | TrigFlow) else 4)
    for source, target in itertools.product(kinds(path), repeat=2):
        cx, cp = coefficients(path, t, source, target)
        got = cx[:, None, None] * x + cp[:, None, None] * truth(source)
        np.testing.assert_allclose(got, truth(target), rtol=1e-9, atol=1e-10, err_msg=f"{source} to {target}")


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_traced_conversion_equals_the_host_table(path):
    data, noise, t = pair(path)
    x, t32 = jnp.asarray(path.interpolate(data, noise, t), jnp.float32), jnp.asarray(t, jnp.float32)
    got = convert(Prediction(jnp.asarray(data, jnp.float32), "data"), x, t32, path, "velocity")
    np.testing.assert_allclose(got.value, path.velocity(data, noise, t), atol=1e-4)
    assert got.kind == "velocity"


def test_velocities_of_the_flows_point_where_their_time_does():
    data, noise, t = pair(FlowPath())
    np.testing.assert_allclose(FlowPath().velocity(data, noise, t), data - noise, rtol=1e-12)
    np.testing.assert_allclose(FlowPath(0.0).velocity(data, noise, t), noise - data, rtol=1e-12)


def test_f_is_the_network_inside_edm_and_trigflow():
    path = VE(sigma_data=0.5)
    data, noise, sigma = pair(path)
    total = np.sqrt(sigma**2 + 0.25)
    skip, out = 0.25 / total**2, sigma * 0.5 / total
    a, b = basis(path, sigma, "F")
    f = a[:, None, None] * data + b[:, None, None] * noise
    x = path.interpolate(data, noise, sigma)
    np.testing.assert_allclose(skip[:, None, None] * x + out[:, None, None] * f, data, atol=1e-9)
    assert f.std() == pytest.approx(np.sqrt((sigma**2 / 0.25 + 0.25) / total**2).mean(), rel=0.5)  # about one

    path = TrigFlow(0.5)
    data, noise, t = pair(path)
    cx, cp = coefficients(path, t, "F", "data")
    np.testing.assert_allclose((cx, cp), (np.cos(t), -0.5 * np.sin(t)), atol=1e-12)


def test_conversions_exist_where_they_should_and_only_there():
    ends = np.array([0.0, 1.0])
    assert np.isfinite(coefficients(FlowPath(), ends, "velocity", "data")).all()
    assert not np.isfinite(coefficients(FlowPath(), ends, "data", "velocity")[0][1])
    assert np.isfinite(coefficients(VE(), np.array([0.0, 80.0]), "F", "data")).all()


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="unknown prediction kind 'eps'"):
        Prediction(jnp.zeros(1), "eps")
    with pytest.raises(ValueError, match="VPLinear has no preconditioning"):
        basis(VPLinear(), 0.5, "F")
    assert KINDS[-1] == "F"
