"""Feynman–Kac correctors: nothing where nothing is to correct, the published sum, and exact expectations."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.verify.gaussian_fkc import log_constant, moments
from sampling.analytic import Mixture, geometric
from sampling.guidance import ClassifierFree, Conditional, Guided, Product
from sampling.noise import Keyed, start_noise
from sampling.paths import VE, FlowPath, VPLinear
from sampling.prediction import Prediction
from sampling.sample import sample
from sampling.smc.correctors import FeynmanKac, start_log_weights
from sampling.smc.policies import Accumulate, Resample
from sampling.smc.reward import Reward, Tilted
from sampling.smc.uniforms import KeyedUniforms
from sampling.solvers import EDM, ReverseSDE

KEY = jax.random.key(7)
PATH = VPLinear()
LAW = Mixture([0.3, 0.7], [[1.0, -0.5], [-0.8, 0.4]], [0.2 * np.eye(2), [[0.3, 0.1], [0.1, 0.2]]])


def grid(steps: int, end: float = 1e-3) -> np.ndarray:
    """The quadratic grid of the oracle."""
    return end + (1 - end) * np.linspace(1, 0, steps + 1) ** 2


def run(
    guide,
    particles,
    steps,
    *,
    swarms=1,
    zeta=1.0,
    variance=1.0,
    reward=None,
    resampling=None,
    path=PATH,
    d=2,
    times=None,
):
    ids = jnp.arange(swarms * particles)
    x = variance**0.5 * start_noise(KEY, ids, (d,))
    times = grid(steps) if times is None else times
    corrector = FeynmanKac(reward=reward)
    noise = Keyed(jax.random.fold_in(KEY, 1), ids)
    return sample(guide, x, times, path=path, solver=ReverseSDE(zeta), noise=noise, corrector=corrector,
                  resampling=resampling or Accumulate(record=True), particles=particles)  # fmt: skip


def conditional_pair(path=PATH):
    """A class-conditional denoiser, 0 and 1 two components of a mixture, and −1 the mixture."""
    parts = [Mixture([1.0], LAW.means[k][None], LAW.covariances[k][None]) for k in range(2)]

    def denoise(x, t, label):
        laws = [*parts, LAW]
        values = jnp.stack([law.predict(x, t, path, "data").value for law in laws])
        return Prediction(jnp.take_along_axis(values, (label % 3)[None, :, None], 0)[0], "data")

    return denoise


@pytest.mark.parametrize("zeta", [0.0, 1.0, 1.7])
def test_nothing_is_weighed_at_beta_one_and_at_guidance_one(zeta):
    """To the last bit in float32, and the particles are those of the plain process."""
    n = 64
    labels = jnp.arange(n) % 2
    plain = Conditional(LAW.denoiser(PATH, "noise"))
    guides = [plain, Product([plain], [1.0]), ClassifierFree(conditional_pair(), labels, jnp.full(n, -1), 1.0)]
    ids = jnp.arange(n)

    @jax.jit
    def everything():
        alone = sample(plain, start_noise(KEY, ids, (2,)), grid(12), path=PATH, solver=ReverseSDE(zeta),
                       noise=Keyed(jax.random.fold_in(KEY, 1), ids))  # fmt: skip
        return alone.x, [run(guide, n, 12, zeta=zeta) for guide in guides]

    alone, weighed = everything()
    for done in weighed:
        np.testing.assert_array_equal(np.asarray(done.weights.history.increments), 0.0)
        np.testing.assert_array_equal(np.asarray(done.weights.log_z), 0.0)
        np.testing.assert_allclose(done.weights.ess, n, rtol=1e-5)
    np.testing.assert_allclose(alone, weighed[0].x, rtol=2e-5, atol=2e-5)


def test_pairwise_form_is_the_sum_in_the_paper():
    rng = np.random.default_rng(0)
    scores, betas = rng.normal(size=(3, 5, 4)), (0.7, -1.3, [2.0, 0.1, 0.5, 1.0, -0.4])
    x = rng.normal(size=(5, 4))
    with jax.enable_x64(True):
        components = tuple(Prediction(jnp.asarray(s), "score") for s in scores)
        row = {key: values[3] for key, values in FeynmanKac().plan(PATH, grid(8), x.shape).items()}
        guided = Guided(components[0], components, tuple(jnp.asarray(b) for b in betas))
        got = FeynmanKac().increment(guided, jnp.asarray(x), row)
    full = [np.broadcast_to(b, 5) for b in betas]
    mix = sum(b[:, None] * s for b, s in zip(full, scores, strict=True))
    bracket = (mix**2).sum(1) - sum(b * (s**2).sum(1) for b, s in zip(full, scores, strict=True))
    t, h = grid(8)[3], grid(8)[3] - grid(8)[4]
    divergence = 4 * (np.log(PATH.alpha(t)) - np.log(PATH.alpha(grid(8)[4])))
    np.testing.assert_allclose(got, 0.5 * PATH.diffusion(t) * h * bracket + (sum(full) - 1) * divergence, rtol=1e-11)


def test_left_and_exact_divergence_agree_as_steps_shrink():
    off = []
    for steps in (50, 100):
        left, exact = (FeynmanKac(kind).plan(PATH, grid(steps), (1, 3))["divergence"] for kind in ("left", "exact"))
        off.append(abs(left.sum() - exact.sum()))
    assert exact.sum() == pytest.approx(3 * (np.log(PATH.alpha(1.0)) - np.log(PATH.alpha(1e-3))))
    assert off[1] / off[0] == pytest.approx(0.5, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("beta", "zeta"), [(1.15, 1.0), (1.1, 1.5), (0.7, 1.0)])
@pytest.mark.parametrize("resampled", [False, True])
def test_mean_estimate_is_the_riccati_oracle(beta, zeta, resampled):
    """E[Ẑ] of n steps is known exactly, bias included; resampling must not change it."""
    variance, steps, swarms, particles = 0.5, 40, 1500, 32
    law = Mixture([1.0], [[0.0]], [[[variance]]])
    guide = Product([Conditional(law.denoiser(PATH, "score"))], [beta])
    start = variance * PATH.alpha(1.0) ** 2 + PATH.sigma(1.0) ** 2
    uniforms = KeyedUniforms(jax.random.key(3), jnp.arange(swarms))
    policy = Resample(uniforms=uniforms, threshold=0.8) if resampled else Accumulate()
    go = jax.jit(
        lambda: run(guide, particles, steps, swarms=swarms, zeta=zeta, variance=start / beta, resampling=policy, d=1)
    )
    done = go()
    estimate = np.exp(np.asarray(done.weights.log_z, np.float64))
    exact = moments(variance, beta, zeta, PATH, grid(steps))
    end = variance * PATH.alpha(1e-3) ** 2 + PATH.sigma(1e-3) ** 2
    # The oracle integrates the divergence by left points, and its log Ẑ starts from the constant of p_T.
    rows = [FeynmanKac(kind).plan(PATH, grid(steps), (1, 1))["divergence"].sum() for kind in ("left", "exact")]
    truth = np.exp(exact.bias + log_constant(end, beta) - log_constant(start, beta) + (beta - 1) * (rows[1] - rows[0]))
    assert abs(estimate.mean() - truth) < 5 * estimate.std() / np.sqrt(swarms), (estimate.mean(), truth)
    if resampled:
        assert np.asarray(done.weights.resampled).any()


def test_products_of_gaussians_are_reached():
    """Two close models: exact mean and constant, with few effective particles lost."""
    laws = [Mixture([1.0], [[0.3, 0.0]], [0.5 * np.eye(2)]), Mixture([1.0], [[0.0, 0.4]], [0.8 * np.eye(2)])]
    target, log_z = geometric(laws, [0.6, 0.5])
    guide = Product([Conditional(law.denoiser(PATH, "data")) for law in laws], [0.6, 0.5])
    done = jax.jit(lambda: run(guide, 20_000, 200, variance=1 / 1.1))()
    share = np.asarray(jax.nn.softmax(done.weights.logw[0]))
    np.testing.assert_allclose(share @ np.asarray(done.x), target.means[0], atol=0.03)
    start = 2 * log_constant(1.0, 1.1)  # p_T = N(0, I)^0.6 · N(0, I)^0.5, of which log Ẑ does not know
    assert float(done.weights.log_z[0]) + start == pytest.approx(log_z, abs=0.05)


def test_a_reward_tilts_by_its_exponential():
    """q = N(μ, C) and r = ⟨a, x⟩: mean μ + Ca, log Z = ⟨a, μ⟩ + ½aᵀCa; for every ζ."""
    law, a = Mixture([1.0], [[0.5, -0.2]], [[[0.6, 0.2], [0.2, 0.4]]]), np.array([0.8, -0.5])
    reward = Reward(lambda x, t: x @ jnp.asarray(a, x.dtype), strength=lambda t: (1.0 - t) / (1.0 - 1e-3))
    want = law.means[0] + law.covariances[0] @ a
    log_z = law.means[0] @ a + 0.5 * a @ law.covariances[0] @ a
    for zeta in (0.5, 1.0):
        guide = Tilted(Conditional(law.denoiser(PATH, "data")), reward, zeta)
        done = jax.jit(lambda g=guide, z=zeta: run(g, 20_000, 200, zeta=z, reward=reward))()
        share = np.asarray(jax.nn.softmax(done.weights.logw[0]))
        np.testing.assert_allclose(share @ np.asarray(done.x), want, atol=0.03)
        assert float(done.weights.log_z[0]) == pytest.approx(log_z, abs=0.03)
        assert np.abs(np.asarray(done.x).mean(0) - want).max() < 0.25, "the drift should do most of it"


def test_start_weights_make_up_for_any_start():
    x = jax.random.normal(KEY, (50_000, 2)) * 1.3
    target = -0.5 * ((x - 0.4) ** 2).sum(1)  # unnormalised N(0.4, I)
    logw = start_log_weights(target, x, 1.3**2)
    share = jax.nn.softmax(logw)
    np.testing.assert_allclose(share @ x, [0.4, 0.4], atol=0.03)
    assert float(jax.nn.logsumexp(logw) - np.log(len(x))) == pytest.approx(np.log(2 * np.pi), abs=0.03)


def test_what_cannot_be_corrected_is_refused():
    denoise, labels = conditional_pair(), jnp.zeros(8, int)
    for options in ({"rescale": 0.7}, {"interval": (0.1, 0.5)}):
        with pytest.raises(ValueError, match="one density"):
            run(ClassifierFree(denoise, labels, labels - 1, 2.0, **options), 8, 4)
    ve, x = VE(sigma_max=3.0), jnp.ones((8, 2))
    churned = {"path": ve, "solver": EDM(churn=1.0), "noise": Keyed(KEY, jnp.arange(8))}
    with pytest.raises(ValueError, match="elsewhere"):
        sample(Conditional(LAW.denoiser(ve)), x, np.array([3.0, 2.0, 1.0]), corrector=FeynmanKac(),
               resampling=Accumulate(), **churned)  # fmt: skip
    flow = Conditional(LAW.denoiser(FlowPath(), "data"))
    with pytest.raises(ValueError, match="t = 0"):
        run(flow, 8, 4, path=FlowPath(), times=np.linspace(0, 0.9, 5))
    with pytest.raises(ValueError, match="Tilted"):
        run(Conditional(LAW.denoiser(PATH)), 8, 4, reward=Reward(lambda x, t: x[:, 0], lambda t: 1.0))
    with pytest.raises(ValueError, match="divergence"):
        FeynmanKac("right").plan(PATH, grid(3), (1, 1))


def test_every_path_weighs_the_same_product_alike():
    """log Ẑ of a product along VP, VE and the flow estimates one constant."""
    laws = [Mixture([1.0], [[0.3]], [[[0.5]]]), Mixture([1.0], [[0.0]], [[[0.8]]])]
    _, truth = geometric(laws, [0.6, 0.5])
    paths = {
        PATH: grid(150),
        VE(sigma_max=12.0): np.geomspace(12.0, 0.02, 151),
        FlowPath(): np.linspace(0.02, 0.999, 151),
    }
    found = []
    for path, times in paths.items():
        guide = Product([Conditional(law.denoiser(path, "score")) for law in laws], [0.6, 0.5])
        sigma = float(path.sigma(times[0]))
        done = jax.jit(
            lambda g=guide, p=path, t=times, v=sigma: run(g, 8000, 150, variance=v**2 / 1.1, path=p, d=1, times=t)
        )()
        found.append(float(done.weights.log_z[0]) + log_constant(sigma**2, 1.1))
    for a, b in itertools.pairwise(found):
        assert a == pytest.approx(b, abs=0.12)
    assert np.mean(found) == pytest.approx(truth, abs=0.08)
