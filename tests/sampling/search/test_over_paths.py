"""Search over paths: the law of its branches, its costs, and that layout changes nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from sampling.grids import uniform
from sampling.ledger import Ledger
from sampling.paths import VE, FlowPath, VPLinear
from sampling.sample import Sample
from sampling.search.candidates import Where
from sampling.search.over_paths import PathSearch, renoising
from sampling.search.starts import RandomSearch
from tests.sampling.search.bed import PATH, SHAPE, TARGETS, near, noise, run, solve

GRID = uniform(12, end=1.0)
SEARCH = PathSearch.on(PATH, GRID, levels=(4, 7, 10), back=2, keep_paths=2, copies=4)


def searched(search, source=None, targets=TARGETS, shape=SHAPE):
    source = noise() if source is None else source
    return jax.jit(lambda source, targets: search(solve, near, source, shape, targets))(source, targets)


def test_stretches_of_a_grid():
    lengths = [len(grid) - 1 for grid in SEARCH.grids]
    assert lengths == [4, 5, 5, 2]
    np.testing.assert_array_equal([grid[0] for grid in SEARCH.grids], GRID[[0, 2, 5, 10]])
    np.testing.assert_array_equal([grid[-1] for grid in SEARCH.grids], GRID[[4, 7, 10, 12]])


@pytest.mark.parametrize(
    "path, t, up", [(FlowPath(), 0.7, 0.4), (FlowPath(0.0), 0.3, 0.6), (VE(), 1.0, 3.0), (VPLinear(), 0.2, 0.5)]
)
def test_noising_again_stays_on_the_path(path, t, up):
    # Of data of variance v: α²v + σ² must become α'²v + σ'² for every v.
    a, b = renoising(path, t, up)
    for v in (0.0, 1.0, 5.0):
        then, now = (path.alpha(s) ** 2 * v + path.sigma(s) ** 2 for s in (t, up))
        assert a**2 * then + b**2 == pytest.approx(now, rel=1e-12)


def test_costs_are_counted_and_budgets_are_kept():
    found = searched(SEARCH)
    expected = 2 * 4 + 2 * 4 * (5 + 1) * 2 + 2 * 2  # two starts, two levels of eight children, two ends
    assert int(found.ledger.network_calls) == SEARCH.cost(solve, SHAPE).network_calls == expected
    assert int(found.ledger.verifier_calls) == 2 * 8 + 2
    fitted = SEARCH.within(300, solve, SHAPE)
    assert 300 - 2 * 6 * 2 < fitted.cost(solve, SHAPE).network_calls <= 300
    with pytest.raises(ValueError, match="the budget leaves"):
        SEARCH.within(20, solve, SHAPE)


def test_it_beats_plain_sampling():
    plain = jax.jit(lambda s: RandomSearch(1)(run, near, s, SHAPE, TARGETS))(noise()).score
    assert (np.asarray(searched(SEARCH).score) > np.asarray(plain)).all()


def test_what_goes_on_is_the_best_of_its_round():
    found = searched(dataclasses.replace(SEARCH, keep="all"))
    for round in found.rounds[:-1]:
        np.testing.assert_array_equal(round.chosen, np.argsort(-np.asarray(round.scores), axis=0)[:2])
    ends = found.rounds[-1]
    np.testing.assert_allclose(ends.scores, near(ends.candidates, TARGETS), rtol=1e-5)
    np.testing.assert_array_equal(found.score, np.asarray(ends.scores).max(0))


def test_one_copy_without_a_way_back_up_is_plain_sampling():
    search = PathSearch.on(PATH, GRID, levels=(4, 8), back=0, keep_paths=1, copies=1)
    start = noise().at(0, SHAPE, jnp.float32)
    np.testing.assert_allclose(searched(search).x, jax.jit(lambda x: solve(x, GRID, 0).x)(start), atol=1e-5)


@pytest.mark.slow
def test_chunks_devices_and_other_prompts_change_nothing():
    whole = searched(SEARCH)
    two = Mesh(np.array(jax.devices()[:2]), ("candidates",))
    for where in (Where(chunk=3), Where(mesh=two), Where(chunk=1, mesh=two)):
        other = searched(dataclasses.replace(SEARCH, where=where))
        np.testing.assert_array_equal(other.rounds[0].chosen, whole.rounds[0].chosen)
        np.testing.assert_allclose(other.x, whole.x, atol=1e-5)
    alone = searched(SEARCH, noise(ids=[1]), TARGETS[1:2], (1, 2))
    np.testing.assert_allclose(alone.x[0], whole.x[1], atol=1e-5)


def test_starts_and_additions_have_the_paths_own_scale():
    path = VE(sigma_max=20.0)
    grids = (np.array([20.0, 5.0]), np.array([6.0, 2.0]), np.array([2.0, 0.5, 0.0]))

    def stay(x, grid, number):
        return Sample(x, None, Ledger(1))

    found = PathSearch(path, grids, 1, 1)(stay, near, noise(), SHAPE, TARGETS)
    first, second = (noise().at(i, SHAPE, jnp.float32) for i in range(2))
    np.testing.assert_allclose(found.x, 20.0 * first + np.sqrt(6.0**2 - 5.0**2) * second, rtol=1e-5)


@pytest.mark.parametrize(
    "grids, message",
    [
        ((GRID[:5], GRID[4:]), "at least three stretches"),
        ((GRID[:5], GRID[5:8], GRID[7:]), "or noisier"),
        ((GRID[:5], GRID[3:5], GRID[4:]), "end less noisy"),
        ((GRID[:5], GRID[3:8], GRID[6:]), "start where the one before ended"),
        ((GRID[:5], GRID[3:8][::-1], GRID[7:]), "times must run from noise to data"),
    ],
)
def test_stretches_that_do_not_join_are_refused(grids, message):
    with pytest.raises(ValueError, match=message):
        PathSearch(PATH, grids)


@pytest.mark.parametrize("levels, back", [((4,), 2), ((4, 4), 2), ((1, 8), 2), ((4, 12), 2), ((4, 8), -1)])
def test_levels_outside_the_grid_are_refused(levels, back):
    with pytest.raises(ValueError, match="levels must rise"):
        PathSearch.on(PATH, GRID, levels, back)
