"""Guides: what they mix, when they call which network, and what the ledger says about it."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sampling import grids
from sampling.analytic import Mixture
from sampling.guidance import Autoguidance, ClassifierFree, Conditional, Product, Switch, cogvideox_schedule
from sampling.paths import VE, FlowPath, VPLinear
from sampling.prediction import Prediction, convert
from sampling.sample import sample
from sampling.solvers import DDIM, EDM, DPMpp2M, Euler

A = Mixture([1.0], [[1.0, -0.5]], [0.4 * np.eye(2)])
B = Mixture([1.0], [[-0.5, 0.8]], [[[0.9, 0.2], [0.2, 0.7]]])
PATH, GRID = VE(sigma_max=20.0), grids.karras(8, 0.05, 20.0)
START = 20.0 * np.asarray(np.random.default_rng(0).normal(size=(4, 2)), np.float32)


def network(x, t, condition, law=A):
    """Exact, and moved by its condition."""
    shift = 0.0 if condition is None else condition[:, None]
    return Prediction(law.data(x, t, PATH) + shift, "data")


def counted(calls, name, law=A):
    """The same, noting its name for every row it is asked about."""

    def denoise(x, t, condition):
        jax.debug.callback(lambda rows: calls.extend([name] * int(rows)), x.shape[0])
        return network(x, t, condition, law)

    return denoise


def run(guide, solver=None, grid=GRID):
    result = jax.jit(lambda x: sample(guide, x, grid, path=PATH, solver=solver or DDIM()))(START)
    jax.block_until_ready(result.x)
    jax.effects_barrier()
    return result


@pytest.mark.parametrize("solver", [DDIM(), EDM(order=2)], ids=str)
def test_outside_its_interval_guidance_costs_nothing_and_does_nothing(solver):
    calls, given, null = [], jnp.full(4, 0.3), jnp.zeros(4)
    low, high = float(GRID[5]), float(GRID[2])  # open below, closed above
    guide = ClassifierFree(counted(calls, "net"), given, null, 3.0, interval=(low, high))
    result = run(guide, solver)
    assert int(result.ledger.network_calls) * 4 == len(calls)
    plan = guide.plan(PATH, solver.plan(PATH, GRID).times)
    asked = solver.plan(PATH, GRID).times
    np.testing.assert_array_equal(plan.rows["on"], (asked > low) & (asked <= high))
    assert plan.rows["on"][2, 0] and not plan.rows["on"][5, 0] and not plan.rows["on"][1, 0]

    # The same by a weight that is 1 outside, with both networks called everywhere.
    always = ClassifierFree(network, given, null, 3.0, schedule=lambda t: 1e-30 + ((t > low) & (t <= high)))
    np.testing.assert_allclose(result.x, run(always, solver).x, atol=2e-5)
    assert int(result.ledger.network_calls) < int(run(always, solver).ledger.network_calls)


def test_an_interval_without_levels_is_the_conditional_model():
    calls, given = [], jnp.full(4, 0.3)
    guide = ClassifierFree(counted(calls, "net"), given, 0 * given, 9.0, interval=(30.0, 40.0))
    result = run(guide)
    np.testing.assert_allclose(result.x, run(Conditional(network, given)).x, atol=1e-5)
    assert int(result.ledger.network_calls) == 8 and len(calls) == 32


def test_autoguidance_calls_each_of_two_networks():
    calls = []
    good, weak = counted(calls, "good", A), counted(calls, "weak", B)
    result = run(Autoguidance(good, weak, None, 2.0, interval=(1.0, 10.0)))
    inside = int(((GRID[:-1] > 1.0) & (GRID[:-1] <= 10.0)).sum())
    assert calls.count("good") == 32 and calls.count("weak") == 4 * inside
    assert int(result.ledger.network_calls) == 8 + inside
    good, weak = network, functools.partial(network, law=B)
    for weight, alone in ((1.0, good), (0.0, weak)):
        np.testing.assert_allclose(run(Autoguidance(good, weak, None, weight)).x, run(Conditional(alone)).x, atol=1e-5)
    x, t = jnp.asarray(START), jnp.float32(2.0)
    guided = Autoguidance(good, weak, None, 2.5)(x, t, {})
    np.testing.assert_allclose(guided.mix.value, 2.5 * A.data(x, t, PATH) - 1.5 * B.data(x, t, PATH), rtol=1e-5)

    def velocity(x, t, c):
        return Prediction(x, "velocity")

    with pytest.raises(ValueError, match="answers of one kind"):
        run(Autoguidance(good, velocity, None, 2.0))


@pytest.mark.parametrize("path", [PATH, FlowPath(), VPLinear()], ids=str)
def test_cfg_plus_plus_puts_back_the_noise_of_the_null_half(path):
    """x' = α'·data_guided + σ'·noise_null, by hand."""

    def exact(x, t, c):
        return Prediction(A.data(x, t, path) + c[:, None], "data")

    given, null, w = jnp.full(4, 0.4), jnp.zeros(4), 0.6
    grid = path.time_at(np.array([5.0, 2.0, 0.7]))
    guide = ClassifierFree(exact, given, null, w, plus_plus=True)
    got = jax.jit(lambda x: sample(guide, x, grid, path=path, solver=DDIM()).x)(START)
    x = jnp.asarray(START)
    for t, to in itertools.pairwise(grid):
        c, u = (exact(x, jnp.float32(t), k) for k in (given, null))
        data = u.value + w * (c.value - u.value)
        x = path.alpha(to) * data + path.sigma(to) * convert(u, x, t, path, "noise").value
    np.testing.assert_allclose(got, x, atol=1e-5)


