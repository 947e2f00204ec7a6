"""How boxes become noise, and what a network that finds them again is shown.

Boxes are coded as numbers around 0: (centre, size) in units of the image, [0, 1] -> [-scale, scale].  Coded boxes x are
[b, n, 4], a noise level is a scalar or [b]; what the network sees and answers are corners in pixels.

    x = α(level) · boxes + σ(level) · noise

``CosineBoxes`` is DiffusionDet's process (arXiv:2211.09788), ``KarrasBoxes`` ConsistencyDet's (arXiv:2404.07773).
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from models.ops.boxes import clip, sides, to_cxcywh, to_xyxy
from sampling import grids
from sampling.paths import expand

Level = Any  # float, numpy or JAX array, scalar or [b]
PRECONDITIONED = 250.0  # of ln σ as a time: five decades as numbers like those of a thousand steps
TIMES = ("log", "level", "step")
SOLVERS = ("euler", "renoise")


class Plan(NamedTuple):
    """Host numbers of a trajectory, float64 [steps] each.

    Attributes:
      level: where the network is called.
      time: what it is told there.
      alpha, sigma: of x there.
      data, noise, fresh: the next x is data · (boxes found) + noise · (noise that x then holds) + fresh · (new noise).
      restart: deviation of a new x there that knows of no box.
    """

    level: np.ndarray
    time: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    data: np.ndarray
    noise: np.ndarray
    fresh: np.ndarray
    restart: np.ndarray


class BoxPath(Protocol):
    """A process between boxes and noise."""

    @property
    def scale(self) -> float:
        """Of the coding."""
        ...

    @property
    def start(self) -> float:
        """Deviation of x where trajectories begin."""
        ...

    def noisy(self, x: jax.Array, noise: jax.Array, level: Level) -> jax.Array:
        """Coded boxes at a noise level."""
        ...

    def place(self, x: jax.Array, level: Level, size: jax.Array) -> jax.Array:
        """Corners [b, n, 4] that the network is shown for x, in images of ``size`` [b, 2] (height, width)."""
        ...

    def told(self, level: Level) -> Level:
        """The time that the network is told."""
        ...

    def answer(self, x: jax.Array, boxes: jax.Array, level: Level, size: jax.Array) -> jax.Array:
        """What the network's corners [..., b, n, 4] for x mean as an answer; same shape."""
        ...

    def plan(self, steps: int) -> Plan:
        """A trajectory from noise to boxes with ``steps`` calls."""
        ...


def encode(boxes: jax.Array, size: jax.Array, scale: float) -> jax.Array:
    """Corners [..., b, n, 4] in images of ``size`` [b, 2] -> coded boxes."""
    return (2 * to_cxcywh(boxes / sides(size)[:, None]) - 1) * scale


def decode(x: jax.Array, size: jax.Array, scale: float, *, clamp: bool = True) -> jax.Array:
    """The inverse.

    ``clamp``: coordinates are cut to what a box can have.  This is the one place where noise becomes boxes, so none is
    ever inverted: the network only moves boxes and multiplies their sides by positive numbers.
    """
    x = jnp.clip(x, -scale, scale) if clamp else x
    return to_xyxy((x / scale + 1) / 2) * sides(size)[:, None]


def transition(alpha: Any, sigma: Any, alpha_next: Any, sigma_next: Any, eta: float) -> tuple[Any, Any, Any]:
    """DDIM's (data, noise, fresh) of a step (arXiv:2010.02502); η = 1 draws from the exact posterior.  Host numbers."""
    spread = eta * sigma_next * np.sqrt(np.maximum(1 - (alpha * sigma_next / (alpha_next * sigma)) ** 2, 0))
    return alpha_next, np.sqrt(np.maximum(sigma_next**2 - spread**2, 0)), spread


def cosine_alphas(steps: int = 1000, offset: float = 0.008) -> np.ndarray:
    """ᾱ of the discrete cosine schedule (arXiv:2102.09672), [steps] float64; β is at most 0.999."""
    angles = (np.arange(steps + 1) / steps + offset) / (1 + offset) * math.pi / 2
    whole = np.cos(angles) ** 2
    return np.cumprod(1 - np.clip(1 - whole[1:] / whole[:-1], 0, 0.999))


