"""Filters of tokens, windows, deaths and their reports."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sampling.analytic import Mixture
from sampling.guidance import Conditional, Product
from sampling.noise import Keyed, sample_keys, start_noise
from sampling.paths import VE, VPLinear
from sampling.prediction import Prediction
from sampling.sample import sample
from sampling.smc.correctors import FeynmanKac
from sampling.smc.particle_filter import particle_filter
from sampling.smc.policies import Accumulate, BirthDeath, Resample
from sampling.smc.published import CentredClipped
from sampling.smc.report import check, dead_swarms
from sampling.smc.uniforms import KeyedUniforms, StoredUniforms
from sampling.solvers import ReverseSDE

KEY, STEPS, TOKENS = jax.random.key(11), 4, 3
RNG = np.random.default_rng(0)
CHAIN = RNG.dirichlet(np.ones(TOKENS), size=TOKENS)
LOGITS = RNG.normal(size=(STEPS, TOKENS, TOKENS))  # reward of (step, last token, token)


def chain(resampling, swarms: int, particles: int, end: int | None = None):
    """A token chain from token 0; ``end``: that token is absorbing and is weighed no more."""

    def propose(state, step):
        keys = jax.vmap(jax.random.fold_in, (0, None))(state["keys"], step)
        token = jax.vmap(jax.random.categorical)(keys, jnp.log(jnp.asarray(CHAIN))[state["token"]])
        over = state["token"] == end
        token = jnp.where(over, state["token"], token)
        weight = jnp.where(over, 0.0, jnp.asarray(LOGITS)[step, state["token"], token])
        text = state["text"].at[:, step].set(token)
        return {"keys": state["keys"], "token": token, "text": text, "weight": weight}

    rows = swarms * particles
    start = {
        "keys": sample_keys(KEY, jnp.arange(rows)),
        "token": jnp.zeros(rows, int),
        "text": jnp.zeros((rows, STEPS), int),
        "weight": jnp.zeros(rows),
    }
    return particle_filter(propose, lambda s, _: s["weight"], start, jnp.arange(STEPS), resampling, swarms=swarms)


def truth(end: int | None = None) -> float:
    """Z by enumeration of all texts."""
    value = np.zeros(TOKENS)  # log of the value function, backward
    for step in reversed(range(STEPS)):
        value = np.log((CHAIN * np.exp(LOGITS[step] + value)).sum(1))
        if end is not None:
            value[end] = 0.0
    return float(value[0])


@pytest.mark.parametrize("end", [None, 1])
@pytest.mark.parametrize("name", ["systematic", "multinomial"])
def test_estimates_average_to_the_enumerated_constant(name, end):
    """Mean of Ẑ/Z within four standard errors of 1; keys travel with the particles, absorbed ones too."""
    swarms = 3000
    policy = Resample(uniforms=KeyedUniforms(KEY, jnp.arange(swarms)), scheme=name, threshold=0.7)
    done = jax.jit(lambda: chain(policy, swarms, 16, end))()
    ratio = np.exp(np.asarray(done.weights.log_z, np.float64) - truth(end))
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(swarms)
    if end is not None:
        text = np.asarray(done.particles["text"])
        stopped = (text == end).cumsum(1) > 0
        np.testing.assert_array_equal(text[stopped], end)


def test_adaptive_resampling_forgets_no_weights():
    """What was not resampled still counts: the published bug of FK-steering loses it."""
    uniforms = KeyedUniforms(KEY, jnp.arange(64))
    policies = [Resample(uniforms=uniforms, threshold=share, record=True) for share in (0.0, 0.5)]
    kept, never, rarely = jax.jit(lambda: [chain(policy, 64, 16) for policy in (Accumulate(), *policies)])()
    np.testing.assert_array_equal(never.weights.logw, kept.weights.logw)
    assert np.asarray(kept.weights.logw).std() > 0.5
    resampled, history = np.asarray(rarely.weights.resampled), rarely.weights.history
    first = np.asarray(history.increments).cumsum(0)
    untouched = ~resampled.cumsum(0).astype(bool)
    np.testing.assert_allclose(np.asarray(history.logw)[untouched], first[untouched], rtol=1e-5, atol=1e-5)
    assert resampled.any() and untouched[-1].any()


def test_windows_wait_and_freeze_drops():
    uniforms = KeyedUniforms(KEY, jnp.arange(8))
    policies = [
        Resample(uniforms=uniforms, threshold=None, window=(3, None), freeze=f, record=True) for f in (False, True)
    ]
    waits, frozen = jax.jit(lambda: [chain(policy, 8, 16) for policy in policies])()
    for done in (waits, frozen):
        np.testing.assert_array_equal(np.asarray(done.weights.resampled).all(1), [False, False, True, True])
    assert np.abs(np.asarray(waits.weights.history.logw)[1]).max() > 0
    np.testing.assert_array_equal(np.asarray(frozen.weights.history.increments)[:2], 0.0)
    np.testing.assert_array_equal(np.asarray(frozen.weights.history.logw)[:2], 0.0)


@pytest.mark.parametrize("policy", [Resample, BirthDeath, CentredClipped, Accumulate])
def test_a_dead_swarm_is_reported_and_never_returned(policy):
    """Swarm 1 loses all weight, swarm 2 meets a NaN; swarm 0 must not notice."""

    def weigh(x, step):
        swarm = jnp.arange(12) // 4
        bad = jnp.where(swarm == 1, -jnp.inf, jnp.where((swarm == 2) & (jnp.arange(12) == 9), jnp.nan, 0.1))
        return jnp.where((step == 2) & (swarm > 0), bad, 0.1 * x)

    options = {} if policy is Accumulate else {"uniforms": KeyedUniforms(KEY, jnp.arange(3))}
    x = jnp.arange(12.0)
    done = jax.jit(lambda: particle_filter(lambda x, _: x, weigh, x, jnp.arange(5), policy(**options), swarms=3))()
    np.testing.assert_array_equal(done.weights.alive, [True, False, False])
    values = np.asarray(done.particles).reshape(3, 4)
    assert np.isfinite(values[0]).all() and set(values[0]) <= {0.0, 1.0, 2.0, 3.0}
    assert np.isnan(values[1:]).all()
    lines = dead_swarms(done.weights)
    assert len(lines) == 2 and lines[0].startswith("swarm 1") and lines[1].startswith("swarm 2")
    if policy is not CentredClipped:  # which has no estimate to say it with
        assert "vanished at step 2" in lines[0] and "not a finite number at step 2" in lines[1]
    with pytest.raises(ValueError, match="2 of 3 swarms died"):
        check(done.weights)


def test_a_network_that_answers_nan_kills_its_swarm_only():
    path, ids = VPLinear(), jnp.arange(8)
    law = Mixture([1.0], [[0.0, 0.0]], [np.eye(2)])

    def denoise(x, t, condition):
        score = law.predict(x, t, path, "score").value
        return Prediction(jnp.where((t < 0.4) & (ids == 6)[:, None], jnp.nan, score), "score")

    policy = Resample(uniforms=KeyedUniforms(KEY, jnp.arange(2)))
    done = jax.jit(
        lambda: sample(Product([Conditional(denoise)], [1.2]), start_noise(KEY, ids, (2,)), np.linspace(1, 0.01, 9),
                       path=path, solver=ReverseSDE(1.0), noise=Keyed(KEY, ids), corrector=FeynmanKac(),
                       resampling=policy, particles=4)
    )()  # fmt: skip
    np.testing.assert_array_equal(done.weights.alive, [True, False])
    assert np.isfinite(done.x[:4]).all() and np.isnan(done.x[4:]).all()
    with pytest.raises(ValueError, match="swarm 1"):
        check(done.weights)


def test_the_published_heuristic_cannot_reach_its_last_particles():
    """The floors add up to mass: with N·floor = 1/3 the last quarter of equal weights is out of reach."""
    n = 1000
    grid, x = np.array([3.0, 2.0, 1.0]), jnp.zeros((n, 1))
    policy = CentredClipped(uniforms=StoredUniforms(jnp.full((2, 1), 0.5)), floor=4 / 3 / n, record=True)
    law = Mixture([1.0], [[0.0]], [[[1.0]]])
    path = VE()
    guide = Conditional(law.denoiser(path, "score"))
    done = sample(
        guide, x, grid, path=path, solver=ReverseSDE(0.0), corrector=FeynmanKac(), resampling=policy, particles=n
    )
    parents = np.asarray(done.weights.history.parents)
    assert parents[0].max() < 0.76 * n
    np.testing.assert_array_equal(parents[1, 0], np.arange(n))


def test_wrong_shapes_are_refused():
    x = jnp.arange(6.0)
    with pytest.raises(ValueError, match="one number a particle"):
        particle_filter(lambda x, _: x, lambda x, _: x[:, None], x, jnp.arange(2), Accumulate())
    with pytest.raises(ValueError, match="cannot be shared"):
        particle_filter(lambda x, _: x, lambda x, _: x, x, jnp.arange(2), Accumulate(), swarms=4)
