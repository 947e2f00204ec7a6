"""What the sampler and the particle filter ask of sequential Monte Carlo, and what they give back.

Rows of a batch are swarm-major, b = swarms·particles: a swarm is the particles of ONE requested output, and nothing is
ever exchanged between swarms.  One step, in this order:

    dlogw   = corrector.increment(scores at the left point, x, row)        [b]
    x       = solver step                                                  the particles move
    stepped = resampling.step(state, dlogw.reshape(swarms, particles), row)
    x, memory, ... = stepped.move((x, memory, ...))                        moved particles are copied or dropped
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import numpy as np

from sampling.guidance import Guided
from sampling.paths import Path

Tree = TypeVar("Tree")
Rows = dict[str, np.ndarray]  # per-step host constants, each [n, ...]; whole numbers and booleans are never cast


class Weights(NamedTuple):
    """What a run knows about its particles.

    Attributes:
      logw: [swarms, particles], unnormalised, since the last resampling.
      log_z: [swarms], log Ẑ of the whole run, the remaining ``logw`` included: an average of weights may be taken with
        softmax(logw), its absolute scale is exp(log_z).  −inf or NaN for a swarm that died.
      ess: [n, swarms], effective particles 1/Σw² before each step's resampling.
      resampled: [n, swarms].
      alive: [swarms]; False where all weights vanished or a score was not a number.  The rows of x of such a swarm are
        NaN: ``sampling.smc.report.check`` says it in words.
      history: what every particle did at every step, if it was asked for.
    """

    logw: jax.Array
    log_z: jax.Array
    ess: jax.Array
    resampled: jax.Array
    alive: jax.Array
    history: "History | None" = None


class History(NamedTuple):
    """Per step: increments, weights after any reset, and each particle's parent; [n, swarms, particles] each."""

    increments: jax.Array
    logw: jax.Array
    parents: jax.Array


class Stepped(NamedTuple):
    """Result of a resampling step: the next state, how particles follow it, and what to stack over the steps."""

    state: Any
    move: Callable[[Any], Any]
    """Any pytree whose arrays have leading dimension swarms·particles -> the same, copied from the parents."""
    trace: Any


class Corrector(Protocol):
    """Log-weights that turn what the solver samples into what was asked for."""

    def plan(self, path: Path, grid: np.ndarray, shape: tuple[int, ...]) -> Rows:
        """Rows for n steps of states ``shape`` [b, ...].  Raises ValueError where the grid leaves its domain."""
        ...

    def increment(self, guided: Guided, x: jax.Array, row: dict[str, jax.Array]) -> jax.Array:
        """Δ log w [b], float32 at least, of the step that starts at ``x``; ``guided`` holds scores at that point."""
        ...


class Resampling(Protocol):
    """What becomes of the weights."""

    def plan(self, grid: np.ndarray, swarms: int, particles: int) -> Rows:
        """Rows for the n steps of ``grid`` [n + 1], whatever its times mean.  Raises ValueError for what cannot run."""
        ...

    def init(self, swarms: int, particles: int, dtype: Any) -> Any:
        """The state before the first step, a pytree for a scan's carry; ``dtype`` is that of x."""
        ...

    def step(self, state: Any, dlogw: jax.Array, row: dict[str, jax.Array]) -> Stepped:
        """Adds the increments [swarms, particles] of particles that have just moved, and resamples if it is time."""
        ...

    def finish(self, state: Any, trace: Any, x: Tree) -> tuple[Weights, Tree]:
        """(the weights from the last state and the stacked traces, ``x`` with NaN in the rows of dead swarms)."""
        ...
