"""Boxes: coordinates, overlap, deltas, non-maximum suppression.

A box is (x1, y1, x2, y2), corners in pixels, unless a name says otherwise; arrays are [..., 4].  Everything is
differentiable where that makes sense, finite for boxes without area, and has static shapes.
"""

import math

import jax
import jax.numpy as jnp

LARGEST_GROWTH = math.log(100_000 / 16)  # of one width or height by one delta, logarithm


def to_cxcywh(boxes: jax.Array) -> jax.Array:
    """Corners -> (centre x, centre y, width, height)."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([(low + high) / 2, high - low], -1)


def to_xyxy(boxes: jax.Array) -> jax.Array:
    """(centre x, centre y, width, height) -> corners."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return jnp.concatenate([centre - half, centre + half], -1)


def sides(size: jax.Array) -> jax.Array:
    """(height, width) [..., 2] -> (width, height, width, height) [..., 4] float32: corners in units of the image."""
    return jnp.tile(jnp.asarray(size, jnp.float32)[..., ::-1], 2)


def area(boxes: jax.Array) -> jax.Array:
    """[..., 4] -> [...]; negative where exactly one side is inverted."""
    return _product(boxes[..., 2:] - boxes[..., :2])


def clip(boxes: jax.Array, size: jax.Array) -> jax.Array:
    """Boxes cut at the borders of images of ``size`` (height, width), [..., 2] broadcast against the boxes."""
    height, width = size[..., 0], size[..., 1]
    return jnp.clip(boxes, 0, jnp.stack([width, height, width, height], -1).astype(boxes.dtype))


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Intersection over union of boxes that broadcast; 0 where there is no union."""
    inter, union, _ = _overlap(a, b)
    return _ratio(inter, union)


def giou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Generalised IoU (arXiv:1902.09630) of boxes that broadcast: IoU minus the empty share of their hull, in (-1, 1].

    Two boxes that are the same single point have 0.
    """
    inter, union, hull = _overlap(a, b)
    return _ratio(inter, union) - _ratio(hull - union, hull)


def pairwise(overlap, a: jax.Array, b: jax.Array) -> jax.Array:
    """``iou`` or ``giou`` of every pair: a [..., n, 4], b [..., m, 4] -> [..., n, m]."""
    return overlap(a[..., :, None, :], b[..., None, :, :])


def _overlap(a, b):
    """Areas of the intersection, the union and the hull."""
    low, high = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
    inter = _product(jnp.maximum(high - low, 0))
    outer = jnp.maximum(a[..., 2:], b[..., 2:]) - jnp.minimum(a[..., :2], b[..., :2])
    return inter, area(a) + area(b) - inter, _product(jnp.maximum(outer, 0))


def _product(sides):
    return sides[..., 0] * sides[..., 1]


def _ratio(part, whole):
    """part / whole, and 0 with gradient 0 where there is no whole."""
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1), 0)


def apply_deltas(boxes: jax.Array, deltas: jax.Array, weights: tuple[float, ...] = (2.0, 2.0, 1.0, 1.0)) -> jax.Array:
    """Moves and scales boxes as R-CNN does: the centre by (dx, dy) · size, the size by exp(dw, dh).

    Args:
      boxes, deltas: [..., 4].
      weights: what (dx, dy, dw, dh) are divided by first.
    """
    centre, size = jnp.split(to_cxcywh(boxes), 2, -1)
    shift, growth = jnp.split(deltas / jnp.asarray(weights, deltas.dtype), 2, -1)
    size_after = jnp.exp(jnp.minimum(growth, LARGEST_GROWTH)) * size
    return to_xyxy(jnp.concatenate([centre + shift * size, size_after], -1))


def nms(
    boxes: jax.Array,
    scores: jax.Array,
    threshold: float,
    *,
    labels: jax.Array | None = None,
    valid: jax.Array | None = None,
) -> jax.Array:
    """Greedy non-maximum suppression of one image: a box goes if one with a higher score stays and overlaps it.

    The greedy answer is the only fixed point of "stays = nobody better that stays overlaps"; iterating from "all stay"
    settles at least one more box of the ranking per round, usually all of them within ten.

    Args:
      boxes: [n, 4].
      scores: [n]; among equals the earlier box wins.
      threshold: a pair overlaps if its IoU is above this.
      labels: [n] int; boxes of different labels do not compete.  None = all compete.
      valid: [n] bool; others never stay.  None = all.

    Returns:
      [n] bool, in the order of ``boxes``.
    """
    count = len(scores)
    valid = jnp.ones(count, bool) if valid is None else valid
    rank = jnp.argsort(jnp.argsort(-scores, stable=True))
    rivals = (pairwise(iou, boxes, boxes) > threshold) & (rank[:, None] < rank)  # [better, worse]
    if labels is not None:
        rivals &= labels[:, None] == labels

    def settle(state):
        _, stays, rounds = state
        return stays, valid & ~(rivals & stays[:, None]).any(0), rounds + 1

    def unsettled(state):
        before, stays, rounds = state
        return (rounds <= count) & (before != stays).any()  # without the bound a NaN could keep it going

    start = (jnp.zeros(count, bool), valid, jnp.int32(0))
    return jax.lax.while_loop(unsettled, settle, start)[1]
