"""Solvers: orders of convergence, identities between them, laws of what they sample, and the step to σ = 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sampling import grids
from sampling.analytic import Mixture
from sampling.guidance import Conditional
from sampling.noise import Keyed, Stored, start_noise
from sampling.paths import VE, FlowPath, TrigFlow, VPCosine, VPLinear
from sampling.prediction import Prediction
from sampling.sample import sample
from sampling.solvers import DDIM, EDM, RK4, SOLVERS, Consistency, DPMpp2M, Euler, Heun, Midpoint, ReverseSDE, solver

LAW = Mixture([0.3, 0.7], [[-1.0, 0.5], [1.2, -0.4]], [0.2 * np.eye(2), [[0.3, 0.1], [0.1, 0.4]]])
SEGMENTS = {FlowPath(): (0.05, 0.95), VE(): (10.0, 0.1), VPLinear(): (0.9, 0.05), TrigFlow(): (1.5, 0.1)}


def guide(path, kind="data"):
    return Conditional(LAW.denoiser(path, kind))


def segment(path, n):
    start, end = SEGMENTS[path]
    return np.geomspace(start, end, n + 1) if isinstance(path, VE) else np.linspace(start, end, n + 1)


@pytest.fixture(scope="module")
def truth():
    """Where the probability flow takes eight points of each segment's start."""
    found = {}
    with jax.enable_x64(True):
        for path in SEGMENTS:
            t = segment(path, 1)[0]
            x = path.alpha(t) * 0.5 + path.sigma(t) * jax.random.normal(jax.random.key(0), (8, 2), jnp.float64)
            run = jax.jit(lambda x, path=path: sample(guide(path), x, segment(path, 800), path=path, solver=RK4()).x)
            found[path] = x, run(x)
    return found


