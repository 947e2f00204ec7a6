"""Detection as sampling: boxes from noise, several times better ones, all of them collected.

    noise = Keyed(key, ids)
    found = detect(head, CosineBoxes(), size, noise, proposals=300, steps=4)

One ``lax.scan`` over the steps, static shapes, whole batches: an image's boxes do not depend on the others.  Steps and
proposals are free at evaluation.  Between steps boxes without a likely object give way to new random ones (box
renewal, arXiv:2211.09788).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from models.ops.detections import Detections, best, suppress
from sampling.box_paths import BoxPath, encode
from sampling.noise import Noise

Head = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""(corners [b, n, 4] in pixels, time [b]) -> logits [b, n, K] and corners [b, n, 4]: the last stage's."""

USES = ("all", "last", "release")


class Trace(NamedTuple):
    """Every step of a run.

    Attributes:
      x: [steps, b, n, 4] coded boxes with noise.
      shown: [steps, b, n, 4] corners that the head was given.
      logits: [steps, b, n, K] what it answered.
      boxes: [steps, b, n, 4]; see ``BoxPath.answer``.
      kept: [steps, b] how many boxes went on.
      found: [steps, b, n], the best pairs of box and class.
    """

    x: jax.Array
    shown: jax.Array
    logits: jax.Array
    boxes: jax.Array
    kept: jax.Array
    found: Detections


def detect(
    head: Head,
    path: BoxPath,
    size: jax.Array,
    noise: Noise,
    *,
    proposals: int,
    steps: int = 1,
    renewal: float | None = 0.5,
    overlap: float = 0.5,
    use: str = "all",
) -> Detections:
    """Objects in b images.

    Args:
      head: the network, its images bound.
      path: what it was trained on.
      size: [b, 2] (height, width) of the images without padding.
      noise: ``Keyed(key, ids)`` or ``Stored(values [steps, b, proposals, 4])``: the start and every later step.
      proposals: boxes in each image.
      steps: calls of the head.
      renewal: boxes whose best class is no likelier than this begin anew; None = none do.
      overlap: of two boxes of a class that overlap more than this, the likelier stays.
      use: whose detections count: those of "all" steps together, of the "last" alone, or as in DiffusionDet's
        "release" of all but the last (which makes two steps one).

    Returns:
      Per image the likely ones first: [b, steps · proposals], or [b, proposals] of the last step.

    Raises:
      ValueError: fewer than one step or box, an unknown ``use``, or noise of another shape.
    """
    if use not in USES:
        raise ValueError(f"use must be one of {', '.join(USES)}, got {use!r}")
    found = denoise(head, path, size, noise, proposals=proposals, steps=steps, renewal=renewal).found
    chosen = {"all": slice(None), "last": slice(-1, None), "release": slice(0, max(steps - 1, 1))}[use]

    def joined(a: jax.Array) -> jax.Array:
        return jnp.swapaxes(a[chosen], 0, 1).reshape(a.shape[1], -1, *a.shape[3:])

    return jax.vmap(lambda found: suppress(found, overlap))(jax.tree.map(joined, found))


def denoise(
    head: Head,
    path: BoxPath,
    size: jax.Array,
    noise: Noise,
    *,
    proposals: int,
    steps: int = 1,
    renewal: float | None = 0.5,
) -> Trace:
    """The steps of ``detect``, whose arguments these are, nothing suppressed."""
    if steps < 1 or proposals < 1:
        raise ValueError(f"need at least one step and one box, got {steps} and {proposals}")
    shape = (size.shape[0], proposals, 4)
    noise.check(steps, shape)
    plan = path.plan(steps)
    rows = {name: jnp.asarray(column, jnp.float32) for name, column in plan._asdict().items()}

    def step(x: jax.Array, row: dict[str, jax.Array]) -> tuple[jax.Array, Trace]:
        shown = path.place(x, row["level"], size)
        logits, boxes = head(shown, jnp.broadcast_to(row["time"], shape[:1]))
        boxes = path.answer(x, boxes, row["level"], size)
        likely = jax.nn.sigmoid(logits).max(-1)
        keep = jnp.ones(likely.shape, bool) if renewal is None else likely > renewal
        found = jax.vmap(lambda logits, boxes: best(logits, boxes, proposals))(logits, boxes)
        trace = Trace(x, shown, logits, boxes, keep.sum(-1), found)

        clean = jnp.clip(encode(boxes, size, path.scale), -path.scale, path.scale)
        held = (x - row["alpha"] * clean) / row["sigma"]
        drawn = noise.at(row["next"], shape, x.dtype)
        # Those that go on come first: new noise belongs to places, so a row's does not depend on who held it before.
        order = jnp.argsort(~keep, axis=-1, stable=True)[..., None]
        clean, held = (jnp.take_along_axis(a, order, 1) for a in (clean, held))
        moved = row["data"] * clean + row["noise"] * held + row["fresh"] * drawn
        goes_on = (jnp.arange(proposals) < trace.kept[:, None])[..., None]
        return jnp.where(goes_on, moved, row["restart"] * drawn), trace

    # What follows the last step is used by nobody; its noise is the first step's again.
    rows["next"] = (jnp.arange(steps) + 1) % steps
    return jax.lax.scan(step, path.start * noise.at(jnp.int32(0), shape, jnp.float32), rows)[1]