@dataclasses.dataclass(frozen=True)
class CosineBoxes:
    """Variance-preserving diffusion in discrete steps; a level is the number of a step, -1 is no noise.

    Attributes:
      timesteps: levels of the training.
      scale: of the coding; the larger, the more noise boxes survive.
      eta: of DDIM's steps.
    """

    timesteps: int = 1000
    scale: float = 2.0
    eta: float = 1.0
    start = 1.0

    @functools.cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray]:
        """α and σ of every level; the last entry, which -1 reaches, is the data's."""
        whole = np.append(cosine_alphas(self.timesteps), 1.0)
        return np.sqrt(whole), np.sqrt(1 - whole)

    def noisy(self, x: jax.Array, noise: jax.Array, level: Level) -> jax.Array:
        """See ``BoxPath``."""
        alpha, sigma = (jnp.asarray(a, x.dtype)[jnp.asarray(level, jnp.int32)] for a in self._table)
        return expand(alpha, x) * x + expand(sigma, x) * noise

    def place(self, x: jax.Array, level: Level, size: jax.Array) -> jax.Array:
        """See ``BoxPath``."""
        return decode(x, size, self.scale)

    def told(self, level: Level) -> Level:
        """The level itself."""
        return level

    def answer(self, x: jax.Array, boxes: jax.Array, level: Level, size: jax.Array) -> jax.Array:
        """The boxes themselves."""
        return boxes

    def plan(self, steps: int) -> Plan:
        """Levels as evenly spread as whole numbers can be."""
        level = np.linspace(-1, self.timesteps - 1, steps + 1).astype(int)[::-1]
        alpha, sigma = (a[level] for a in self._table)
        moves = transition(alpha[:-1], sigma[:-1], alpha[1:], sigma[1:], self.eta)
        now = level[:-1].astype(np.float64)
        return Plan(now, now, alpha[:-1], sigma[:-1], *moves, np.ones(steps))


@dataclasses.dataclass(frozen=True)
class KarrasBoxes:
    """Variance exploding, x = boxes + σ · noise; a level is σ.

    Attributes:
      sigma_min, sigma_max, rho: of the levels, equal steps in σ^(1/ρ).
      sigma_data, gain: x is shown multiplied by gain / √(σ² + σ_d²), which leaves clean boxes as they are if both are
        equal; the release's gain is one half.
      boundary: the answer is s · x + (1 − s) · (the network's boxes) with s = δ² / ((σ − σ_min)² + δ²) and this δ: at
        σ_min x itself, as a consistency model needs, and a box at every level, since both parts are.  0 = the
        network's boxes, as released.
      time: what the network is told: "log", a multiple of ln σ; "level", where σ lies among the ``trained`` levels,
        the noisiest being 0; or "step" as released: the same in training, but the number of the step in sampling.
      trained: levels of the training, for "level" and "step".
      solver: between steps "euler" follows the noise that x holds, "renoise" draws it anew (consistency sampling).
      ends: whether σ_min is among the levels of a trajectory, as in the release; else they stop one short of it.
      clamp: see ``decode``; False lets inverted boxes through, as released.
      clip: answers are cut at the image's borders, where they have no gradient then, as released.
    """

    sigma_min: float = 0.002
    sigma_max: float = 40.0
    rho: float = 7.0
    sigma_data: float = 0.5
    gain: float = 0.5
    boundary: float = 0.0
    time: str = "log"
    trained: int = 40
    solver: str = "euler"
    ends: bool = False
    clamp: bool = True
    clip: bool = False
    scale = 1.0

    def __post_init__(self) -> None:
        for name, known in (("time", TIMES), ("solver", SOLVERS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if not 0 < self.sigma_min < self.sigma_max or self.boundary < 0 or self.trained < 2:
            raise ValueError(f"need 0 < sigma_min < sigma_max, boundary ≥ 0 and trained ≥ 2, got {self}")

    @property
    def start(self) -> float:
        """See ``BoxPath``."""
        return self.sigma_max

    def noisy(self, x: jax.Array, noise: jax.Array, level: Level) -> jax.Array:
        """See ``BoxPath``."""
        return x + expand(level, x) * noise

    def place(self, x: jax.Array, level: Level, size: jax.Array) -> jax.Array:
        """See ``BoxPath``."""
        into = self.gain / (level**2 + self.sigma_data**2) ** 0.5
        return decode(expand(into, x) * x, size, self.scale, clamp=self.clamp)

    def told(self, level: Level) -> Level:
        """A function of σ, so that any number of steps can be sampled."""
        if self.time == "log":
            return PRECONDITIONED * (jnp if isinstance(level, jax.Array) else np).log(level)
        first, last = (sigma ** (1 / self.rho) for sigma in (self.sigma_max, self.sigma_min))
        return (self.trained - 1) * (first - level ** (1 / self.rho)) / (first - last)

    def answer(self, x: jax.Array, boxes: jax.Array, level: Level, size: jax.Array) -> jax.Array:
        """See ``BoxPath``."""
        if self.boundary:
            skip = self.skip(level)
            mixed = expand(skip, x) * x + expand(1 - skip, x) * encode(boxes, size, self.scale)
            boxes = decode(mixed, size, self.scale)
        return clip(boxes, size[:, None]) if self.clip else boxes

    def skip(self, level: Level) -> Level:
        """The part of x in the answer."""
        return self.boundary**2 / ((level - self.sigma_min) ** 2 + self.boundary**2)

    def plan(self, steps: int) -> Plan:
        """Levels equal in σ^(1/ρ)."""
        levels = grids.karras(steps + (not self.ends), self.sigma_min, self.sigma_max, self.rho)[:steps]
        after = np.append(levels[1:], 0.0)
        one, nothing = np.ones(steps), np.zeros(steps)
        moves = (one, after, nothing)
        if self.solver == "renoise":
            moves = (one, nothing, np.sqrt(np.maximum(after**2 - self.sigma_min**2, 0)))
        time = np.arange(steps) if self.time == "step" else self.told(levels)
        return Plan(levels, np.asarray(time, np.float64), one, levels, *moves, after)
