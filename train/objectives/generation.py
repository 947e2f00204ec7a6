"""What the objectives of generative models share: how they see networks, draw noise levels and feed a network.

An objective is a frozen dataclass around a path.  It gets networks as callables with labels and parameters bound, and
returns losses per row, so it knows no task, no label, no padding and no normalisation.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from sampling.paths import VE, Path, Time, expand
from sampling.prediction import Prediction
from sampling.solvers import Solver
from train import rng
from train.objectives.flow_matching import even_times

Network = Callable[..., jax.Array]
"""(x [b, ...] of about unit size, time [b], span [b] or None) -> [b, ...]; ``span`` for networks with a second time."""


class Networks(NamedTuple):
    """The network as an objective may look at it.

    Attributes:
      student: under the parameters that are trained.
      target: under an average of them, or themselves, as constants.
      teacher: a frozen one, where the run has it.
      log_variance: time [b] -> [b], where the network has it (see ``models.image_dit``).
    """

    student: Network
    target: Network
    teacher: Network | None = None
    log_variance: Callable[[jax.Array], jax.Array] | None = None


class Draws(NamedTuple):
    """Every random number of one batch; tests put their own here.

    Attributes:
      noise: [b, ...] standard normal.
      time: [b].
      end: [b], where the step that begins at ``time`` ends; ``time`` itself in objectives about one time.
    """

    noise: jax.Array
    time: jax.Array
    end: jax.Array


class Objective(Protocol):
    """One way to train a generative network, and what its answers mean to a sampler."""

    path: Path
    spans: bool
    """Whether the network takes a second time."""
    needs_teacher: bool
    """Whether training asks for a teacher; without one ``loss`` says what it would be in training from data."""
    passes: int
    """Work of a training step in forward passes of the network; 3 = one forward and one backward."""

    def draw(self, key: jax.Array, index: jax.Array, shape: tuple[int, ...], step: jax.Array) -> Draws:
        """Random numbers of the rows with global numbers ``index`` [b] of arrays [b, *shape]."""
        ...

    def loss(self, networks: Networks, data: jax.Array, draws: Draws, step: jax.Array) -> dict[str, jax.Array]:
        """Named losses per row [b], to be added; ``data`` [b, ...] has the path's ``sigma_data``, or unit size."""
        ...

    def denoise(self, network: Network, x: jax.Array, t: jax.Array) -> Prediction:
        """The network's answer at times ``t`` [b] as a sampler takes it."""
        ...

    def sampler(self, steps: int) -> tuple[Solver, np.ndarray]:
        """A solver for these answers that takes ``steps`` network calls, and its grid [steps + 1]."""
        ...


def shown(path: Path, x: jax.Array, t: Time) -> tuple[jax.Array, Time]:
    """What the network is shown: x at unit size (where the path knows the data's), and the time as it is told."""
    told = jnp.log(t) / 4.0 if isinstance(path, VE) else t  # five decades as numbers of about unit size
    if (size := getattr(path, "sigma_data", None)) is None:
        return x, told
    return x * expand(jax.lax.rsqrt(jnp.square(path.alpha(t) * size) + jnp.square(path.sigma(t))), x), told


def row_noise(key: jax.Array, index: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal [b, *shape]; a row draws the same in any microbatch and on any device."""
    return jax.vmap(lambda k: jax.random.normal(k, shape))(rng.per_example(key, index))


def row_uniforms(key: jax.Array, index: jax.Array, count: int) -> list[jax.Array]:
    """``count`` arrays [b] of numbers in (0, 1), each spread evenly over the batch (see ``even_times``)."""
    keys = jax.random.split(key, count)
    first = even_times(keys[0], index)
    rest = [jax.vmap(jax.random.uniform)(rng.per_example(k, index)) for k in keys[1:]]  # else they would go together
    return [first, *rest]


def log_normal_time(path: Path, u: jax.Array, mean: float, std: float) -> jax.Array:
    """Times [b] where ln(σ/α) is N(mean, std²), from uniform numbers: EDM's proposals, on a flow the logit-normal."""
    return path.time_at(jnp.exp(mean + std * jax.scipy.special.ndtri(u)))


def even_angles(path: Path, steps: int) -> np.ndarray:
    """A grid [steps + 1] with equal steps of arctan(σ / (α σ_d)), from the path's noise to its data."""
    size = getattr(path, "sigma_data", 1.0)
    start = path.noise_time
    first = math.atan2(float(path.sigma(start)), float(path.alpha(start)) * size)
    inner = path.time_at(size * np.tan(first * (1.0 - np.arange(1, steps) / steps)))
    return np.array([start, *inner, path.data_time])


def squared(error: jax.Array) -> jax.Array:
    """Mean square of each row [b]."""
    return jnp.square(error).mean(tuple(range(1, error.ndim)))
