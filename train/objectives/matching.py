"""Which predicted box answers for which target: SimOTA (arXiv:2107.08430) or the Hungarian method.

Both are functions of one image with static shapes, b images by ``jax.vmap``: targets are padded, and padding matches
nothing.  Nothing here carries a gradient.

SimOTA differs from the released code where that fails: with targets that nearly coincide it can drop one of them
without notice, and with as many targets as boxes it can go on for ever.  Here every target has a box of its own
whenever there are as many boxes as targets.
"""

import dataclasses
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from optax import assignment

from models.ops.boxes import giou, iou, pairwise, sides, to_cxcywh

NONE = -1  # a box that answers for no target
OUTSIDE, NOWHERE = 100.0, 10_000.0  # costs of a box that is not around a target's middle, not around any target's
USED = 100_000.0  # cost of taking a box away from another target
FLOOR = 1e-8  # inside the logarithms of the matching's focal cost


class Targets(NamedTuple):
    """What is to be found in b images (or in one, without the first axis); rows that are not ``valid`` are padding.

    Attributes:
      boxes: [b, m, 4] corners in pixels.
      labels: [b, m] int32 classes.
      valid: [b, m] bool.
      size: [b, 2] (height, width) of the images without their padding.
    """

    boxes: jax.Array
    labels: jax.Array
    valid: jax.Array
    size: jax.Array


@dataclasses.dataclass(frozen=True)
class Costs:
    """Weights of a pair's cost, and the focal loss that its class counts by."""

    classes: float = 2.0
    l1: float = 5.0
    giou: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0

    def __call__(self, logits: jax.Array, boxes: jax.Array, targets: Targets) -> jax.Array:
        """[n, m] of boxes [n, 4] with logits [n, K]; a target's class costs what it adds to the focal loss."""
        p = jax.nn.sigmoid(logits)
        positive = -self.alpha * (1 - p) ** self.gamma * jnp.log(p + FLOOR)
        negative = -(1 - self.alpha) * p**self.gamma * jnp.log(1 - p + FLOOR)
        whwh = sides(targets.size)
        distance = jnp.abs((boxes / whwh)[:, None] - (targets.boxes / whwh)[None]).sum(-1)
        overlap = pairwise(giou, boxes, targets.boxes)
        return self.l1 * distance + self.classes * (positive - negative)[:, targets.labels] - self.giou * overlap


class Matcher(Protocol):
    """Assigns the boxes of one image."""

    def __call__(self, logits: jax.Array, boxes: jax.Array, targets: Targets) -> jax.Array:
        """Of boxes [n, 4] with logits [n, K]: each one's target [n] int32, or ``NONE``."""
        ...