def test_cfg_plus_plus_at_weight_zero_is_the_null_model_and_needs_ddim():
    given, null = jnp.full(4, 0.4), jnp.zeros(4)
    guide = ClassifierFree(network, given, null, 0.0, plus_plus=True)
    np.testing.assert_allclose(run(guide).x, run(Conditional(network, null)).x, atol=1e-5)
    assert guide(jnp.asarray(START), jnp.float32(1.0), {}).exponents is None
    for solver in (Euler(), DPMpp2M(), EDM()):
        with pytest.raises(ValueError, match="puts no noise back"):
            run(guide, solver)


def test_rescaled_guidance_has_the_spread_of_the_conditional_answer():
    x, t = jnp.asarray(np.random.default_rng(1).normal(size=(3, 5, 4)), jnp.float32), jnp.float32(0.5)

    def waves(x, t, c):
        return Prediction(jnp.sin(x) * (1 + c[:, None, None]), "velocity")

    given, null = jnp.array([0.5, 1.0, 2.0]), jnp.zeros(3)

    def mix(share):
        return ClassifierFree(waves, given, null, 4.0, rescale=share)(x, t, {})

    full, half, none = (mix(share) for share in (1.0, 0.5, 0.0))
    np.testing.assert_allclose(full.mix.value.std((1, 2)), full.components[0].value.std((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(half.mix.value, 0.5 * (full.mix.value + none.mix.value), rtol=1e-5)
    assert full.exponents is None and none.exponents is not None, "a rescaled mix is no score of any density"
    with pytest.raises(ValueError, match="share in"):
        mix(1.5)


@pytest.mark.parametrize("kinds", [("data", "data"), ("noise", "score"), ("F", "velocity")])
def test_a_product_follows_the_sum_of_scores(kinds):
    guide = Product(
        [Conditional(law.denoiser(PATH, kind)) for law, kind in zip((A, B), kinds, strict=True)], (1.5, 0.5)
    )
    plan = guide.plan(PATH, np.array([[2.0]]))
    row = jax.tree.map(lambda a: jnp.float32(a[0, 0]), plan.rows)
    x, t = jnp.asarray(START) / 10, jnp.float32(2.0)
    guided = guide(x, t, row)
    score = convert(guided.mix, x, t, PATH, "score").value
    np.testing.assert_allclose(score, 1.5 * A.score(x, t, PATH) + 0.5 * B.score(x, t, PATH), atol=1e-5)
    assert plan.calls.tolist() == [[2]] and len(guided.components) == 2
    np.testing.assert_allclose([float(e) for e in guided.exponents or ()], [1.5, 0.5])


def test_annealing_is_a_product_of_one_and_guided_members_hand_on_their_components():
    given, null = jnp.full(4, 0.3), jnp.zeros(4)
    cfg = ClassifierFree(network, given, null, 2.0)
    x, t, row = jnp.asarray(START), jnp.float32(2.0), {"members": [{}], "noise": {"data": (0.5, -0.5)}}
    guided = Product([cfg], [1.5])(x, t, row)
    np.testing.assert_allclose(jnp.stack(guided.exponents), [3.0, -1.5])
    total = sum(e * c.value for e, c in zip(guided.exponents, guided.components, strict=True))
    np.testing.assert_allclose(guided.mix.value, total, atol=1e-4)
    assert int(run(Product([cfg, Conditional(network, null)], [1.0, 1.0])).ledger.network_calls) == 8 * 3
    cold = run(Product([Conditional(A.denoiser(PATH))], [1.0]))
    np.testing.assert_allclose(cold.x, run(Conditional(A.denoiser(PATH))).x, atol=1e-4)


@pytest.mark.parametrize("steps", [0, 3, 8])
def test_a_switch_calls_one_network_a_step(steps):
    calls, zero = [], jnp.zeros(4)
    adapter = ClassifierFree(counted(calls, "adapter", A), zero + 0.3, zero, 2.0)
    original = ClassifierFree(counted(calls, "original", B), zero, zero, 1.5)
    result = run(Switch(adapter, original, steps))
    assert calls.count("adapter") == 8 * steps and calls.count("original") == 8 * (8 - steps)
    assert int(result.ledger.network_calls) == 16
    if steps in (0, 8):
        np.testing.assert_allclose(result.x, run(adapter if steps else original).x, atol=1e-5)
    else:  # by hand: two runs, one after the other
        half = sample(adapter, START, GRID[: steps + 1], path=PATH, solver=DDIM()).x
        np.testing.assert_allclose(
            result.x, sample(original, half, GRID[steps:], path=PATH, solver=DDIM()).x, atol=1e-5
        )
    with pytest.raises(ValueError, match="zero steps or more"):
        Switch(adapter, original, -1)


def test_a_switch_is_between_guides_of_one_form():
    plain, given = Conditional(network), jnp.full(4, 0.3)
    np.testing.assert_allclose(run(Switch(plain, plain, 3)).x, run(plain).x, atol=1e-5)
    with pytest.raises(ValueError, match="answer in the same form"):
        run(Switch(plain, ClassifierFree(network, given, given, 2.0), 3))


def test_a_schedule_scales_the_excess_over_one():
    """CogVideoX: w_t = 1 + (w − 1)(1 − cos πs⁵)/2, from no guidance at the noise to all of it at the data."""
    progress = np.linspace(0.0, 1.0, 5)
    for path in (FlowPath(), FlowPath(0.0), VE()):
        times = path.noise_time + progress * (path.data_time - path.noise_time)
        np.testing.assert_allclose(cogvideox_schedule(path)(times), (1 - np.cos(np.pi * progress**5)) / 2, atol=1e-12)
    given = jnp.full(4, 0.3)
    scheduled = ClassifierFree(network, given, 0 * given, 5.0, schedule=lambda t: np.full(t.shape, 0.25))
    np.testing.assert_allclose(run(scheduled).x, run(ClassifierFree(network, given, 0 * given, 2.0)).x, atol=2e-5)


def test_another_weight_does_not_recompile_a_scheduled_interval():
    traced = []

    @jax.jit
    def program(x, weight):
        traced.append(1)
        guide = ClassifierFree(
            network,
            jnp.ones(4),
            jnp.zeros(4),
            weight,
            interval=(1.0, 9.0),
            schedule=cogvideox_schedule(PATH),
        )
        return sample(guide, x, GRID, path=PATH, solver=DDIM()).x

    first, second = program(START, 1.5), program(START, jnp.array(4.0))
    per_row = jax.jit(program)(START, jnp.array([1.5, 4.0, 1.5, 4.0]))
    np.testing.assert_allclose(per_row[1::2], second[1::2], atol=1e-5)
    assert len(traced) == 2 and not np.allclose(first, second), "once for a scalar, once for one weight per row"


def test_intervals_that_are_none_are_refused():
    for interval in ((2.0, 1.0), (-1.0, 1.0)):
        with pytest.raises(ValueError, match="guidance interval"):
            ClassifierFree(network, jnp.ones(4), jnp.zeros(4), 2.0, interval=interval)
    with pytest.raises(ValueError, match="one exponent per member"):
        Product([Conditional(A.denoiser(PATH))], [1.0, 2.0])


def test_guided_rows_do_not_meet():
    given = jnp.array([0.1, 0.2, 0.3, 0.4])

    @jax.jit
    def program(x, c):
        guide = ClassifierFree(network, c, 0 * c, 2.0, interval=(1.0, 5.0))
        return sample(guide, x, GRID, path=PATH, solver=DDIM()).x

    np.testing.assert_allclose(program(START[2:3], given[2:3])[0], program(START, given)[2], atol=1e-5)
