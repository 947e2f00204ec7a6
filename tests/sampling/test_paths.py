"""Paths: rates are derivatives, the SDE has the path's marginals, directions of time are stored."""

import jax
import numpy as np
import pytest

from sampling.paths import VE, FlowPath, TrigFlow, VPCosine, VPLinear
from tests.sampling.test_prediction import PATHS


def inner(path, n=7):
    return path.data_time + np.linspace(0.1, 0.9, n) * (path.noise_time - path.data_time)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_rates_are_derivatives(path):
    with jax.enable_x64(True):
        for value, rate in ((path.alpha, path.alpha_rate), (path.sigma, path.sigma_rate)):
            derivative = jax.vmap(jax.grad(lambda t, value=value: value(t) * 1.0))(inner(path))
            np.testing.assert_allclose(rate(inner(path)), derivative, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_time_at_inverts_the_ratio_of_noise_to_data(path):
    t = inner(path, 30)
    np.testing.assert_allclose(path.time_at(path.sigma(t) / path.alpha(t)), t, rtol=1e-9)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_ends_are_noise_and_data(path):
    assert path.sigma(path.data_time) == pytest.approx(0.0, abs=1e-12)
    assert path.alpha(path.data_time) == pytest.approx(1.0, abs=1e-12)
    snr = path.log_snr(inner(path, 30))
    assert (np.diff(snr) < 0).all(), "noise grows from data to noise, whatever the direction of time"


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_variance_of_the_sde_is_the_paths(path):
    """d(mean)/dτ = f·mean and d(variance)/dτ = 2f·variance + g², integrated from near the data with RK4."""
    with jax.enable_x64(True):
        n, t = 4000, np.linspace(*inner(path, 2), 4001)
        h = np.abs(t[1] - t[0])
        middle = (t[:-1] + t[1:]) / 2
        f, g2 = path.drift_rate(middle), path.diffusion(middle)
        mean, variance = path.alpha(t[0]), path.sigma(t[0]) ** 2
        for k in range(n):  # exact for coefficients constant over a step
            grow = np.exp(2 * h * f[k])
            mean *= np.exp(h * f[k])
            variance = variance * grow + g2[k] * (h if f[k] == 0 else (grow - 1) / (2 * f[k]))
    assert (g2 >= 0).all()
    assert mean == pytest.approx(path.alpha(t[-1]), rel=1e-5)
    assert variance == pytest.approx(path.sigma(t[-1]) ** 2, rel=1e-5)


def test_closed_forms():
    t = np.linspace(0.0, 1.0, 6)
    np.testing.assert_allclose(VPLinear().alpha(t) ** 2 + VPLinear().sigma(t) ** 2, 1.0, rtol=1e-12)
    np.testing.assert_allclose(VPLinear().diffusion(t), 0.1 + 19.9 * t)
    np.testing.assert_allclose(VE().diffusion(t), 2 * t)
    for forward, backward in ((FlowPath(1.0), FlowPath(0.0)),):
        for name in ("alpha", "sigma", "drift_rate", "diffusion"):
            there, back = (
                np.asarray(getattr(p, name)(s)) for p, s in ((forward, 1 - inner(forward)), (backward, inner(forward)))
            )
            np.testing.assert_allclose(there, back, rtol=1e-12, err_msg=name)
    assert TrigFlow(0.5).sigma(TrigFlow().noise_time) == pytest.approx(0.5)
    assert VPCosine().log_snr(0.5) == pytest.approx(0.0, abs=1e-12)


def test_a_flow_has_its_data_at_one_of_its_ends():
    with pytest.raises(ValueError, match=r"data_time=0\.5"):
        FlowPath(data_time=0.5)
