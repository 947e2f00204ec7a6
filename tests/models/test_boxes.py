"""Boxes against closed forms, suppression against a plain loop, both against the stored numbers."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.ops import boxes as ops
from models.ops.detections import Detections, best, resize, suppress

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "consistency_det"


def random_boxes(count: int, seed: int = 0, size: float = 40.0) -> np.ndarray:
    """Boxes of which some are points, some equal, some inverted."""
    r = np.random.default_rng(seed)
    low = r.uniform(0, size, (count, 2))
    boxes = np.concatenate([low, low + r.uniform(0, size / 2, (count, 2))], -1).astype(np.float32)
    boxes[1::9, 2:] = boxes[1::9, :2]
    boxes[2::9] = boxes[0]
    return boxes


def loop_iou(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(float), b.astype(float)
    width, height = (max(min(a[2 + i], b[2 + i]) - max(a[i], b[i]), 0.0) for i in (0, 1))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


def loop_nms(boxes, scores, threshold, labels, valid) -> np.ndarray:
    stays = np.zeros(len(boxes), bool)
    for i in np.argsort(-scores, kind="stable"):
        rivals = np.flatnonzero(stays & (labels == labels[i]))
        stays[i] = valid[i] and all(loop_iou(boxes[i], boxes[j]) <= threshold for j in rivals)
    return stays


def test_overlap_is_that_of_a_loop_and_of_known_pairs():
    a, b = random_boxes(11, 1), random_boxes(7, 2)
    got = jax.jit(functools.partial(ops.pairwise, ops.iou))(a, b)
    np.testing.assert_allclose(got, [[loop_iou(x, y) for y in b] for x in a], atol=1e-6)
    square, beside, far = jnp.float32([0, 0, 2, 2]), jnp.float32([1, 0, 3, 2]), jnp.float32([4, 0, 6, 2])
    assert ops.iou(square, beside) == pytest.approx(1 / 3)
    assert ops.giou(square, beside) == pytest.approx(1 / 3)  # the hull is the union
    assert ops.giou(square, far) == pytest.approx(-1 / 3)  # a third of the hull is empty
    assert ops.giou(square, square) == 1 and ops.giou(square * 0, square * 0) == 0


def test_giou_has_finite_gradients_and_ignores_scale_and_order():
    a, b = random_boxes(18, 3), random_boxes(18, 4)
    total = jax.jit(jax.grad(lambda a, b: ops.pairwise(ops.giou, a, b).sum(), argnums=(0, 1)))
    assert all(np.isfinite(g).all() for g in total(a, b))
    giou = jax.jit(functools.partial(ops.pairwise, ops.giou))
    np.testing.assert_allclose(giou(a, b), giou(b, a).T, atol=1e-6)
    np.testing.assert_allclose(giou(a * 16, b * 16), giou(a, b), atol=1e-5)


def test_coordinates_and_deltas_undo_each_other():
    boxes = random_boxes(20, 5)
    np.testing.assert_allclose(ops.to_xyxy(ops.to_cxcywh(boxes)), boxes, atol=1e-5)
    weights = (2.0, 2.0, 1.0, 1.0)
    deltas = np.random.default_rng(6).normal(size=(20, 4)).astype(np.float32)
    moved = ops.to_cxcywh(ops.apply_deltas(boxes, deltas, weights))
    cx, cy, w, h = np.moveaxis(np.asarray(ops.to_cxcywh(boxes), np.float64), -1, 0)
    dx, dy, dw, dh = np.moveaxis(deltas / weights, -1, 0)
    np.testing.assert_allclose(
        moved, np.stack([cx + dx * w, cy + dy * h, w * np.exp(dw), h * np.exp(dh)], -1), rtol=1e-4
    )
    grown = ops.apply_deltas(boxes, jnp.full((20, 4), 1e4, jnp.float32), weights)
    assert np.isfinite(grown).all()


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5])
def test_suppression_is_that_of_a_plain_loop(threshold):
    """Chains of overlaps, equal scores, duplicates, points, classes and filler, in a batch."""
    r = np.random.default_rng(7)
    boxes = np.stack([random_boxes(60, seed, size=25) for seed in range(4)])
    scores = np.round(r.uniform(size=(4, 60)), 1).astype(np.float32)
    labels, valid = r.integers(0, 3, (4, 60)), r.uniform(size=(4, 60)) > 0.2
    run = jax.jit(jax.vmap(lambda b, s, c, v: ops.nms(b, s, threshold, labels=c, valid=v)))
    for row, got in enumerate(run(boxes, scores, labels, valid)):
        np.testing.assert_array_equal(got, loop_nms(boxes[row], scores[row], threshold, labels[row], valid[row]))


def test_a_long_chain_settles():
    """Every box overlaps the next: each second one stays, which takes as many rounds as boxes."""
    left = np.arange(30, dtype=np.float32)
    boxes = np.stack([left * 2, left * 0, left * 2 + 3, left * 0 + 1], -1)
    stays = jax.jit(lambda b, s: ops.nms(b, s, 0.1))(boxes, -left)
    np.testing.assert_array_equal(stays, np.arange(30) % 2 == 0)
    assert not ops.nms(boxes, -left, 0.1, valid=np.zeros(30, bool)).any()


def test_suppression_equals_the_stored_numbers():
    stored = np.load(GOLDEN / "nms.npz")
    order = np.argsort(-stored["scores"], kind="stable")
    for key, labels in (("keep_050", stored["labels"]), ("keep_060", stored["labels"]), ("keep_classless_050", None)):
        stays = ops.nms(stored["boxes"], stored["scores"], int(key[-3:]) / 100, labels=labels)
        np.testing.assert_array_equal(order[np.asarray(stays)[order]], stored[key])


def test_detections_of_one_step_equal_the_stored_numbers():
    stored = np.load(GOLDEN / "inference_single_step.npz")
    find = jax.jit(lambda logits, boxes: suppress(best(logits, boxes, len(boxes)), 0.5))
    for row in range(len(stored["logits"])):
        found = find(stored["logits"][row], stored["pred_boxes"][row])
        seen = resize(found, stored["image_hw"][row], stored[f"orig_hw_{row}"])
        for prefix, some in (("", found), ("post_", seen)):
            kept = np.asarray(some.valid)
            np.testing.assert_allclose(some.boxes[kept], stored[f"{prefix}boxes_{row}"], atol=1e-4)
            np.testing.assert_allclose(some.scores[kept], stored[f"{prefix}scores_{row}"], atol=1e-6)
            np.testing.assert_array_equal(some.labels[kept], stored[f"{prefix}labels_{row}"])


def test_what_lies_outside_the_image_is_dropped():
    boxes = jnp.float32([[-9, -9, -1, -1], [8, 2, 30, 6], [1, 1, 1, 5]])
    found = Detections(boxes, jnp.ones(3), jnp.arange(3), jnp.ones(3, bool))
    seen = resize(found, jnp.array([10, 20]), jnp.array([20, 10]))
    np.testing.assert_array_equal(seen.valid, [False, True, False])
    np.testing.assert_allclose(seen.boxes[1], [4, 4, 10, 12])