@pytest.mark.parametrize(
    "method, path, order",
    [
        (Euler(), FlowPath(), 1),
        (Midpoint(), FlowPath(), 2),
        (Heun(), FlowPath(), 2),
        (RK4(), FlowPath(), 4),
        (RK4(), TrigFlow(), 4),
        (EDM(order=1), VE(), 1),
        (EDM(order=2), VE(), 2),
        (DDIM(), VPLinear(), 1),
        (DPMpp2M(), VE(), 2),
        (DPMpp2M(), VPLinear(), 2),
        (ReverseSDE(zeta=0.0), VPLinear(), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_order_of_convergence(method, path, order, truth):
    x, end = truth[path]
    with jax.enable_x64(True):
        counts = (20, 40, 80) if order == 4 else (80, 160, 320)
        run = jax.jit(lambda x: [sample(guide(path), x, segment(path, n), path=path, solver=method).x for n in counts])
        errors = [float(jnp.abs(got - end).max()) for got in run(x)]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.abs(orders - order).max() < 0.15, (errors, orders)


@pytest.mark.parametrize("path", [FlowPath(), VPLinear(), VPCosine(), VE(), TrigFlow()], ids=str)
def test_ddim_is_exponential_euler_in_lambda(path):
    """And DPM-Solver++ starts with it; both are the same numbers x' = (σ'/σ)x − α'·expm1(−h)·data."""
    grid = np.linspace(path.noise_time, path.data_time, 8)[1:-1]
    h = np.diff(0.5 * path.log_snr(grid))
    for name, want in (
        ("keep", path.sigma(grid[1:]) / path.sigma(grid[:-1])),
        ("gain", -path.alpha(grid[1:]) * np.expm1(-h)),
    ):
        for method in (DDIM(), DPMpp2M()):
            np.testing.assert_allclose(method.plan(path, grid).rows[name], want, rtol=1e-9)


def test_on_ve_ddim_is_edm_euler():
    grid, x = grids.karras(6, 0.05, 10.0), 10.0 * start_noise(jax.random.key(1), jnp.arange(5), (2,))
    run = jax.jit(lambda x, method: sample(guide(VE()), x, grid, path=VE(), solver=method).x, static_argnums=1)
    np.testing.assert_allclose(run(x, DDIM()), run(x, EDM(order=1)), atol=1e-5)


@pytest.mark.parametrize("method", [DDIM(0.0), DDIM(0.7), DPMpp2M(), DPMpp2M(eta=1.0)], ids=str)
@pytest.mark.parametrize("path", [FlowPath(), VPLinear(), TrigFlow()], ids=str)
def test_the_path_does_not_matter_where_ratios_agree(method, path):
    """x/α on any path is x on VE at σ/α: exponential integrators see no difference, a test of every α in them."""
    with jax.enable_x64(True):
        levels = np.geomspace(20.0, 0.05, 7)
        noise = Stored(jax.random.normal(jax.random.key(2), (6, 4, 2), jnp.float64))
        x = 20.0 * jax.random.normal(jax.random.key(3), (4, 2), jnp.float64)

        @jax.jit
        def both(x, noise):
            there = path.time_at(levels)
            kwargs = {"solver": method, "noise": noise}
            scaled = sample(guide(path), path.alpha(there[0]) * x, there, path=path, **kwargs).x / path.alpha(there[-1])
            return scaled, sample(guide(VE()), x, levels, path=VE(), **kwargs).x

        np.testing.assert_allclose(*both(x, noise), rtol=1e-8)


STOCHASTIC = (DDIM(eta=1.0), DPMpp2M(eta=0.5), ReverseSDE(zeta=1.3), Consistency())


@pytest.mark.parametrize("method", [Euler(), Midpoint(), Heun(), RK4(), DDIM(), DPMpp2M(), *STOCHASTIC], ids=str)
def test_both_directions_of_a_flow_give_the_same_samples(method):
    grid = grids.flow_grid(6, start=0.05)[:-1]
    x, noise = jnp.ones((3, 2)), Stored(jax.random.normal(jax.random.key(4), (5, 3, 2)))

    def run(path, times):
        return sample(guide(path, "velocity"), x, times, path=path, solver=method, noise=noise, keep="all").states

    up, down = jax.jit(lambda: (run(FlowPath(), grid), run(FlowPath(0.0), 1.0 - grid)))()
    np.testing.assert_allclose(up, down, rtol=2e-5, atol=2e-5)


def variance(method, path, grid, spread=0.6):
    """Of what a solver makes of data N(0, spread²), on which every step is a linear map; exact, on the host."""
    t = grid[:-1]
    alpha, total = path.alpha(t), path.alpha(t) ** 2 * spread**2 + path.sigma(t) ** 2
    rows = method.plan(path, grid).rows
    answer = {"data": alpha * spread**2, "score": -np.ones_like(t)}[method.target] / total
    factor = rows.get("keep", 0.0) + rows[{"score": "push"}.get(method.target, "gain")] * answer
    now = path.alpha(grid[0]) ** 2 * spread**2 + path.sigma(grid[0]) ** 2
    for a, b in zip(factor, rows.get("spread", np.zeros_like(t)), strict=True):
        now = a**2 * now + b**2
    return now / (path.alpha(grid[-1]) ** 2 * spread**2 + path.sigma(grid[-1]) ** 2)


@pytest.mark.parametrize(
    "method", [ReverseSDE(0.0), ReverseSDE(1.0), ReverseSDE(1.7), DDIM(0.0), DDIM(0.5), DDIM(1.0)], ids=str
)
@pytest.mark.parametrize("path", [FlowPath(), FlowPath(0.0), VPLinear(), VPCosine(), VE(), TrigFlow(0.6)], ids=str)
def test_many_small_steps_keep_the_law_whatever_the_noise(method, path):
    near, far = (path.data_time + s * (path.noise_time - path.data_time) for s in (0.002, 0.99))
    coarse, fine = (variance(method, path, np.linspace(far, near, n)) for n in (2000, 8000))
    assert fine == pytest.approx(1.0, abs=0.03)
    assert abs(fine - 1) < max(0.4 * abs(coarse - 1), 1e-6), "the error falls with the step"


def silent_at_zero(path):
    """The exact network of N(0.5, 0.6²), except that it knows nothing at σ = 0, like all that take log σ."""

    def denoise(x, t, condition):
        alpha, sigma = path.alpha(t), path.sigma(t)
        data = 0.5 + 0.36 * alpha / (0.36 * alpha**2 + sigma**2) * (x - 0.5 * alpha)
        return Prediction(jnp.where(sigma > 1e-6, data, jnp.nan), "data")

    return Conditional(denoise)


@pytest.mark.parametrize(
    "path", [FlowPath(), FlowPath(0.0), VPLinear(), VPCosine(), VE(sigma_max=30.0), TrigFlow()], ids=str
)
def test_the_step_to_the_data_is_finite_for_every_solver(path):
    """From σ_max (α = 0 on some paths) to σ = 0, where no solver may ask the network."""
    methods = [make() for make in SOLVERS.values()] + [Consistency(epsilon=0.002)]
    methods = [m for m in methods if isinstance(path, VE) or not isinstance(m, EDM)]
    n = 6
    grid = grids.karras(n, 0.05, 30.0) if isinstance(path, VE) else np.linspace(path.noise_time, path.data_time, n + 1)
    x = path.sigma(grid[0]) * start_noise(jax.random.key(5), jnp.arange(16), (2,))

    def run(x):
        noise, network = Keyed(jax.random.key(6), jnp.arange(16)), silent_at_zero(path)
        return [sample(network, x, grid, path=path, solver=m, noise=noise) for m in methods]

    for method, result in zip(methods, jax.jit(run)(x), strict=True):
        assert np.isfinite(result.x).all(), method
        assert float(jnp.abs(result.x).max()) < 5.0, method
        calls = {EDM(order=2): 2 * n - 1}.get(method) or n * method.evaluations - 2 * isinstance(method, RK4)
        assert int(result.ledger.network_calls) == calls, method


def test_a_peeled_step_keeps_the_order_of_heun():
    """It is the midpoint rule's, so the end at σ = 0 is of second order too."""
    counts, network = (20, 40, 80), silent_at_zero(FlowPath())
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (8, 2), jnp.float64)
        ends = jax.jit(lambda x: [sample(network, x, grids.uniform(n), solver=Heun()).x for n in counts])(x)
        errors = [float(jnp.abs(end - (0.5 + 0.6 * x)).max()) for end in ends]
    assert np.abs(np.log2(np.array(errors[:-1]) / errors[1:]) - 2.0).max() < 0.2, errors


def test_noise_belongs_to_the_sample_at_every_step():
    """Whatever else is in the batch, in whatever order, on however many devices."""
    grid = grids.karras(5, 0.05, 10.0)

    @jax.jit
    def run(ids):
        x, noise = 10.0 * start_noise(jax.random.key(0), ids, (2,)), Keyed(jax.random.key(1), ids)
        return sample(guide(VE()), x, grid, path=VE(), solver=DPMpp2M(eta=1.0), noise=noise).x

    ids = jnp.arange(16)
    whole = run(ids)
    np.testing.assert_allclose(run(ids[::-1])[::-1], whole, atol=1e-5)
    np.testing.assert_allclose(run(ids[3:4])[0], whole[3], atol=1e-5)
    assert len({round(float(v), 4) for v in whole[:, 0]}) == 16, "and every sample has its own"
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(ids, jax.NamedSharding(mesh, jax.P("data")))
    np.testing.assert_allclose(run(spread), whole, atol=1e-5)


def test_stored_noise_is_used_row_by_row():
    """The same numbers as a keyed source's, stored, give the same samples; churn draws them too."""
    grid, ids, x = grids.karras(4, 0.1, 5.0), jnp.arange(3), jnp.ones((3, 2))
    keyed = Keyed(jax.random.key(2), ids)
    stored = Stored(jnp.stack([keyed.at(jnp.int32(k), x.shape, x.dtype) for k in range(4)]))
    for method in (DDIM(eta=1.0), EDM(churn=2.0, noise_scale=1.1)):

        @jax.jit
        def run(keyed, stored, method=method):
            solvers = ((method, keyed), (method, stored), (type(method)(), None))
            return [sample(guide(VE()), x, grid, path=VE(), solver=s, noise=source).x for s, source in solvers]

        a, b, without = run(keyed, stored)
        np.testing.assert_allclose(a, b, atol=1e-5)
        assert not np.allclose(a, without)


def test_consistency_sampling_jumps_and_puts_noise_back():
    grid, eps = np.array([9.0, 3.0, 1.0, 0.0]), 0.1
    noise, x = Stored(jax.random.normal(jax.random.key(3), (2, 4, 2))), jnp.ones((4, 2))
    model = Conditional(lambda x, t, c: Prediction(x / (1.0 + t), "data"))
    got = sample(model, x, grid, path=VE(), solver=Consistency(eps), noise=noise, keep="all").states
    want = [x]
    for k, level in enumerate([3.0, 1.0]):
        want.append(want[-1] / (1.0 + grid[k]) + np.sqrt(level**2 - eps**2) * noise.values[k])
    want.append(want[-1] / 2.0)
    np.testing.assert_allclose(got, jnp.stack(want), atol=1e-6)


def test_memory_does_not_grow_with_the_steps():
    def temporary(n):
        run = jax.jit(lambda x: sample(guide(FlowPath()), x, grids.uniform(n), solver=DPMpp2M()).x)
        return run.lower(jnp.ones((4096, 2))).compile().memory_analysis().temp_size_in_bytes

    assert temporary(200) < temporary(10) + 200 * 200  # the rows of coefficients, a hundred bytes a step


@pytest.mark.parametrize(
    "path, method, grid, noise, message",
    [
        (VE(), DDIM(eta=1.0), [4.0, 1.0, 0.0], None, "draws noise at its steps"),
        (VE(), DDIM(eta=1.0), [4.0, 1.0, 0.1], (1, 2, 2), "stored noise has shape"),
        (VE(), DDIM(eta=1.0), [4.0, 1.0, 0.0], 3, "3 sample ids for 2 rows"),
        (VPLinear(), EDM(), [1.0, 0.5, 0.0], None, "defined on VE"),
        (VPCosine(), ReverseSDE(), [1.0, 0.5, 0.1], (2, 2, 2), "no finite 'keep' for step 0"),
        (VE(), Euler(), [0.1, 4.0], None, "from noise to data"),
        (FlowPath(), Euler(), [0.0, 1.0], None, "'score' prediction has no velocity at t = 0"),
    ],
)
def test_what_cannot_run_is_named_before_compiling(path, method, grid, noise, message):
    if noise is not None:
        noise = Keyed(jax.random.key(0), jnp.arange(noise)) if isinstance(noise, int) else Stored(jnp.ones(noise))

    def run(x):
        return sample(guide(path, "score"), x, np.array(grid), path=path, solver=method, noise=noise).x

    with pytest.raises(ValueError, match=message):
        jax.eval_shape(run, jax.ShapeDtypeStruct((2, 2), jnp.float32))


def test_solvers_by_name():
    assert solver("ancestral") == DDIM(eta=1.0) and isinstance(solver("rk4"), RK4)
    with pytest.raises(ValueError, match="unknown solver 'rk45'; expected one of euler, midpoint"):
        solver("rk45")
    with pytest.raises(ValueError, match="order 1 or 2"):
        EDM(order=3)
