"""Every stage keeps the unnormalised measure: all randomness of small filters is enumerated, so sums are exact.

A chain on three states with potentials 1 and 3; two particles a swarm.  All their moves, and all cells of the uniform
numbers in which parents are constant, make up the swarms of ONE run, equally likely.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sampling.smc.particle_filter import particle_filter
from sampling.smc.policies import Accumulate, BirthDeath, Resample
from sampling.smc.schemes import SCHEMES, scheme
from sampling.smc.uniforms import KeyedUniforms, StoredUniforms

FIRST = np.array([0.5, 0.25, 0.25])
MOVE = np.array([[0.5, 0.5, 0.0], [0.25, 0.25, 0.5], [0.0, 0.25, 0.75]])
PARTICLES = 2
POTENTIAL = np.array([[1.0, 3.0, 1.0], [3.0, 1.0, 1.0]])  # [step, state]


def cells(n: int) -> np.ndarray:
    """Middles of n cells of [0, 1]."""
    return (np.arange(n) + 0.5) / n


def unnormalised(steps: int) -> np.ndarray:
    """γ [states]: the law of the chain after the steps, times the potentials met."""
    measure = FIRST
    for potential in POTENTIAL[:steps]:
        measure = (measure @ MOVE) * potential
    return measure


def enumerate_runs(draws: list[list[tuple[float, ...]]]) -> tuple[np.ndarray, np.ndarray]:
    """(cells of the proposals [swarms, steps + 1, particles], uniform numbers [steps, swarms, ...]).

    ``draws``: the cells of the uniform numbers of each step.  Proposals are quarters of the inverse distribution
    function, which suit every row of ``MOVE``.
    """
    steps = len(draws)
    pairs = list(itertools.product(cells(4), repeat=PARTICLES))
    runs = list(itertools.product(*[pairs] * (steps + 1), *draws))
    return np.array([r[: steps + 1] for r in runs]), np.array([[r[steps + 1 + k] for r in runs] for k in range(steps)])


def run(policy_of, draws: list[list[tuple[float, ...]]]):
    """(measure by the filter [states], how many runs resampled at each step)."""
    proposals, uniforms = enumerate_runs(draws)
    swarms, steps = len(proposals), len(draws)

    def inverse(chances, u):
        return (jnp.cumsum(chances, -1) < u[..., None]).sum(-1)

    def propose(state, given):
        return inverse(jnp.asarray(MOVE)[state], given["u"])

    def weigh(state, given):
        return jnp.log(given["potential"])[state]

    @jax.jit
    def everything(proposals, uniforms):
        start = inverse(jnp.asarray(FIRST), proposals[:, 0].reshape(-1))
        inputs = {
            "u": proposals[:, 1:].transpose(1, 0, 2).reshape(steps, -1),
            "potential": jnp.asarray(POTENTIAL[:steps]),
        }
        return particle_filter(propose, weigh, start, inputs, policy_of(uniforms), swarms=swarms)

    with jax.enable_x64(True):
        done = everything(proposals, uniforms)
        states = np.asarray(done.particles).reshape(swarms, PARTICLES)
        share = np.asarray(jax.nn.softmax(done.weights.logw, -1)) * np.exp(done.weights.log_z)[:, None]
    measure = np.array([share[states == s].sum() / swarms for s in range(3)])
    return measure, np.asarray(done.weights.resampled).sum(1)


@pytest.mark.parametrize("threshold", [None, 0.9, 0.7])
@pytest.mark.parametrize("name", ["systematic", "residual_systematic"])
def test_two_steps_of_spawn_move_resample(name, threshold):
    def policy(uniforms):
        return Resample(uniforms=StoredUniforms(uniforms[..., 0]), scheme=name, threshold=threshold)

    waits = threshold == 0.7  # weights 1 : 3 have 1.6 effective particles of 2; accumulated ones 1 : 9 have 1.2
    first, second = (1, 10) if waits else (2, 2)
    measure, resampled = run(policy, [[(u,) for u in cells(first)], [(u,) for u in cells(second)]])
    np.testing.assert_allclose(measure, unnormalised(2), rtol=1e-12)
    assert resampled[1] > 0
    assert (resampled[0] == 0) == waits


@pytest.mark.parametrize("name", [name for name in SCHEMES if not scheme(name).one_uniform])
def test_one_step_with_a_uniform_number_per_particle(name):
    def policy(uniforms):
        return Resample(uniforms=StoredUniforms(uniforms), scheme=name, threshold=None)

    measure, _ = run(policy, [list(itertools.product(cells(4), repeat=PARTICLES))])
    np.testing.assert_allclose(measure, unnormalised(1), rtol=1e-12)


def test_weights_alone_keep_it_too():
    measure, resampled = run(lambda uniforms: Accumulate(), [[(0.5,)]] * 2)
    np.testing.assert_allclose(measure, unnormalised(2), rtol=1e-12)
    assert not resampled.any()


RATES = np.array([-1.0, -0.5, 0.2, 0.4, 0.8, 1.5])


def births_and_deaths(steps: int, swarms: int):
    """Particles that carry their own rate for one unit of time: (rates [swarms, 6], weights)."""
    policy = BirthDeath(uniforms=KeyedUniforms(jax.random.key(0), jnp.arange(swarms)))
    start = jnp.tile(jnp.asarray(RATES, jnp.float32), swarms)

    def go(start):
        return particle_filter(lambda g, _: g, lambda g, _: g / steps, start, jnp.arange(steps), policy, swarms=swarms)

    done = jax.jit(go)(start)
    return np.asarray(done.particles).reshape(swarms, -1), done.weights


def test_births_and_deaths_keep_it_as_steps_shrink():
    swarms = 20_000
    errors = []
    for steps in (4, 64):
        rates, weights = births_and_deaths(steps, swarms)
        mass = np.exp(weights.log_z)[:, None] * (rates[:, :, None] == RATES.astype(np.float32)).mean(1)
        error = np.abs(mass.mean(0) - np.exp(RATES) / 6)
        errors.append(error.max())
        assert (error < 5 * mass.std(0) / np.sqrt(swarms) + 1.0 / steps).all(), (steps, error)
    assert errors[1] < errors[0] / 4


def test_the_dead_are_replaced_in_proportion_to_excess_birth():
    """Not uniformly, as a transposed array in the published code has it."""
    rates, weights = births_and_deaths(1, 40_000)
    excess = RATES - RATES.mean()
    copies = (rates[:, :, None] == RATES.astype(np.float32)).mean((0, 1)) * 6
    deaths = 1 - np.exp(np.minimum(excess, 0.0))
    births = np.maximum(excess, 0) / np.maximum(excess, 0).sum()
    np.testing.assert_allclose(copies, 1 - deaths + deaths.sum() * births, atol=0.02)
    np.testing.assert_allclose(weights.log_z, RATES.mean(), rtol=1e-5)
    np.testing.assert_array_equal(np.asarray(weights.logw), 0.0)
