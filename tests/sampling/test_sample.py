"""The sampler on an exact Gaussian flow: closed forms, and invariances that no network can hide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sampling.grids import flow_grid, uniform
from sampling.guidance import ClassifierFree, Conditional
from sampling.noise import start_noise
from sampling.sample import sample
from sampling.solvers import Euler, Midpoint, solver
from tests.sampling.gaussian import STD, denoiser, exact_state


def noise(ids, shape=(6, 2), seed=0):
    return start_noise(jax.random.key(seed), jnp.asarray(ids), shape)


@pytest.mark.parametrize("method, tolerance", [(Euler(), 2e-2), (Midpoint(), 1e-5)])
def test_a_gaussian_arrives_where_the_closed_form_says(method, tolerance):
    x = noise([0, 1])
    result = sample(Conditional(denoiser("data"), jnp.zeros(2)), x, uniform(256), solver=method, keep=(64, 256))
    assert result.states is not None
    np.testing.assert_allclose(result.states[0], exact_state(x, 0.25), atol=tolerance)
    np.testing.assert_allclose(result.states[1], exact_state(x, 1.0), atol=tolerance)


@pytest.mark.parametrize("kind", ["data", "noise", "score"])
def test_every_prediction_kind_gives_the_same_trajectory(kind):
    # A grid inside (0, 1): noise and score predictions hold no data at t = 0.
    x, grid, shift = noise([0, 1]), np.linspace(0.1, 0.9, 9), jnp.zeros(2)
    reference = sample(Conditional(denoiser("velocity"), shift), x, grid, keep="all")
    got = sample(Conditional(denoiser(kind), shift), x, grid, keep="all")
    assert got.states is not None and reference.states is not None
    np.testing.assert_allclose(got.states, reference.states, atol=2e-5)


def test_a_conversion_that_does_not_exist_is_refused_before_compiling():
    with pytest.raises(ValueError, match="'noise' prediction has no velocity at t = 0"):
        sample(Conditional(denoiser("noise"), jnp.zeros(2)), noise([0, 1]), uniform(4))


def test_states_of_low_precision_are_refused():
    with pytest.raises(ValueError, match="float32 or float64, got bfloat16"):
        sample(Conditional(denoiser(), jnp.zeros(2)), noise([0, 1]).astype(jnp.bfloat16), uniform(4))


def test_kept_states_are_the_trajectory():
    x, guide = noise([3, 4]), Conditional(denoiser(), jnp.zeros(2))
    everything = sample(guide, x, uniform(8), keep="all")
    some = sample(guide, x, uniform(8), keep=(8, 0, 3))
    assert everything.states is not None and some.states is not None
    np.testing.assert_array_equal(everything.states[0], x)
    np.testing.assert_array_equal(everything.states[-1], everything.x)
    np.testing.assert_array_equal(some.states, everything.states[np.array([8, 0, 3])])
    assert sample(guide, x, uniform(8)).states is None
    for bad in ((9,), (1, 1), "most"):
        with pytest.raises(ValueError):
            sample(guide, x, uniform(8), keep=bad)


def test_the_ledger_counts_every_call():
    calls = []

    def counted(x, t, condition):
        jax.debug.callback(lambda rows: calls.append(rows), x.shape[0])
        return denoiser()(x, t, condition)

    zeros = jnp.zeros(3)
    for guide in (Conditional(counted, zeros), ClassifierFree(counted, zeros, zeros, 2.0)):
        for name in ("euler", "midpoint"):
            calls.clear()
            method = solver(name)
            result = sample(guide, noise([0, 1, 2]), uniform(5), solver=method)
            jax.block_until_ready(result.x)
            jax.effects_barrier()
            assert len(calls) == 5 * method.evaluations, "guidance is one batched call"
            assert int(result.ledger.network_calls) * 3 == sum(int(c) for c in calls)


def test_noise_belongs_to_the_sample():
    whole = noise([5, 6, 7, 8])
    np.testing.assert_array_equal(noise([7])[0], whole[2])
    np.testing.assert_array_equal(noise([8, 5])[::-1][0], whole[0])
    longer = noise([5, 6, 7, 8], shape=(11, 2))
    np.testing.assert_array_equal(longer[:, :6], whole, err_msg="a longer bucket keeps the noise of real frames")
    assert abs(float(jnp.corrcoef(whole[0].ravel(), whole[1].ravel())[0, 1])) < 0.9


def test_samples_do_not_depend_on_their_batch():
    shift = jnp.array([0.0, 0.5, -1.0, 2.0])
    run = jax.jit(lambda ids, c: sample(ClassifierFree(denoiser(), c, 0 * c, 2.0), noise(ids), flow_grid(7)).x)
    whole = run(jnp.arange(4), shift)
    order = np.array([2, 0, 3, 1])
    np.testing.assert_allclose(run(jnp.arange(4)[order], shift[order]), whole[order], atol=1e-6)
    np.testing.assert_allclose(run(jnp.arange(1), shift[:1]), whole[:1], atol=1e-6)


def test_guidance_weights_zero_and_one_are_the_two_models():
    x, condition, null = noise([0, 1]), jnp.array([0.7, -0.7]), jnp.zeros(2)
    given = sample(Conditional(denoiser(), condition), x, uniform(6)).x
    dropped = sample(Conditional(denoiser(), null), x, uniform(6)).x
    weights = jnp.array([1.0, 0.0])
    mixed = sample(ClassifierFree(denoiser(), condition, null, weights), x, uniform(6)).x
    np.testing.assert_allclose(mixed[0], given[0], atol=1e-6)
    np.testing.assert_allclose(mixed[1], dropped[1], atol=1e-6)


def test_guided_gaussian_lands_where_algebra_says():
    # The exact velocity is affine in the condition, so guidance by w is the model whose mean is shifted by w·shift.
    shift = jnp.array([0.5])
    guided = sample(ClassifierFree(denoiser(), shift, 0 * shift, 3.0), noise([0]), uniform(64)).x
    moved = sample(Conditional(denoiser(), 3.0 * shift), noise([0]), uniform(64)).x
    np.testing.assert_allclose(guided, moved, atol=1e-5)
    components = ClassifierFree(denoiser(), shift, 0 * shift, 3.0)(noise([0]), jnp.float32(0.5), {}).components
    assert [c.kind for c in components] == ["velocity", "velocity"]


def test_guidance_weight_does_not_recompile():
    traced = []

    @jax.jit
    def run(x, weight):
        traced.append(1)
        return sample(ClassifierFree(denoiser(), jnp.ones(2), jnp.zeros(2), weight), x, flow_grid(4)).x

    first, second = run(noise([0, 1]), 1.0), run(noise([0, 1]), 3.0)
    assert len(traced) == 1 and not np.allclose(first, second)


def test_data_spread_is_reproduced():
    x = start_noise(jax.random.key(1), jnp.arange(4096), ())
    end = sample(Conditional(denoiser(), jnp.zeros(4096)), x, flow_grid(32), solver=Midpoint()).x
    assert float(end.std()) == pytest.approx(STD, rel=0.05)
