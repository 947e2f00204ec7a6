"""Objectives of detectors around heads whose answers are known; the release's numbers are run_verify's business."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.ops.boxes import sides, to_xyxy
from sampling.box_paths import CosineBoxes, KarrasBoxes
from train.objectives.box_consistency import BoxConsistency, TwoLevels
from train.objectives.box_denoising import BoxDenoising, Heads, Truth, start_boxes
from train.objectives.matching import Targets
from train.objectives.set_prediction import SetPrediction

KEY, STEP, BOXES, COLUMNS = jax.random.key(0), jnp.int32(3), 6, 4
KARRAS = KarrasBoxes(boundary=0.02)
OBJECTIVES = {
    "denoising": BoxDenoising(CosineBoxes(), SetPrediction()),
    "two levels": TwoLevels(KarrasBoxes(time="level"), SetPrediction()),
    "consistency": BoxConsistency(KARRAS, SetPrediction(), steps=100),
}


def truth(rows=3):
    """Images with two targets, none, and as many as there are columns."""
    size = jnp.array([[64, 96], [80, 80], [96, 48]])[:rows]
    unit = jnp.array([[0.3, 0.4, 0.2, 0.5], [0.6, 0.5, 0.4, 0.3], [0.5, 0.2, 0.1, 0.2], [0.8, 0.8, 0.2, 0.3]])
    boxes = to_xyxy(unit)[None] * sides(size)[:, None]
    valid = jnp.arange(4) < jnp.array([2, 0, 4])[:rows, None]
    return Truth(Targets(boxes, jnp.tile(jnp.arange(4) % 3, (rows, 1)), valid, size), jnp.ones(rows))


def head(shift):
    """Answers what it is shown, moved; the class is told by the place."""

    def answer(boxes, time):
        logits = jnp.stack([boxes[..., 0], boxes[..., 1], boxes[..., 2]], -1) / 50 - 1 + 1e-4 * time[:, None, None]
        return jnp.stack([logits, logits + 0.5]), jnp.stack([boxes + shift, boxes + 0.5 * shift])

    return answer


def test_true_boxes_stand_first_then_random_ones_and_never_nothing():
    batch = truth()
    drawn = OBJECTIVES["denoising"].draw(KEY, jnp.arange(3), BOXES, COLUMNS, STEP)
    x = (np.asarray(start_boxes(batch.targets, drawn, 2.0)) / 2 + 1) / 2
    np.testing.assert_allclose(x[0, :2, 0], [0.3, 0.6], rtol=1e-5)
    np.testing.assert_allclose(x[1, 0], [0.5, 0.5, 1.0, 1.0])  # of an image without targets
    np.testing.assert_allclose(x[2, :4, 3], [0.5, 0.3, 0.2, 0.3], rtol=1e-5)
    filler = drawn.filler[0, 2:] / 6 + 0.5
    np.testing.assert_allclose(x[0, 2:], np.concatenate([filler[:, :2], filler[:, 2:].clip(1e-4)], -1), atol=1e-5)
    few = [OBJECTIVES["denoising"].draw(jax.random.key(i), jnp.arange(3), 2, COLUMNS, STEP) for i in range(20)]
    seen = {round(float(v), 3) for d in few for v in ((start_boxes(batch.targets, d, 2.0)[2, :, 2] / 2 + 1) / 2)}
    assert seen == {0.2, 0.4, 0.1}  # any two of the four


@pytest.mark.parametrize("name", OBJECTIVES)
def test_terms_do_not_depend_on_how_the_batch_is_cut(name):
    """Draws belong to rows, sums and weights add up, levels are legal."""
    objective, batch = OBJECTIVES[name], truth()
    heads = Heads(head(2.0), head(2.0))

    @jax.jit
    def terms(batch, drawn):
        return objective.loss(heads, batch, drawn, STEP)

    drawn = objective.draw(KEY, jnp.arange(3), BOXES, COLUMNS, STEP)
    whole = terms(batch, drawn)
    assert (drawn.near <= drawn.level).all() and (name == "denoising" or (drawn.near < drawn.level).all())
    parts = []
    for i in range(3):
        one = objective.draw(KEY, jnp.array([i]), BOXES, COLUMNS, STEP)
        np.testing.assert_array_equal(one.noise[0], drawn.noise[i])
        row = jax.tree.map(lambda a, i=i: a[i : i + 1], (batch, drawn))
        parts.append(terms(*row))
    for key, term in whole.items():
        for field in ("sum", "weight"):
            total = sum(getattr(part[key], field) for part in parts)
            np.testing.assert_allclose(total, getattr(term, field), rtol=2e-5, err_msg=f"{key} {field}")


def test_the_target_is_a_constant_and_agreement_costs_nothing():
    objective, batch = OBJECTIVES["consistency"], truth()
    drawn = objective.draw(KEY, jnp.arange(3), BOXES, COLUMNS, STEP)
    fixed = jnp.broadcast_to(batch.targets.boxes[:, :1], (3, BOXES, 4))

    def always(boxes, time):
        return head(0.0)(boxes, time)[0], jnp.broadcast_to(fixed, (2, *fixed.shape))

    @jax.jit
    def distance(shift, target_shift):
        return objective.loss(Heads(head(shift), head(target_shift)), batch, drawn, STEP)["consistency"].sum

    student, target = jax.grad(distance, (0, 1))(2.0, 1.0)
    assert student != 0 and target == 0
    far = drawn._replace(level=jnp.full(3, 20.0), near=jnp.full(3, 15.0))  # where the boundary's share of x is gone
    agreed = objective.loss(Heads(always, always), batch, far, STEP)["consistency"].sum
    assert agreed < 1e-4 < distance(2.0, 1.0)


def test_the_released_recipe_is_two_separate_set_losses():
    objective, batch = OBJECTIVES["two levels"], truth()
    drawn = objective.draw(KEY, jnp.arange(3), BOXES, COLUMNS, STEP)
    terms = objective.loss(Heads(head(1.0), head(1.0)), batch, drawn, STEP)
    turned = drawn._replace(level=drawn.near, near=drawn.level)
    other = objective.loss(Heads(head(1.0), head(1.0)), batch, turned, STEP)
    for name in ("class", "l1_0", "giou"):
        np.testing.assert_allclose(terms[name].sum, other[f"near_{name}"].sum, rtol=1e-5)
    levels = np.unique(np.round(KarrasBoxes(time="level").told(np.asarray(drawn.level, np.float64)), 3) % 1)
    assert levels.tolist() == [0.0]


def test_a_consistency_model_without_a_boundary_is_refused():
    with pytest.raises(ValueError, match=r"needs path.boundary > 0"):
        BoxConsistency(dataclasses.replace(KARRAS, boundary=0.0), SetPrediction(), steps=10)
    with pytest.raises(ValueError, match="levels must be one of ct, ict, fixed, got 'some'"):
        BoxConsistency(KARRAS, SetPrediction(), steps=10, levels="some")
