"""Tree of Frames on a flow whose next frame depends on the last one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from sampling.sample import sample
from sampling.search.beam import Stage, TreeOfFrames
from sampling.search.candidates import Where
from sampling.search.verifier import Ensemble
from tests.sampling.search.bed import GRID, GUIDE, PATH, SHAPE, TARGETS, noise


def extend(frames, start, number):
    last = jnp.where(frames.made > 0, frames.values[:, frames.made - 1], 0.0)
    return sample(GUIDE, start + 0.3 * last, GRID, path=PATH)


def close(frames, targets):
    """The newest frame is near its target."""
    return -((frames.values[:, frames.made - 1] - targets) ** 2).sum(-1)


def steady(frames, targets):
    """All frames so far are near each other."""
    there = (jnp.arange(frames.values.shape[1]) < frames.made)[None, :, None]
    mean = (there * frames.values).sum(1, keepdims=True) / frames.made
    return -(there * (frames.values - mean) ** 2).sum((1, 2))


STAGES = (Stage(close, 4, 2), Stage(Ensemble((close, steady)), 2, 2, chunks=3), Stage(steady, 2, 1))


def searched(tree, source=None, targets=TARGETS, shape=SHAPE):
    source = noise() if source is None else source
    return jax.jit(lambda source, targets: tree(extend, source, shape, targets))(source, targets)


def plain(chunks):
    def generate(source):
        values = jnp.zeros((3, chunks, 2))
        for i in range(chunks):
            frames = type("Frames", (), {"values": values, "made": jnp.int32(i)})
            values = values.at[:, i].set(extend(frames, source.at(i, SHAPE, jnp.float32), i).x)
        return values

    return jax.jit(generate)(noise())


def test_a_tree_without_branches_is_plain_generation():
    found = searched(TreeOfFrames((Stage(close, 1, 1), Stage(steady, 1, 1, chunks=3))))
    np.testing.assert_allclose(found.x, plain(4), atol=1e-5)


def test_a_beam_in_plain_numpy():
    tree = TreeOfFrames((Stage(close, 3, 2), Stage(close, 2, 2, chunks=2)))
    found = searched(tree)

    @jax.jit
    def child(values, made, number):
        frames = type("Frames", (), {"values": values, "made": made})
        chunk = extend(frames, noise().at(number, SHAPE, jnp.float32), number).x
        return values.at[:, made].set(chunk), -((chunk - TARGETS) ** 2).sum(-1)

    beam, first = [jnp.zeros((3, 3, 2))], 0
    for made, (branching, keep) in enumerate([(3, 2), (2, 2), (2, 2)]):
        children = [child(beam[i // branching], made, first + i) for i in range(len(beam) * branching)]
        values, scores = (np.stack([np.asarray(c[part]) for c in children]) for part in (0, 1))
        order = np.argsort(-scores, axis=0)[:keep]
        beam = [jnp.asarray(values[row, np.arange(3)]) for row in order]
        first += len(children)
    np.testing.assert_allclose(found.x, beam[0], atol=1e-5)
    np.testing.assert_allclose(found.score, -((beam[0][:, -1] - TARGETS) ** 2).sum(-1), rtol=1e-4)


def test_costs_and_budgets():
    tree = TreeOfFrames(STAGES)
    found = searched(tree)
    candidates = [4, 4, 4, 4, 4]
    assert found.x.shape == (3, 5, 2)
    assert int(found.ledger.network_calls) == tree.cost(extend, SHAPE).network_calls == 6 * sum(candidates)
    assert int(found.ledger.verifier_calls) == 4 + 3 * 4 * 2 + 4, "each member of an ensemble counts"
    assert tree.within(400, extend, SHAPE).cost(extend, SHAPE).network_calls == 360
    with pytest.raises(ValueError, match="the budget leaves"):
        tree.within(60, extend, SHAPE)


def test_wider_trees_score_higher():
    def score(width):
        return np.asarray(searched(TreeOfFrames((Stage(close, width, 1), Stage(close, width, 1)))).score)

    assert score(8).mean() > score(1).mean()


@pytest.mark.slow
def test_chunks_devices_and_other_prompts_change_nothing():
    whole = searched(TreeOfFrames(STAGES))
    two = Mesh(np.array(jax.devices()[:2]), ("candidates",))
    for where in (Where(chunk=3), Where(chunk=1, mesh=two)):
        np.testing.assert_allclose(searched(TreeOfFrames(STAGES, where)).x, whole.x, atol=1e-5)
    alone = searched(TreeOfFrames(STAGES), noise(ids=[2]), TARGETS[2:], (1, 2))
    np.testing.assert_allclose(alone.x[0], whole.x[2], atol=1e-5)


def test_bad_input():
    with pytest.raises(ValueError, match="cannot keep 3 of 1 × 2"):
        TreeOfFrames((Stage(close, 2, 3),))
    with pytest.raises(ValueError, match="at least one stage"):
        TreeOfFrames(())
    with pytest.raises(ValueError, match="branching must be at least 1"):
        Stage(close, 0, 1)
    with pytest.raises(ValueError, match="one real score for each of 3 samples"):
        TreeOfFrames((Stage(lambda f, c: f.values, 2, 1),))(extend, noise(), SHAPE, TARGETS)
    with pytest.raises(ValueError, match="extend must return the next chunk"):
        bad = lambda frames, start, number: sample(GUIDE, jnp.zeros((6, 2)), GRID, path=PATH)  # noqa: E731
        TreeOfFrames((Stage(close, 2, 1),))(bad, noise(), SHAPE, TARGETS)
