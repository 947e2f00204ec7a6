"""The loss of a set of predicted boxes: classes by focal loss, positions by L1 and generalised IoU (DETR,
arXiv:2005.12872), at every stage of the head.

Terms are normalised over the global batch (``train.task.Term``) by one of three counts:

    matched   the boxes that answer for a target, at least one per image, so that images without any weigh like those
              with one; known only after the network ran, so microbatches run it once more
    targets   the targets, at least one per image; sums then grow with the boxes that share a target
    release   as the released code does: the matched boxes of this (micro)batch, one if there are none at all, which
              makes batches without targets weigh tens of times as much
"""

import dataclasses

import jax
import jax.numpy as jnp

from models.ops.boxes import giou, sides
from train.objectives.matching import Matcher, SimOTA, Targets, match
from train.task import Term

COUNTS = ("matched", "targets", "release")
SIMOTA = SimOTA()


@dataclasses.dataclass(frozen=True)
class SetPrediction:
    """The loss's settings; as they stand, DiffusionDet's.

    Attributes:
      matcher: which box answers for which target.
      classes, l1, giou: coefficients.
      alpha, gamma: of the focal loss (arXiv:1708.02002).
      count: what terms are divided by, see above.
    """

    matcher: Matcher = SIMOTA
    classes: float = 2.0
    l1: float = 5.0
    giou: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0
    count: str = "matched"

    def __post_init__(self) -> None:
        if self.count not in COUNTS:
            raise ValueError(f"count must be one of {', '.join(COUNTS)}, got {self.count!r}")

    def __call__(
        self,
        logits: jax.Array,
        boxes: jax.Array,
        targets: Targets,
        rows: jax.Array,
        judged: jax.Array | None = None,
    ) -> dict[str, Term]:
        """Terms "class", "l1" and "giou" of the last of S stages, "class_0", … of those before it.

        Args:
          logits: [S, b, n, K].
          boxes: [S, b, n, 4] corners in pixels.
          targets: of the batch.
          rows: [b] 0 for rows that do not count.
          judged: [b, K] classes that count in each image (see ``federated``); None = all.
        """
        assigned = match(self.matcher, logits, boxes, targets)
        found = (assigned >= 0) & (rows > 0)[:, None]  # [S, b, n]
        nearest = jnp.maximum(assigned, 0)

        def of_target(a: jax.Array) -> jax.Array:
            """What [b, m, ...] says of each box's target."""
            return jax.vmap(jax.vmap(lambda a, i: a[i]), (None, 0))(a, nearest)

        wanted = jax.nn.one_hot(jnp.where(found, of_target(targets.labels), -1), logits.shape[-1])
        weight = (
            jnp.broadcast_to(rows[:, None], rows.shape + logits.shape[-1:])
            if judged is None
            else (judged * rows[:, None])
        )
        focal = focal_loss(logits, wanted, self.alpha, self.gamma) * weight[:, None]
        true, whwh = of_target(targets.boxes), sides(targets.size)[:, None]
        sums = {
            "class": focal.sum((1, 2, 3)),
            "l1": jnp.where(found[..., None], jnp.abs((boxes - true) / whwh), 0).sum((1, 2, 3)),
            "giou": jnp.where(found, 1 - giou(boxes, true), 0).sum((1, 2)),
        }
        weights = self._weights(found, targets, rows)
        coefficients = {"class": self.classes, "l1": self.l1, "giou": self.giou}
        last = len(logits) - 1
        return {
            name if stage == last else f"{name}_{stage}": Term(values[stage], weights[stage], coefficients[name])
            for name, values in sums.items()
            for stage in range(len(logits))
        }

    def _weights(self, found: jax.Array, targets: Targets, rows: jax.Array) -> jax.Array:
        """[S] what the terms of each stage are divided by, before sums over devices and microbatches."""
        matched = found.sum(2)
        if self.count == "release":
            return jnp.maximum(matched.sum(1), 1).astype(jnp.float32)
        if self.count == "targets":
            matched = jnp.broadcast_to(targets.valid.sum(1), matched.shape)
        return (jnp.maximum(matched, 1) * rows).sum(1)


def focal_loss(logits: jax.Array, wanted: jax.Array, alpha: float = 0.25, gamma: float = 2.0) -> jax.Array:
    """Cross-entropy of one sigmoid per class, less the surer the classifier is right; same shape as its arguments."""
    p = jax.nn.sigmoid(logits)
    wrong = p + wanted - 2 * p * wanted  # 1 - p of what is wanted, p of what is not
    entropy = jax.nn.softplus(logits) - logits * wanted
    balance = alpha * wanted + (1 - alpha) * (1 - wanted)
    return balance * entropy * wrong**gamma


def federated(key: jax.Array, targets: Targets, frequency: jax.Array, count: int, power: float = 0.5) -> jax.Array:
    """[K] bool: the classes by which one image is judged (federated loss, arXiv:2104.14558).

    Its own classes, and others drawn without replacement ∝ frequency^power until there are ``count``.  The release
    draws them for a device's whole batch; by image, the result does not depend on how a batch is cut.

    Args:
      targets: of one image.
      frequency: [K] how many images have each class.
    """
    own = jnp.zeros(len(frequency), bool).at[targets.labels].max(targets.valid)
    scores = power * jnp.log(frequency) + jax.random.gumbel(key, frequency.shape)  # the largest of these are such draws
    rank = jnp.argsort(jnp.argsort(-jnp.where(own, jnp.inf, scores)))
    return own | ((rank < count) & (frequency > 0))