@dataclasses.dataclass(frozen=True)
class SimOTA:
    """Each target takes its cheapest boxes, as many as its best overlaps sum up to; a box serves one target.

    Attributes:
      costs: of a pair.
      most: overlaps that are summed, so also the most boxes of a target.
      radius: boxes should have their centre this many widths and heights around a target's.
    """

    costs: Costs = Costs()
    most: int = 5
    radius: float = 2.5

    def __call__(self, logits: jax.Array, boxes: jax.Array, targets: Targets) -> jax.Array:
        """See ``Matcher``."""
        cost = self.cost(logits, boxes, targets)
        return repair(self.claim(cost, self.shares(boxes, targets)), cost, targets.valid)

    def claim(self, cost: jax.Array, shares: jax.Array) -> jax.Array:
        """[n]: each target claims its cheapest boxes; a box that several claim goes to its own cheapest target."""
        count = min(self.most, len(cost))
        order = jax.lax.top_k(-cost.T, count)[1]  # [m, count]
        claims = jnp.zeros(cost.shape, bool)
        claims = claims.at[order, jnp.arange(cost.shape[1])[:, None]].set(jnp.arange(count) < shares[:, None])
        assigned = jnp.where(claims.sum(1) > 1, cost.argmin(1), claims.argmax(1))
        return jnp.where(claims.any(1), assigned, NONE).astype(jnp.int32)

    def cost(self, logits: jax.Array, boxes: jax.Array, targets: Targets) -> jax.Array:
        """[n, m]; infinite for padding."""
        centre = ((boxes[:, :2] + boxes[:, 2:]) / 2)[:, None]
        wide = to_cxcywh(targets.boxes)
        low, high = wide[:, :2] - self.radius * wide[:, 2:], wide[:, :2] + self.radius * wide[:, 2:]
        around = ((centre > low) & (centre < high)).all(-1)
        within = ((centre > targets.boxes[:, :2]) & (centre < targets.boxes[:, 2:])).all(-1)
        cost = self.costs(logits, boxes, targets) + OUTSIDE * ~(within & around)
        somewhere = ((within | around) & targets.valid).any(1)
        return jnp.where(targets.valid, cost + NOWHERE * ~somewhere[:, None], jnp.inf)

    def shares(self, boxes: jax.Array, targets: Targets) -> jax.Array:
        """[m] how many boxes each target takes: none for padding, at least one for all others."""
        best = jax.lax.top_k(pairwise(iou, targets.boxes, boxes), min(self.most, len(boxes)))[0]
        return jnp.where(targets.valid, jnp.maximum(best.sum(-1).astype(jnp.int32), 1), 0)


@dataclasses.dataclass(frozen=True)
class Hungarian:
    """One box for each target, at the least total cost (DETR, arXiv:2005.12872); of too many targets some get none."""

    costs: Costs = Costs()

    def __call__(self, logits: jax.Array, boxes: jax.Array, targets: Targets) -> jax.Array:
        """See ``Matcher``."""
        cost = self.costs(logits, boxes, targets)
        # Padding costs more than any target: where boxes are short, leaving out padding is always cheaper.
        cost = jnp.where(targets.valid, cost, jnp.where(targets.valid, cost, 0).max(initial=0) + 1)
        chosen, target = assignment.hungarian_algorithm(jax.lax.stop_gradient(cost))
        answer = jnp.where(targets.valid[target], target, NONE)
        return jnp.full(len(boxes), NONE, jnp.int32).at[chosen].set(answer.astype(jnp.int32))


def repair(assigned: jax.Array, cost: jax.Array, valid: jax.Array) -> jax.Array:
    """Gives a box to every target that lost its own to others.

    The cheapest pair of a left-out target and a box goes first: a free box, or if there is none one of a target that
    has several.  Each round serves one target and leaves none out, so there are at most m rounds.

    Args:
      assigned: [n] target of each box, or ``NONE``.
      cost: [n, m].
      valid: [m].
    """
    numbers = jnp.arange(len(valid))

    def options(assigned: jax.Array) -> jax.Array:
        """[n, m] costs of giving a box to a left-out target."""
        held = assigned[:, None] == numbers
        count = held.sum(0)
        free, spare = assigned == NONE, (held & (count > 1)).any(1)
        allowed = (free | spare)[:, None] & (valid & (count == 0))
        return jnp.where(allowed, cost + USED * ~free[:, None], jnp.inf)

    def serve(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        assigned, open = state
        box, target = jnp.unravel_index(open.argmin(), open.shape)
        assigned = assigned.at[box].set(target.astype(assigned.dtype))
        return assigned, options(assigned)

    state = assigned, options(assigned)
    return jax.lax.while_loop(lambda state: jnp.isfinite(state[1]).any(), serve, state)[0]


def match(matcher: Matcher, logits: jax.Array, boxes: jax.Array, targets: Targets) -> jax.Array:
    """Assignments [S, b, n] of all stages, logits [S, b, n, K] and boxes [S, b, n, 4], in one call."""
    logits, boxes = jax.lax.stop_gradient((logits, boxes))
    return jax.vmap(jax.vmap(matcher), (0, 0, None))(logits, boxes, targets)
