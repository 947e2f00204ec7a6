"""Detectors that find boxes in one step (ConsistencyDet, arXiv:2404.07773), as released and as the theory has it.

Both look at two neighbouring noise levels σ of the same boxes with the same noise.  ``TwoLevels`` is the released
recipe: the set loss at both, and nothing that ties them together.  ``BoxConsistency`` is consistency training
(arXiv:2303.01469): the answer at the noisier level is drawn to the answer at the other, which is a constant, and at the
least noise the answer is the input itself (``KarrasBoxes.boundary``).
"""

import dataclasses

import jax

from sampling.box_paths import KarrasBoxes, encode
from train.objectives import consistency_schedules as schedules
from train.objectives.box_denoising import Draws, Heads, Truth, draws, see
from train.objectives.consistency_schedules import Levels
from train.objectives.generation import row_uniforms
from train.objectives.set_prediction import SetPrediction
from train.task import Term

WEIGHTS = ("one", "inverse")
NEAR = "near_"  # in front of the names of the less noisy level's terms


@dataclasses.dataclass(frozen=True)
class TwoLevels:
    """The released recipe; ``path.trained`` levels, any two neighbours equally likely."""

    path: KarrasBoxes
    criterion: SetPrediction
    passes = 6

    def draw(self, key: jax.Array, index: jax.Array, boxes: int, columns: int, step: jax.Array) -> Draws:
        """See ``BoxObjective``."""
        levels = Levels("fixed", fewest=2, most=self.path.trained, proposals="uniform")
        return _draw(self.path, levels, key, index, boxes, columns, step)

    def loss(self, heads: Heads, truth: Truth, draws: Draws, step: jax.Array) -> dict[str, Term]:
        """Two set losses, each with its own matches."""
        del step
        logits, boxes = see(heads.student, self.path, truth.targets, draws, draws.level, draws.near)
        half = len(truth.rows)
        far = self.criterion(logits[:, :half], boxes[:, :half], *truth)
        near = self.criterion(logits[:, half:], boxes[:, half:], *truth)
        return far | {NEAR + name: term for name, term in near.items()}


@dataclasses.dataclass(frozen=True)
class BoxConsistency:
    """Consistency training with the set loss at the noisier level.

    Attributes:
      path: with a boundary.
      criterion: the set loss, which alone knows classes.
      steps, levels, fewest, most, proposals, time_mean, time_std: see ``consistency_schedules.Levels``.
      coefficient: of the term "consistency".
      weight: of a pair of levels, "one" or "inverse" = 1 / (difference of σ), iCT's.
    """

    path: KarrasBoxes
    criterion: SetPrediction
    steps: int
    levels: str = "ict"
    fewest: int = 10
    most: int = 160
    proposals: str = "uniform"
    time_mean: float = -1.1
    time_std: float = 2.0
    coefficient: float = 1.0
    weight: str = "one"
    passes = 4

    def __post_init__(self) -> None:
        if self.weight not in WEIGHTS:
            raise ValueError(f"weight must be one of {', '.join(WEIGHTS)}, got {self.weight!r}")
        if not self.path.boundary:
            raise ValueError(
                "a consistency model needs path.boundary > 0: without it the answer at the least noise is free, and "
                "answers that are all alike would be consistent"
            )
        _ = self.schedule  # its own errors, early

    @property
    def schedule(self) -> Levels:
        """Which levels a step compares."""
        return Levels(self.levels, self.steps, self.fewest, self.most, self.proposals, self.time_mean, self.time_std)

    def draw(self, key: jax.Array, index: jax.Array, boxes: int, columns: int, step: jax.Array) -> Draws:
        """See ``BoxObjective``."""
        return _draw(self.path, self.schedule, key, index, boxes, columns, step)

    def loss(self, heads: Heads, truth: Truth, draws: Draws, step: jax.Array) -> dict[str, Term]:
        """The set loss, and ``consistency``: how far a box is from where the target puts it, in units of the image."""
        del step
        targets, path = truth.targets, self.path
        logits, boxes = see(heads.student, path, targets, draws, draws.level)
        _, ends = see(heads.target, path, targets, draws, draws.near)
        ends = jax.lax.stop_gradient(ends)
        error = encode(boxes[-1], targets.size, path.scale) - encode(ends[-1], targets.size, path.scale)
        distance = schedules.pseudo_huber(error.reshape(-1, 4), schedules.pseudo_huber_constant(4))
        distance = distance.reshape(error.shape[:2]).mean(1)
        if self.weight == "inverse":
            distance = distance / (draws.level - draws.near)
        consistency = Term((distance * truth.rows).sum(), truth.rows.sum(), self.coefficient)
        return self.criterion(logits, boxes, *truth) | {"consistency": consistency}


def _draw(
    path: KarrasBoxes, levels: Levels, key: jax.Array, index: jax.Array, boxes: int, columns: int, step: jax.Array
) -> Draws:
    level_key, key = jax.random.split(key)
    [u] = row_uniforms(level_key, index, 1)
    near, far = levels.pair(u, step, path.sigma_min, path.sigma_max, path.rho)
    return draws(key, index, boxes, columns, far, near)
