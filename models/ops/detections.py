"""Detections of one image as arrays of a fixed size; batches by ``jax.vmap``."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from models.ops.boxes import clip, nms


class Detections(NamedTuple):
    """Boxes with a class and a score; rows that are not ``valid`` are filler.

    Attributes:
      boxes: [n, 4] corners in pixels.
      scores: [n] in [0, 1].
      labels: [n] int32, 0 … classes - 1.
      valid: [n] bool.
    """

    boxes: jax.Array
    scores: jax.Array
    labels: jax.Array
    valid: jax.Array


def best(logits: jax.Array, boxes: jax.Array, count: int) -> Detections:
    """The ``count`` best pairs of box and class; a box may be in several.

    Args:
      logits: [n, classes], one sigmoid per class.
      boxes: [n, 4].
      count: at most n · classes.

    Returns:
      [count], best first.
    """
    classes = logits.shape[-1]
    score, index = jax.lax.top_k(jax.nn.sigmoid(logits).reshape(-1), count)
    return Detections(boxes[index // classes], score, index % classes, jnp.ones(count, bool))


def suppress(found: Detections, threshold: float) -> Detections:
    """Non-maximum suppression within each class; what stays comes first, best first."""
    stays = nms(found.boxes, found.scores, threshold, labels=found.labels, valid=found.valid)
    order = jnp.lexsort((-found.scores, ~stays))
    return Detections(*(a[order] for a in found._replace(valid=stays)))


def resize(found: Detections, size: jax.Array, original: jax.Array) -> Detections:
    """Detections in an image of ``size`` (height, width) as seen in the ``original`` size: scaled, cut at the borders;
    boxes without area are no longer valid."""
    scale = jnp.asarray(original, found.boxes.dtype) / jnp.asarray(size, found.boxes.dtype)
    boxes = clip(found.boxes * jnp.tile(scale[::-1], 2), jnp.asarray(original))
    sides = boxes[:, 2:] - boxes[:, :2]
    return found._replace(boxes=boxes, valid=found.valid & (sides > 0).all(-1))
