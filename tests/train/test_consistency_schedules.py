"""Schedules of consistency training: the golden file's numbers, exact draws of intervals, the releases' off-by-one."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits_flow
from train.ema import EmaSpec, decay_at
from train.objectives import consistency_schedules as schedules

GOLDEN = Path(__file__).parents[1] / "golden" / "sampling"


def test_the_traced_step_gives_what_python_integers_give():
    steps = np.arange(0, 1001, 37)
    for function in (
        lambda k: schedules.ct_points(k, 1000),
        lambda k: schedules.ict_points(k, 1000, 2, 150),
        lambda k: schedules.ct_decay(k, 1000),
    ):
        np.testing.assert_allclose(jax.jit(jax.vmap(function))(steps), [function(int(k)) for k in steps], rtol=1e-6)


def test_the_releases_decay_counts_one_level_less():
    assert schedules.ct_decay(0, 1000) == pytest.approx(0.9)  # N = 2
    assert schedules.ct_decay(0, 1000, convention="release") == pytest.approx(0.81)  # N = 1, before one is added
    with pytest.raises(ValueError, match="convention"):
        schedules.ct_decay(0, 1000, convention="mine")


def test_cts_decay_is_how_the_configs_average_warms_up():
    config = digits_flow.get_config("ct").to_dict()
    steps, average = config["steps"], config["ema"]
    spec = EmaSpec(0.9999, power=average["power"], inv_gamma=average["inv_gamma"])
    for step in (50, 333, 1000, steps - 1):
        paper = schedules.ct_decay(step, steps)
        assert 1 - decay_at(spec, step + 1) == pytest.approx(1 - paper, rel=0.03)


def test_ict_levels_double_and_stop():
    points = [float(schedules.ict_points(k, 800)) for k in (0, 99, 100, 699, 700, 799, 10**7)]
    assert points == [11, 11, 21, 641, 1281, 1281, 1281]


@pytest.mark.parametrize("points", [3, 11, 64])
def test_intervals_are_drawn_with_icts_probabilities(points):
    sigma_min, sigma_max, rho = 0.002, 80.0, 7.0
    sigmas = schedules.karras_level(np.arange(points), points, sigma_min, sigma_max, rho)
    with jax.enable_x64(True):
        u = (jnp.arange(200_000) + 0.5) / 200_000
        draw = jax.jit(lambda u, n: schedules.draw_interval(u, n, sigma_min, sigma_max, rho, -1.1, 2.0))
        interval = np.asarray(draw(u, jnp.float64(points)))
        wanted = schedules.interval_probabilities(sigmas)
    found = np.bincount(interval.astype(int), minlength=points - 1) / len(u)
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_pseudo_huber_is_the_square_below_c_and_the_norm_above():
    c = schedules.pseudo_huber_constant(3072)
    assert c == pytest.approx(0.029929, abs=1e-6)
    small, large = jnp.full((1, 4), 1e-4 * c), jnp.full((1, 4), 1e4)
    assert schedules.pseudo_huber(small, c)[0] == pytest.approx(float((small**2).sum() / (2 * c)), rel=1e-4)
    assert schedules.pseudo_huber(large, c)[0] == pytest.approx(2e4, rel=1e-4)
    assert np.isfinite(jax.grad(lambda e: schedules.pseudo_huber(e, c).sum())(jnp.zeros((1, 4)))).all()


def test_the_golden_numbers():
    stored, about = np.load(GOLDEN / "grids.npz"), json.loads((GOLDEN / "grids.json").read_text())
    ct, ict = about["ct"], about["ict"]
    for k, n, mu, improved in zip(stored["ct_k"], stored["ct_N"], stored["ct_mu"], stored["ict_N"], strict=True):
        assert schedules.ct_points(int(k), ct["K"], ct["s0"], ct["s1"]) == n
        assert schedules.ct_decay(int(k), ct["K"], ct["mu0"], ct["s0"], ct["s1"]) == pytest.approx(mu, rel=1e-12)
        assert schedules.ict_points(int(k), ict["K"], ct["s0"], ct["s1"]) == improved
