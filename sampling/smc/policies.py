"""What becomes of the weights at each step: kept, resampled by a scheme, or spent by births and deaths.

    Resample(uniforms=KeyedUniforms(key, swarm_ids), scheme="systematic", threshold=0.5, window=(0.1, 0.8))

All keep log Ẑ, so that E[Ẑ·average over particles] is the unnormalised target at any time, whatever was resampled when.
A swarm whose weights have all vanished, or met a NaN, stays dead: nothing is copied in it any more, and its rows of the
result are NaN.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sampling.smc.devices import Together
from sampling.smc.protocol import History, Rows, Stepped, Tree, Weights
from sampling.smc.schemes import pick, scheme
from sampling.smc.uniforms import Uniforms
from sampling.smc.weights import effective, log_mean, normalise


class Swarms(NamedTuple):
    """State between steps: log-weights since the last resampling [swarms, k] and log Ẑ before it [swarms]."""

    logw: jax.Array
    log_z: jax.Array


class Trace(NamedTuple):
    """What a step leaves behind; see ``Weights``."""

    ess: jax.Array
    resampled: jax.Array
    history: History | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accumulate:
    """Weights are kept and nothing is resampled; the base of the others.

    Attributes:
      start: log-weights of the start states [swarms, particles]: log p̃_T − log of what they were drawn from.
      record: also return what every particle did at every step, ``Weights.history``.
      group: where the particles are.
    """

    start: jax.Array | None = None
    record: bool = False
    group: Together = dataclasses.field(default_factory=Together)

    def plan(self, grid: np.ndarray, swarms: int, particles: int) -> Rows:
        if particles < 1 or swarms < 1:
            raise ValueError(f"a run needs at least one swarm of one particle, got {swarms} of {particles}")
        return {"step": np.arange(len(grid) - 1, dtype=np.int32)}

    def init(self, swarms: int, particles: int, dtype: Any) -> Swarms:
        dtype = jnp.promote_types(dtype, jnp.float32)  # thousands of weights do not add up in bfloat16
        logw = jnp.zeros((swarms, particles), dtype)
        if self.start is not None:
            logw = logw + self.group.share(jnp.asarray(self.start, dtype), particles)
        return Swarms(logw, jnp.zeros(swarms, dtype))

    def step(self, state: Swarms, dlogw: jax.Array, row: dict[str, jax.Array]) -> Stepped:
        state = state._replace(logw=state.logw + dlogw)
        ess = effective(self.group.gather(state.logw))
        return self._stepped(state, dlogw, ess, jnp.zeros(ess.shape, bool), None)

    def finish(self, state: Swarms, trace: Trace, x: Tree) -> tuple[Weights, Tree]:
        swarms, particles = state.logw.shape
        logw, log_z = self.group.combine(state.logw, state.log_z)
        alive = jnp.isfinite(log_z)
        for a in filter(_is_real, jax.tree.leaves(x)):
            alive &= self.group.everywhere(jnp.isfinite(a).reshape(swarms, -1).all(1))

        def bury(a: jax.Array) -> jax.Array:
            rows = jnp.repeat(alive, particles).reshape(-1, *(1,) * (a.ndim - 1))
            return jnp.where(rows, a, jnp.nan) if _is_real(a) else a

        ess = self.group.total(trace.ess)
        return Weights(logw, log_z, ess, trace.resampled, alive, trace.history), jax.tree.map(bury, x)

    def _stepped(
        self, state: Swarms, dlogw: jax.Array, ess: jax.Array, due: jax.Array, parents: jax.Array | None
    ) -> Stepped:
        """``parents`` [swarms, n] of all resampled together, numbered as in ``_everyone``; None: nobody moves."""
        mine = self.group.own(self._everyone(*state.logw.shape) if parents is None else parents)
        history = History(dlogw, state.logw, mine) if self.record else None

        def move(tree: Any) -> Any:
            if parents is None:
                return tree
            return jax.lax.cond(due.any(), lambda t: self.group.take(t, mine), lambda t: t, tree)

        return Stepped(state, move, Trace(ess, due, history))

    def _everyone(self, swarms: int, particles: int) -> jax.Array:
        """Everybody their own parent [swarms, n], n particles being resampled together."""
        n = particles * self.group.size
        return jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32), (swarms, n))


def _is_real(a: jax.Array) -> bool:
    return bool(jnp.issubdtype(a.dtype, jnp.inexact))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Windowed(Accumulate):
    """Acts after steps that end inside a window of times.

    Attributes:
      uniforms: where random numbers come from.
      window: (lowest, highest) time t_{k+1} after which to act, in the grid's own numbers; None = no bound.
      freeze: outside the window increments are dropped; otherwise they accumulate and wait.
    """

    uniforms: Uniforms
    window: tuple[float | None, float | None] = (None, None)
    freeze: bool = False

    def draws(self, particles: int) -> tuple[int, ...]:
        """Shape of a swarm's uniform numbers in one step."""
        raise NotImplementedError

    def plan(self, grid: np.ndarray, swarms: int, particles: int) -> Rows:
        rows = super().plan(grid, swarms, particles)
        low = -np.inf if self.window[0] is None else self.window[0]
        high = np.inf if self.window[1] is None else self.window[1]
        if not low <= high:
            raise ValueError(f"a window is (lowest, highest) time, got {self.window}")
        self.uniforms.check(len(grid) - 1, (swarms, *self.draws(particles * self.group.size)))
        return rows | {"open": (grid[1:] >= low) & (grid[1:] <= high)}

    def _pending(self, state: Swarms, dlogw: jax.Array, row: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """(increments that count, log-weights with them), [swarms, k] each."""
        if self.freeze:
            dlogw = jnp.where(row["open"], dlogw, 0.0)
        return dlogw, state.logw + dlogw

    def _draw(self, row: dict[str, jax.Array], everyone: jax.Array, dtype: Any) -> jax.Array:
        swarms, n = everyone.shape
        return self.group.uniforms(self.uniforms).at(row["step"], (swarms, *self.draws(n)), dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resample(Windowed):
    """Resampling by one of ``sampling.smc.schemes``.

    Attributes:
      scheme: its name.
      threshold: resample when fewer than threshold·particles are effective; what has not been resampled keeps its
        accumulated weights.  None: after every step in the window.
    """

    scheme: str = "systematic"
    threshold: float | None = 0.5

    def __post_init__(self) -> None:
        scheme(self.scheme)
        if self.threshold is not None and not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"the threshold is a share of the particles in [0, 1] or None, got {self.threshold}")

    def draws(self, particles: int) -> tuple[int, ...]:
        return () if scheme(self.scheme).one_uniform else (particles,)

    def step(self, state: Swarms, dlogw: jax.Array, row: dict[str, jax.Array]) -> Stepped:
        dlogw, logw = self._pending(state, dlogw, row)
        together = self.group.gather(logw)
        everyone = self._everyone(*logw.shape)
        mean, ess = log_mean(together), effective(together)
        due = row["open"] & jnp.isfinite(mean)
        if self.threshold is not None:
            due &= ess < self.threshold * everyone.shape[1]

        def draw() -> jax.Array:
            drawn = jax.vmap(scheme(self.scheme).parents)(normalise(together), self._draw(row, everyone, logw.dtype))
            return jnp.where(due[:, None], drawn, everyone)

        parents = jax.lax.cond(due.any(), draw, lambda: everyone)
        state = Swarms(jnp.where(due[:, None], 0.0, logw), state.log_z + jnp.where(due, mean, 0.0))
        return self._stepped(state, dlogw, ess, due, parents)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BirthDeath(Windowed):
    """Jumps instead of weights: particle i dies at rate (ḡ − g_i)⁺ and is replaced by j ∝ (g_j − ḡ)⁺.

    g is the increment of a step and ḡ its mean over the swarm, which is what log Ẑ grows by.  The process of
    https://arxiv.org/abs/2503.02819 gives every particle an Exp(1) clock that runs at its death rate; since such
    a clock has no memory, dying within a step with probability 1 − exp(−(ḡ − g_i)⁺) is the same law without its state.
    Exact as steps shrink, not before: increments should stay well below 1.  Where one is −∞ there is no mean, and the
    swarm keeps its weights from then on.
    """

    def draws(self, particles: int) -> tuple[int, ...]:
        return (particles, 2)

    def step(self, state: Swarms, dlogw: jax.Array, row: dict[str, jax.Array]) -> Stepped:
        dlogw, logw = self._pending(state, dlogw, row)
        together = self.group.gather(logw)
        everyone = self._everyone(*logw.shape)
        mean = together.mean(-1)
        active = row["open"] & jnp.isfinite(mean)
        excess = jnp.where(active[:, None], together - mean[:, None], 0.0)
        u = self._draw(row, everyone, logw.dtype)
        dies = u[..., 0] < -jnp.expm1(jnp.minimum(excess, 0.0))
        births = jnp.maximum(excess, 0.0)
        births /= jnp.maximum(births.sum(-1, keepdims=True), jnp.finfo(births.dtype).tiny)
        parents = jnp.where(dies, jax.vmap(pick)(births, u[..., 1]), everyone)
        state = Swarms(jnp.where(active[:, None], 0.0, logw), state.log_z + jnp.where(active, mean, 0.0))
        return self._stepped(state, dlogw, effective(together), dies.any(-1), parents)
