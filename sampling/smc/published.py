"""A published heuristic, kept to reproduce its images: not a Feynman-Kac corrector, and biased by design."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from sampling.smc.policies import Swarms, Windowed
from sampling.smc.protocol import Rows, Stepped
from sampling.smc.weights import effective, normalise


@dataclasses.dataclass(frozen=True, kw_only=True)
class CentredClipped(Windowed):
    """The resampling of the EDM2 experiments of https://arxiv.org/abs/2503.02819, as their code does it.

    After every step but the last, increments are centred by their mean and clipped, weights get a floor, and the swarm
    is resampled systematically with offsets (u + k/N) mod 1.  Clipping bounds how far a step can correct, and the floor
    adds up to N·floor of mass, so that the cumulative sum passes 1 and the last particles cannot be reached.  There is
    no log Ẑ: ``log_z`` stays 0.  Use with ``FeynmanKac()`` on ``VE``.

    Attributes:
      clip: largest |increment − mean|; the release has 1 with noise and 2 without.
      floor: least weight.
    """

    clip: float = 1.0
    floor: float = 1e-6

    def draws(self, particles: int) -> tuple[int, ...]:
        return ()

    def plan(self, grid: np.ndarray, swarms: int, particles: int) -> Rows:
        rows = super().plan(grid, swarms, particles)
        return rows | {"open": rows["open"] & (np.arange(len(grid) - 1) < len(grid) - 2)}

    def step(self, state: Swarms, dlogw: jax.Array, row: dict[str, jax.Array]) -> Stepped:
        everyone = self._everyone(*dlogw.shape)
        raw = self.group.gather(dlogw)
        clipped = jnp.clip(raw - raw.mean(-1, keepdims=True), -self.clip, self.clip)
        weights = jnp.maximum(normalise(clipped), self.floor)
        n = everyone.shape[1]
        points = (self._draw(row, everyone, raw.dtype)[:, None] + jnp.arange(n) / n) % 1.0
        drawn = jax.vmap(lambda w, u: jnp.searchsorted(jnp.cumsum(w), u, side="left"))(weights, points)
        sound = jnp.isfinite(raw).all(-1)
        due = row["open"] & sound
        parents = jnp.where(due[:, None], jnp.minimum(drawn, n - 1).astype(jnp.int32), everyone)
        logw = jnp.where(sound[:, None], state.logw, jnp.nan)
        return self._stepped(Swarms(logw, state.log_z), dlogw, effective(clipped), due, parents)
