"""Training of networks that find boxes in noise (DiffusionDet, arXiv:2211.09788).

True boxes, filled up with random ones, are moved by noise; at whatever noise level, the network is to find the true
ones (never the noise), judged as a set.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from models.ops.boxes import sides, to_cxcywh
from sampling.box_paths import BoxPath, CosineBoxes
from train import rng
from train.objectives.generation import row_noise, row_uniforms
from train.objectives.matching import Targets
from train.objectives.set_prediction import SetPrediction
from train.task import Term

FILLER = (0.5, 1 / 6)  # mean and deviation of random boxes' centre and size, in units of the image
SMALLEST = 1e-4  # width and height of one of them

Head = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""(corners [c·b, n, 4] in pixels, time [c·b]) -> logits [S, c·b, n, K], corners [S, c·b, n, 4]; the batch's images are
gone through c times, so that several noise levels cost one look at them."""


class Heads(NamedTuple):
    """The network, its images bound: as it is trained, and under averaged parameters (or its own) as a constant."""

    student: Head
    target: Head


class Truth(NamedTuple):
    """What a batch holds.

    Attributes:
      targets: boxes and classes.
      rows: [b] 0 for rows that do not count.
      judged: [b, K] classes that count; None = all.
    """

    targets: Targets
    rows: jax.Array
    judged: jax.Array | None = None


class Draws(NamedTuple):
    """Every random number of one batch; tests put their own here.

    Attributes:
      noise: [b, n, 4] standard normal.
      filler: [b, n, 4] standard normal, random boxes where targets are too few.
      choice: [b, m] uniform, which targets are moved where they are too many.
      level: [b], of noise.
      near: [b], the next level with less noise, in objectives about two; else ``level``.
    """

    noise: jax.Array
    filler: jax.Array
    choice: jax.Array
    level: jax.Array
    near: jax.Array


class BoxObjective(Protocol):
    """One way to train a detector."""

    @property
    def passes(self) -> int:
        """Calls of the head, in forward passes; 3 = one forward and one backward."""
        ...

    def draw(self, key: jax.Array, index: jax.Array, boxes: int, columns: int, step: jax.Array) -> Draws:
        """Random numbers of the rows with global numbers ``index`` [b], for n boxes and m columns of targets."""
        ...

    def loss(self, heads: Heads, truth: Truth, draws: Draws, step: jax.Array) -> dict[str, Term]:
        """Named terms."""
        ...


@dataclasses.dataclass(frozen=True)
class BoxDenoising:
    """DiffusionDet's objective: one level per image, uniformly any."""

    path: CosineBoxes
    criterion: SetPrediction
    passes = 3

    def draw(self, key: jax.Array, index: jax.Array, boxes: int, columns: int, step: jax.Array) -> Draws:
        """See ``BoxObjective``."""
        del step  # always alike
        level_key, key = jax.random.split(key)
        [u] = row_uniforms(level_key, index, 1)
        level = jnp.floor(u * self.path.timesteps)
        return draws(key, index, boxes, columns, level, level)

    def loss(self, heads: Heads, truth: Truth, draws: Draws, step: jax.Array) -> dict[str, Term]:
        """See ``BoxObjective``."""
        del step
        logits, boxes = see(heads.student, self.path, truth.targets, draws, draws.level)
        return self.criterion(logits, boxes, *truth)


def draws(key: jax.Array, index: jax.Array, boxes: int, columns: int, level: jax.Array, near: jax.Array) -> Draws:
    """Random numbers around given levels."""
    keys = jax.random.split(key, 3)
    noise, filler = (row_noise(k, index, (boxes, 4)) for k in keys[:2])
    choice = jax.vmap(lambda k: jax.random.uniform(k, (columns,)))(rng.per_example(keys[2], index))
    return Draws(noise, filler, choice, level, near)


def see(head: Head, path: BoxPath, targets: Targets, draws: Draws, *levels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The head's answers at one or several noise levels [b] of the same boxes with the same noise, level-major.

    Returns:
      logits [S, c·b, n, K], and corners [S, c·b, n, 4] as ``path.answer`` has them.
    """
    clean = start_boxes(targets, draws, path.scale)
    level = jnp.concatenate(levels)
    size, clean, noise = (jnp.concatenate([a] * len(levels)) for a in (targets.size, clean, draws.noise))
    x = path.noisy(clean, noise, level)
    logits, boxes = head(path.place(x, level, size), path.told(level))
    return logits, path.answer(x, boxes, level, size)


def start_boxes(targets: Targets, draws: Draws, scale: float) -> jax.Array:
    """Coded boxes [b, n, 4] before the noise: the true ones first, then random ones.

    Of more than n true ones a random part; an image without any has one box around all of it.
    """
    count, columns = draws.noise.shape[1], targets.valid.shape[1]
    there = targets.valid.sum(1, keepdims=True)
    rank = jnp.where(there > count, draws.choice, jnp.arange(columns) / columns)
    order = jnp.argsort(jnp.where(targets.valid, rank, jnp.inf), axis=1)[:, :count, None]
    own = to_cxcywh(targets.boxes / sides(targets.size)[:, None])
    own = jnp.take_along_axis(own, order, 1)
    own = jnp.pad(own, ((0, 0), (0, count - own.shape[1]), (0, 0)))

    mean, deviation = FILLER
    centre, size = jnp.split(mean + deviation * draws.filler, 2, -1)
    filler = jnp.concatenate([centre, jnp.maximum(size, SMALLEST)], -1)
    place = jnp.arange(count)[:, None]
    filler = jnp.where((place == 0) & (there == 0)[..., None], jnp.array([0.5, 0.5, 1.0, 1.0]), filler)
    return (2 * jnp.where(place < there[..., None], own, filler) - 1) * scale
