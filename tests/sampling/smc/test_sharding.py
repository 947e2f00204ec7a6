"""Swarms never mix, noise belongs to a sample, and eight devices give what one gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from sampling.analytic import Mixture
from sampling.guidance import Conditional, Product
from sampling.noise import Keyed, start_noise
from sampling.paths import VPLinear
from sampling.sample import sample
from sampling.smc.correctors import FeynmanKac
from sampling.smc.devices import Exact, Island, Together
from sampling.smc.policies import BirthDeath, Resample
from sampling.smc.sharding import shard
from sampling.smc.uniforms import KeyedUniforms, StoredUniforms
from sampling.solvers import ReverseSDE

KEY, PATH = jax.random.key(5), VPLinear()
LAW = Mixture([0.3, 0.7], [[1.0, -0.5], [-0.8, 0.4]], [0.2 * np.eye(2), [[0.3, 0.1], [0.1, 0.2]]])
MEMBER = Conditional(LAW.denoiser(PATH, "score"))
GRID = 1e-3 + (1 - 1e-3) * np.linspace(1, 0, 17) ** 2


def anneal(x, ids, group, swarm_ids, policy=Resample, beta=1.6, **options):
    """A run of all rows; sample ids [b], swarm ids [swarms]."""
    uniforms = KeyedUniforms(KEY, swarm_ids)
    resampling = policy(uniforms=uniforms, group=group, record=True, **options)
    guide = Product([MEMBER], [beta])
    return sample(guide, x, GRID, path=PATH, solver=ReverseSDE(1.0), noise=Keyed(KEY, ids), keep=(8, 16),
                  corrector=FeynmanKac(), resampling=resampling, particles=len(ids) // len(swarm_ids))  # fmt: skip


def starts(swarms: int, particles: int):
    ids = jnp.arange(swarms * particles).reshape(swarms, particles)
    return start_noise(KEY, ids.reshape(-1), (2,)).reshape(swarms, particles, 2), ids


@pytest.mark.parametrize("policy", [Resample, BirthDeath])
def test_a_swarm_does_not_see_its_neighbours(policy):
    """Rows, weights and parents of three swarms are those of each alone, in any order."""
    x, ids = starts(3, 16)

    def run(x, ids, swarm_ids):
        return anneal(x.reshape(-1, 2), ids.reshape(-1), Together(), swarm_ids, policy)

    run = jax.jit(run)
    together = run(x, ids, jnp.arange(3))
    assert np.asarray(together.weights.resampled).any()
    for i in range(3):
        alone = run(x[i : i + 1], ids[i : i + 1], jnp.array([i]))
        rows = slice(16 * i, 16 * (i + 1))
        np.testing.assert_array_equal(together.weights.history.parents[:, i], alone.weights.history.parents[:, 0])
        np.testing.assert_allclose(together.x[rows], alone.x, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(together.weights.log_z[i], alone.weights.log_z[0], rtol=1e-5)
    order = jnp.array([2, 0, 1])
    permuted = run(x[order], ids[order], order)
    np.testing.assert_allclose(permuted.weights.log_z, together.weights.log_z[order], rtol=1e-5)


@pytest.mark.parametrize(
    ("policy", "options"),
    [(Resample, {}), (Resample, {"scheme": "residual_multinomial", "threshold": None}), (BirthDeath, {})],
)
def test_exact_mode_is_one_device(policy, options):
    """Bit-equal parents; particles in the same order."""
    x, ids = starts(2, 32)
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))

    def local(x, ids, group):
        return anneal(x, ids, group, jnp.arange(2), policy, **options)

    one = jax.jit(lambda x, ids: local(x.reshape(-1, 2), ids.reshape(-1), Together()))(x, ids)
    eight = jax.jit(shard(local, mesh, "data", Exact))(x, ids)
    assert np.asarray(one.weights.resampled).sum() > 2
    np.testing.assert_array_equal(one.weights.history.parents, eight.weights.history.parents)
    np.testing.assert_array_equal(one.weights.resampled, eight.weights.resampled)
    np.testing.assert_allclose(one.x, eight.x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(one.states, eight.states, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(one.weights.logw, eight.weights.logw, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(one.weights.log_z, eight.weights.log_z, rtol=1e-5)
    assert int(eight.ledger.network_calls) == one.ledger.network_calls


def test_islands_keep_to_themselves_and_estimate_the_same_constant():
    swarms, particles = 64, 64
    x, ids = starts(swarms, particles)
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))

    def local(x, ids, group):
        return anneal(x, ids, group, jnp.arange(swarms), beta=0.6, threshold=0.9)

    islands = jax.jit(shard(local, mesh, "data", Island))(x, ids)
    one = jax.jit(lambda x, ids: local(x.reshape(-1, 2), ids.reshape(-1), Together()))(x, ids)
    assert np.asarray(islands.weights.history.parents).max() < particles // 8
    assert islands.weights.logw.shape == (swarms, particles)
    z = [np.exp(np.asarray(run.weights.log_z, np.float64)) for run in (islands, one)]
    spread = np.sqrt(sum(v.var() / swarms for v in z))
    assert spread < 0.1 * z[1].mean()
    assert abs(z[0].mean() - z[1].mean()) < 5 * spread
    # Islands weigh differently: their log-weights say so, and average to the whole estimate's scale.
    assert (np.asarray(islands.weights.logw).reshape(swarms, 8, -1).std(1) > 0).any()


def test_uneven_particles_are_refused_before_compiling():
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    run = shard(lambda x, ids, group: pytest.fail("was called"), mesh, "data", Exact)
    with pytest.raises(ValueError, match="multiple of 8"):
        run(jnp.zeros((2, 12, 2)), jnp.zeros((2, 12), int))


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (lambda: Resample(uniforms=KeyedUniforms(KEY, jnp.arange(3))), "3 swarms"),
        (lambda: Resample(uniforms=StoredUniforms(jnp.zeros((5, 2)))), "stored uniform"),
        (lambda: Resample(uniforms=KeyedUniforms(KEY, jnp.arange(2)), window=(0.9, 0.1)), "window"),
        (lambda: Resample(uniforms=KeyedUniforms(KEY, jnp.arange(2)), threshold=1.5), "threshold"),
        (lambda: Resample(uniforms=KeyedUniforms(KEY, jnp.arange(2)), scheme="best"), "scheme"),
    ],
)
def test_bad_policies_are_refused(policy, words):
    x, ids = starts(2, 4)
    with pytest.raises(ValueError, match=words):
        sample(MEMBER, x.reshape(-1, 2), GRID, path=PATH, solver=ReverseSDE(1.0), noise=Keyed(KEY, ids.reshape(-1)),
               corrector=FeynmanKac(), resampling=policy(), particles=4)  # fmt: skip
