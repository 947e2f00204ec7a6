"""Objectives on Gaussian data, where trajectories have closed forms: what is exact has no loss, derivatives are right.

Given E[data | x] and E[noise | x] in place of a pair, a loss sees the mean velocity at x and loses its own noise.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sampling import preconditioning
from sampling.paths import VE, FlowPath, TrigFlow, VPCosine, expand
from sampling.prediction import convert
from train.objectives.consistency import Consistency
from train.objectives.denoising import Denoising
from train.objectives.generation import Draws, Networks, even_angles, log_normal_time, shown
from train.objectives.mean_flow import MeanFlow
from train.objectives.scm import ContinuousConsistency
from train.objectives.shortcut import Shortcut

MEAN, STD, ROWS = 0.6, 0.8, 64
KEY, STEP = jax.random.key(0), jnp.int32(7)


def scale(path, t):
    """Deviation of x_t."""
    return jnp.sqrt(jnp.square(path.alpha(t) * STD) + jnp.square(path.sigma(t)))


def travel(path, x, t, s):
    """Where the probability flow takes x from time t [b] to s [b]."""
    away = x - expand(path.alpha(t), x) * MEAN
    return expand(path.alpha(s), x) * MEAN + away * expand(scale(path, s) / scale(path, t), x)


def expectations(path, x, t):
    """(E[data | x], E[noise | x])."""
    alpha, sigma = (expand(a, x) for a in (path.alpha(t), path.sigma(t)))
    away = (x - alpha * MEAN) / jnp.square(expand(scale(path, t), x))
    return MEAN + alpha * STD**2 * away, sigma * away


def told_time(path, told):
    return jnp.exp(4.0 * told) if isinstance(path, VE) else told


def as_network(path, function):
    """A network that answers ``function(x, t)``, taking back what an objective does to its input."""

    def network(x, told, span):
        t = told_time(path, told)
        unit, _ = shown(path, jnp.ones_like(x), t)
        return function(x / unit, t)

    return network


def batch(objective, shape=(3,), rows=ROWS, key=KEY):
    """Points of the marginals with their expectations as the pair: (data, draws)."""
    draws = jax.tree.map(jnp.float64, objective.draw(key, jnp.arange(rows), shape, STEP))  # times come in float32
    data = MEAN + STD * jax.random.normal(jax.random.fold_in(key, 9), (rows, *shape))
    x = objective.path.interpolate(data, draws.noise, draws.time)
    data, noise = expectations(objective.path, x, draws.time)
    return data, Draws(noise, draws.time, draws.end)


def alone(network, teacher=None):
    return Networks(network, network, teacher)


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    ("path", "prediction", "space"),
    [
        (FlowPath(), "velocity", ""),
        (FlowPath(data_time=0.0), "data", "velocity"),
        (VPCosine(), "noise", "data"),
        (VE(), "data", "F"),
        (TrigFlow(0.5), "velocity", "noise"),
    ],
    ids=str,
)
def test_the_expectation_has_no_denoising_loss_and_errors_are_measured_in_the_asked_space(path, prediction, space):
    objective = Denoising(path, prediction, space, max_weight=1e9, time="log_normal")
    data, draws = batch(objective)

    def exact(x, t):
        found, noise = expectations(path, x, t)
        a, b = {"data": (1.0, 0.0), "noise": (0.0, 1.0)}.get(prediction, (path.alpha_rate(t), path.sigma_rate(t)))
        return expand(jnp.asarray(a), x) * found + expand(jnp.asarray(b), x) * noise

    def loss(offset):
        network = as_network(path, lambda x, t: exact(x, t) + offset)
        return objective.loss(alone(network), data, draws, STEP)["denoising"]

    assert jax.jit(loss)(0.0).max() < 1e-20
    x = path.interpolate(data, draws.noise, draws.time)
    off = objective.denoise(as_network(path, lambda x, t: exact(x, t) + 0.1), x, draws.time)
    there = convert(off, x, draws.time, path, space or prediction).value
    right = convert(objective.denoise(as_network(path, exact), x, draws.time), x, draws.time, path, space or prediction)
    np.testing.assert_allclose(jax.jit(loss)(0.1), jnp.square(there - right.value).mean(1), rtol=1e-6)


def test_log_normal_times_have_the_law_on_every_path():
    u = (jnp.arange(4000) + 0.5) / 4000
    for path in (FlowPath(), VPCosine(), VE(), TrigFlow(0.5)):
        t = log_normal_time(path, u, -0.4, 1.1)
        ratio = np.log(path.sigma(t) / path.alpha(t))
        assert ratio.mean() == pytest.approx(-0.4, abs=1e-3) and ratio.std() == pytest.approx(1.1, abs=1e-2)


def exact_consistency(path):
    """A network whose f is the exact map to σ = ε."""

    def inner(x, t):
        around = preconditioning.consistency(t, path.sigma_data, path.sigma_min)
        end = travel(path, x, t, jnp.full_like(t, path.sigma_min))
        out = expand(jnp.where(around.out > 0, around.out, 1.0), x)
        return (end - expand(around.skip, x) * x) / out

    return as_network(path, inner)


def exact_teacher(path):
    def inner(x, t):
        around = preconditioning.edm(t, path.sigma_data)
        data, _ = expectations(path, x, t)
        return (data - expand(around.skip, x) * x) / expand(around.out, x)

    return as_network(path, inner)


def test_the_exact_map_has_no_distillation_loss_up_to_the_teachers_steps():
    path, errors = VE(sigma_min=0.01, sigma_max=20.0, sigma_data=1.0), []
    for levels in (20, 40, 80):
        objective = Consistency(
            path, steps=10, levels="fixed", fewest=levels, most=levels, neighbour="teacher",
            proposals="uniform", weight="one", distance="l2",
        )  # fmt: skip
        data, draws = batch(objective, rows=512)
        networks = alone(exact_consistency(path), exact_teacher(path))
        loss = jax.jit(lambda d, r, o=objective, n=networks: o.loss(n, d, r, STEP)["consistency"])
        errors.append(float(jnp.sqrt(loss(data, draws).mean())))
    assert errors[0] < 0.02 and errors[0] / errors[1] > 5 and errors[1] / errors[2] > 5, errors  # h³ of a Heun step


def test_f_is_the_identity_at_epsilon_and_follows_the_exact_map_elsewhere():
    path = VE(sigma_min=0.01, sigma_max=20.0, sigma_data=0.7)
    objective = Consistency(path, steps=10)
    x = jax.random.normal(KEY, (5, 3))
    anything = lambda x, told, span: 3.0 + x**2  # noqa: E731
    end = objective.denoise(anything, x, jnp.full(5, 0.01)).value
    np.testing.assert_allclose(end, x, rtol=1e-12, atol=1e-12)
    sigma = jnp.array([0.02, 0.3, 1.0, 5.0, 20.0])
    found = objective.denoise(exact_consistency(path), x, sigma).value
    np.testing.assert_allclose(found, travel(path, x, sigma, jnp.full(5, 0.01)), rtol=1e-9)


def test_training_pairs_are_neighbouring_levels_of_the_steps_grid():
    objective = Consistency(VE(sigma_min=0.01, sigma_max=20.0), steps=100, fewest=4, most=16)
    for step, points in ((0, 5), (99, 17), (10**6, 17)):
        assert float(objective.points(jnp.int32(step))) == points
        draws = objective.draw(KEY, jnp.arange(4096), (1,), jnp.int32(step))
        time, end = (np.asarray(a, np.float64).round(5) for a in (draws.time, draws.end))
        levels = np.unique(np.concatenate([time, end]))
        assert len(levels) == points and levels[0] == pytest.approx(0.01) and levels[-1] == pytest.approx(20.0)
        assert (np.searchsorted(levels, time) - np.searchsorted(levels, end) == 1).all()


def test_the_tangent_is_the_rate_of_change_of_f():
    objective = ContinuousConsistency(TrigFlow(0.5))
    data, draws = batch(objective)
    t, path = draws.time, objective.path
    x, rate = path.interpolate(data, draws.noise, t), jax.random.normal(KEY, data.shape)

    def network(x, told, span):
        return jnp.sin(2.0 * x + expand(told, x)) + 0.3 * jnp.flip(x, -1) * expand(told, x) ** 2

    def f(h):
        at, time = x + h * rate, t + h
        return convert(objective.denoise(network, at, time), at, time, path, "data").value

    h = 1e-5
    slope = (f(h) - f(-h)) / (2 * h)
    found = objective.tangent(network, x, rate, t, jnp.float64(1.0))
    np.testing.assert_allclose(found.value, expand(jnp.cos(t), x) * slope, rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(found.output, network(*shown(path, x, t), None))


def test_the_exact_map_has_no_tangent_and_a_wrong_one_is_led_to_it():
    objective = ContinuousConsistency(TrigFlow(0.5), warmup=0)
    path = objective.path
    data, draws = batch(objective)
    t = draws.time
    x, rate = path.interpolate(data, draws.noise, t), path.velocity(data, draws.noise, t)

    def exact(x, t):
        end = travel(path, x, t, jnp.zeros_like(t))
        return (expand(jnp.cos(t), x) * x - end) / (0.5 * expand(jnp.sin(t), x))

    tangent = objective.tangent(as_network(path, exact), x, rate, t, jnp.float64(1.0))
    assert jnp.abs(tangent.value).max() < 1e-9

    def loss(scale):
        network = as_network(path, lambda x, t: scale * exact(x, t))
        return objective.loss(alone(network), data, draws, STEP)["tangent"].mean()

    assert jax.grad(loss)(0.8) < 0 < jax.grad(loss)(1.2)


@pytest.mark.parametrize("path", [FlowPath(), FlowPath(data_time=0.0), VPCosine()], ids=str)
def test_the_exact_average_velocity_has_no_residual(path):
    objective = MeanFlow(path, apart=0.7)
    data, draws = batch(objective)
    apart = draws.time != draws.end
    assert 0.4 < apart.mean() < 0.9 and ((draws.time - draws.end) * path.outward >= 0).all()

    def exact(x, t, span):
        s = t - path.outward * span
        ahead = (travel(path, x, t, s) - x) / expand(jnp.where(span == 0, 1.0, s - t), x)
        found, noise = expectations(path, x, t)
        here = expand(path.alpha_rate(t), x) * found + expand(path.sigma_rate(t), x) * noise
        return jnp.where(expand(span == 0, x), here, ahead)

    assert jnp.abs(objective.residual(exact, data, draws)).max() < 1e-9
    wrong = objective.residual(lambda x, t, span: exact(x, t, span) + 0.1 * expand(span, x), data, draws)
    assert jnp.abs(wrong[apart]).min() > 1e-3, "averages that are wrong for long steps are found out"
    np.testing.assert_allclose(wrong[~apart], 0.0, atol=1e-9)


def test_a_shortcut_model_of_exact_averages_has_no_loss():
    objective = Shortcut(FlowPath(), smallest=16, doubled=0.5)
    path = objective.path
    data, draws = batch(objective, rows=256)
    span = np.abs(draws.time - draws.end)
    assert set(np.unique(span.round(9))) == {0.0, 0.125, 0.25, 0.5, 1.0}
    long = span > 0
    assert np.allclose(draws.time[long] / span[long] % 1.0 % 1.0, 0.0), "steps begin at multiples of their length"

    def exact(x, t, span):
        s = t + span
        ahead = (travel(path, x, t, s) - x) / expand(jnp.where(span == 0, 1.0, span), x)
        found, noise = expectations(path, x, t)
        return jnp.where(expand(span == 0, x), found - noise, ahead)

    assert objective.loss(alone(exact), data, draws, STEP)["shortcut"].max() < 1e-18
    worse = objective.loss(alone(lambda x, t, span: exact(x, t, span) * (1 + expand(span, x))), data, draws, STEP)
    assert worse["shortcut"][long].min() > 0 and worse["shortcut"][~long].max() < 1e-18


def test_even_angles_run_from_noise_to_data():
    for path in (VE(sigma_min=0.01, sigma_max=40.0, sigma_data=2.0), TrigFlow(0.5), FlowPath()):
        grid = even_angles(path, 4)
        assert grid[0] == path.noise_time and grid[-1] == path.data_time
        size = getattr(path, "sigma_data", 1.0)
        angle = np.arctan2(path.sigma(grid[:-1]), path.alpha(grid[:-1]) * size)
        np.testing.assert_allclose(np.diff(angle), -angle[0] / 4, rtol=1e-9)


def test_settings_that_mean_nothing_are_errors():
    with pytest.raises(ValueError, match="prediction must be one of"):
        Denoising(FlowPath(), "F")
    with pytest.raises(ValueError, match="0 < sigma_min"):
        Consistency(VE(), steps=10)
    with pytest.raises(ValueError, match="levels must be one of"):
        Consistency(VE(sigma_min=0.01), steps=10, levels="many")
    with pytest.raises(ValueError, match="TrigFlow path"):
        ContinuousConsistency(VE())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="power of two"):
        Shortcut(FlowPath(), smallest=12)
    with pytest.raises(ValueError, match="share of the rows"):
        MeanFlow(FlowPath(), apart=1.5)
