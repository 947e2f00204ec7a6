"""Search over starts: what it costs, that it climbs, and that layout changes nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from sampling.guidance import Conditional
from sampling.noise import Keyed, Stored
from sampling.sample import sample
from sampling.search.candidates import Where
from sampling.search.starts import RandomSearch, ZeroOrder, rotate
from sampling.search.verifier import Ensemble
from sampling.solvers import ReverseSDE
from tests.sampling.search.bed import GRID, GUIDE, LAW, PATH, SHAPE, TARGETS, near, noise, run

BOTH = (RandomSearch(8), ZeroOrder(neighbours=4, iterations=2))


def searched(search, source, targets=TARGETS, shape=SHAPE, run=run, verifier=near):
    return jax.jit(lambda source, targets: search(run, verifier, source, shape, targets))(source, targets)


def test_one_candidate_is_plain_sampling():
    found = searched(RandomSearch(1), noise())
    start = noise().at(0, SHAPE, jnp.float32)
    np.testing.assert_array_equal(found.start, start)
    np.testing.assert_allclose(found.x, jax.jit(lambda x: run(x, 0).x)(start), atol=1e-6)
    assert int(found.ledger.network_calls) == run(start, 0).ledger.network_calls


def test_the_best_is_the_best_and_more_candidates_never_hurt():
    everything = searched(RandomSearch(16, keep="all"), noise())
    (choice,) = everything.rounds
    scores = np.asarray(near(choice.candidates, TARGETS))
    np.testing.assert_allclose(choice.scores, scores, rtol=1e-6)
    np.testing.assert_array_equal(choice.chosen[0], scores.argmax(0))
    np.testing.assert_array_equal(everything.x, np.asarray(choice.candidates)[scores.argmax(0), np.arange(3)])
    np.testing.assert_allclose(jax.jit(lambda x: run(x, 0).x)(everything.start), everything.x, atol=1e-6)
    reached = [np.asarray(searched(RandomSearch(n), noise()).score) for n in (1, 2, 4, 8)] + [scores.max(0)]
    assert (np.diff(reached, axis=0) >= 0).all(), "the first candidates of a larger search are those of a smaller one"
    assert (reached[-1] > reached[0]).all()


def test_zero_order_climbs_and_keeps_its_sphere():
    found = searched(ZeroOrder(neighbours=4, iterations=12, cosine=0.9), noise())
    (rounds,) = found.rounds
    first = near(jax.jit(lambda x: run(x, 0).x)(noise().at(0, SHAPE, jnp.float32)), TARGETS)
    pivots = np.maximum.accumulate(np.concatenate([first[None], rounds.scores.max(1)]))
    np.testing.assert_allclose(found.score, pivots[-1], rtol=1e-5)
    moved = np.asarray(rounds.chosen[:, 0]) >= 0
    np.testing.assert_array_equal(moved, np.diff(pivots, axis=0) > 0, err_msg="the pivot moves if and only if it rises")
    assert moved.any() and not moved.all(), "the test needs rounds of both kinds"
    start = noise().at(0, SHAPE, jnp.float32)
    np.testing.assert_allclose(jnp.linalg.norm(found.start, axis=-1), jnp.linalg.norm(start, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(jax.jit(lambda x: run(x, 0).x)(found.start), found.x, atol=1e-5)


def test_a_round_that_improves_nothing_keeps_its_pivot():
    # The published code draws a new pivot instead.  Equal scores are no improvement either.
    for verifier in (lambda x, c: jnp.zeros(3), lambda x, c: jnp.where(x[:, 0] == c[:, 0], 1.0, -1.0)):
        first = jax.jit(lambda x: run(x, 0).x)(noise().at(0, SHAPE, jnp.float32))
        found = searched(ZeroOrder(3, 4), noise(), targets=first, verifier=verifier)
        np.testing.assert_array_equal(found.rounds[0].chosen, -1)
        np.testing.assert_array_equal(found.start, noise().at(0, SHAPE, jnp.float32))


@pytest.mark.parametrize("cosine", [1.0, 0.95, 0.0, -0.5])
def test_a_neighbour_lies_at_its_angle(cosine):
    with jax.enable_x64(True):
        pivot, raw = jax.random.normal(jax.random.key(0), (2, 5, 4, 3), jnp.float64)
        got = rotate(pivot, raw, cosine)
        flat, length = np.asarray(pivot).reshape(5, -1), jnp.linalg.norm(pivot.reshape(5, -1), axis=1)
        np.testing.assert_allclose(jnp.linalg.norm(got.reshape(5, -1), axis=1), length, rtol=1e-12)
        np.testing.assert_allclose(
            (flat * np.asarray(got).reshape(5, -1)).sum(1), cosine * length**2, rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize("search", BOTH, ids=["random", "zero_order"])
def test_chunks_and_devices_change_nothing(search):
    devices = Mesh(np.array(jax.devices()[: 8 if isinstance(search, RandomSearch) else 4]), ("candidates",))

    def stochastic(start, number):
        own = Keyed(jax.random.fold_in(jax.random.key(7), number), jnp.arange(3))
        return sample(GUIDE, start, GRID[1:], path=PATH, solver=ReverseSDE(), noise=own)

    whole = searched(search, noise(), run=stochastic)
    for where in (Where(chunk=1), Where(chunk=3), Where(mesh=devices), Where(chunk=1, mesh=devices)):
        other = searched(dataclasses.replace(search, where=where), noise(), run=stochastic)
        np.testing.assert_array_equal(other.rounds[0].chosen, whole.rounds[0].chosen)
        np.testing.assert_array_equal(other.start, whole.start)
        np.testing.assert_allclose(other.x, whole.x, atol=1e-5)


@pytest.mark.parametrize("search", BOTH, ids=["random", "zero_order"])
def test_prompts_do_not_mix(search):
    whole = searched(search, noise())
    order = np.array([2, 0])
    some = searched(search, noise(ids=order), targets=TARGETS[order], shape=(2, 2))
    np.testing.assert_array_equal(some.start, np.asarray(whole.start)[order])
    np.testing.assert_allclose(some.score, np.asarray(whole.score)[order], rtol=1e-4)


@pytest.mark.parametrize("search", BOTH, ids=["random", "zero_order"])
def test_the_ledger_is_what_was_called_and_budgets_are_kept(search):
    calls, judged = [], []

    def counted(x, t, condition):
        jax.debug.callback(lambda x: calls.append(1), x)
        return LAW.denoiser(PATH, "velocity")(x, t, condition)

    def verifier(x, targets):
        jax.debug.callback(lambda x: judged.append(1), x)
        return near(x, targets)

    def counting(start, number):
        return sample(Conditional(counted), start, GRID, path=PATH)

    two = Ensemble((verifier, verifier))
    search = dataclasses.replace(search, where=Where(chunk=2))
    found = searched(search, noise(), run=counting, verifier=two)
    jax.block_until_ready(found.x)
    jax.effects_barrier()
    cost = search.cost(counting, SHAPE, verifiers=2)
    assert len(calls) == int(found.ledger.network_calls) == cost.network_calls, "callbacks run once per candidate"
    assert len(judged) == int(found.ledger.verifier_calls) == cost.verifier_calls
    for budget in (200, 137):
        fitted = search.within(budget, counting, SHAPE)
        step = 6 * getattr(fitted, "neighbours", 1)
        assert budget - step < fitted.cost(counting, SHAPE).network_calls <= budget
    with pytest.raises(ValueError, match="the budget leaves"):
        search.within(5, counting, SHAPE)


def test_what_cannot_be_judged_is_never_chosen_and_said():
    def picky(x, targets):
        return jnp.where((x[:, 0] > 0) & (targets[:, 0] >= 0), near(x, targets), jnp.nan)

    found = searched(RandomSearch(16), noise(), verifier=picky)
    np.testing.assert_array_equal(found.valid, [True, False, True])
    assert (np.asarray(found.x)[[0, 2], 0] > 0).all()
    assert np.isnan(found.x[1]).all(), "nothing that nobody could judge is returned as a sample"


@pytest.mark.parametrize(
    "verifier, message",
    [
        (lambda x, c: x, r"one real score for each of 3 samples, got float32\[3, 2\]"),
        (lambda x, c: near(x, c).sum(), r"got float32\[\]"),
        (lambda x, c: near(x, c) > 0, r"got bool\[3\]"),
        (lambda x, c: 1.0, "got float"),
    ],
)
def test_a_verifier_of_wrong_shape_is_refused_before_anything_runs(verifier, message):
    def never(start, number):
        jax.debug.callback(lambda: pytest.fail("the sampler ran"))
        return run(start, number)

    for search in BOTH:
        with pytest.raises(ValueError, match=message):
            search(never, verifier, noise(), SHAPE, TARGETS)


def test_other_bad_input():
    with pytest.raises(ValueError, match="candidates must be at least 1"):
        RandomSearch(0)
    with pytest.raises(ValueError, match="cosine"):
        ZeroOrder(cosine=1.5)
    with pytest.raises(ValueError, match="at least one candidate"):
        Where(chunk=0)
    with pytest.raises(ValueError, match="6 candidates cannot be shared by 4 devices"):
        RandomSearch(6, Where(mesh=Mesh(np.array(jax.devices()[:4]), ("c",))))(run, near, noise(), SHAPE, TARGETS)
    with pytest.raises(ValueError, match="stored noise"):
        RandomSearch(4)(run, near, Stored(jnp.zeros((3, 3, 2))), SHAPE, TARGETS)
    with pytest.raises(ValueError, match="hides its costs under jit"):
        RandomSearch(4)(jax.jit(run), near, noise(), SHAPE, TARGETS)
