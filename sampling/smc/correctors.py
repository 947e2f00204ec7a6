"""Feynman–Kac correctors: log-weights that make annealing, guidance and products of models exact.

For the target ∏ q_i,t^β_i at every time, with S = Σβ_i s_i, any noise scale ζ of ``sampling.solvers.ReverseSDE`` (ζ = 0
is the probability flow) and h > 0 the length of a step from noise to data (https://arxiv.org/abs/2503.02819, whose
"target score" is ζ = 1 and "tempered noise" ζ² = 1/β):

    x     ← x + h[−f + ½(1 + ζ²)g²S] + ζg√h z
    log w ← log w + h[(B − 1)∇·f + ½g²(‖S‖² − Σβ_i‖s_i‖²)],      B = Σβ_i

The increment does not depend on ζ.  The bracket is computed as (B − 1)Σβ_i‖s_i‖² − Σ_{i<j} β_iβ_j‖s_i − s_j‖², the same
number, which is 0 to the last bit where nothing is corrected: one model at β = 1, guidance at w = 1.
"""

import dataclasses
import itertools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from sampling.guidance import Guided
from sampling.paths import Path, expand
from sampling.smc.protocol import Rows
from sampling.smc.reward import Reward


@dataclasses.dataclass(frozen=True)
class FeynmanKac:
    """The corrector of every guide that states its exponents; they must not change during a run.

    Attributes:
      divergence: how (B − 1)∇·f is integrated over a step; it is the same for all particles and matters for log Ẑ only.
        "exact": f = (α'/α)x has ∫∇·f = d·log(α_k/α_{k+1}).  "left": the value at the step's start times its length.
      reward: what a ``Tilted`` guide follows besides.
    """

    divergence: Literal["exact", "left"] = "exact"
    reward: Reward | None = None

    def plan(self, path: Path, grid: np.ndarray, shape: tuple[int, ...]) -> Rows:
        """``half``: ½g²h, and ``divergence``: the integral of ∇·f, for states ``shape`` [b, ...].

        Raises:
          ValueError: a time where f or g² is infinite: the noise end of a flow, where α = 0.
        """
        if self.divergence not in ("exact", "left"):
            raise ValueError(f'divergence is "exact" or "left", got {self.divergence!r}')
        dimension, left, h = np.prod(shape[1:]), grid[:-1], np.abs(np.diff(grid))
        with np.errstate(divide="ignore"):
            log_alpha = np.log(path.alpha(grid))
        rate = path.drift_rate(left) * h if self.divergence == "left" else log_alpha[:-1] - log_alpha[1:]
        rows = {"half": 0.5 * path.diffusion(left) * h, "divergence": dimension * rate}
        for name, values in rows.items():
            if not np.isfinite(values).all():
                step = int(np.flatnonzero(~np.isfinite(values))[0])
                raise ValueError(
                    f"no corrector at t = {grid[step]:g}, where α = 0 makes its {name} infinite: start later"
                )
        if self.reward is not None:
            rows |= {"drift": path.drift_rate(left) * h, "next": grid[1:], "strength": self.reward.at(grid)[1:]}
        return rows

    def increment(self, guided: Guided, x: jax.Array, row: dict[str, jax.Array]) -> jax.Array:
        """Δ log w [b] of the step that starts at ``x``.

        Raises:
          ValueError: the guide's mix is the score of no density (rescaled guidance, CFG++, …).
        """
        if guided.exponents is None:
            raise ValueError(
                "this guide does not follow the score of one density ∏ q_i^β_i (it rescales, or its weight changes), "
                "so no weights can correct it"
            )
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        scores = [component.value.astype(dtype) for component in guided.components]
        betas = [jnp.asarray(beta, dtype) for beta in guided.exponents]
        excess = sum(betas) - 1.0
        energy = sum(beta * _square(s) for beta, s in zip(betas, scores, strict=True))
        pairs = itertools.combinations(zip(betas, scores, strict=True), 2)
        apart = sum(beta * other * _square(s - r) for (beta, s), (other, r) in pairs)
        dlogw = row["half"] * (excess * energy - apart) + excess * row["divergence"]
        if self.reward is None:
            return dlogw
        if "reward" not in guided.aux:
            raise ValueError("a corrector with a reward needs a guide that follows it: Tilted(guide, reward)")
        score = sum(expand(beta, s) * s for beta, s in zip(betas, scores, strict=True))
        pull = guided.aux["reward_gradient"].astype(dtype) * (row["half"] * score - row["drift"] * x.astype(dtype))
        gained = row["strength"] * self.reward.value(x, row["next"]) - guided.aux["reward"]
        return dlogw + gained.astype(dtype) + pull.reshape(pull.shape[0], -1).sum(-1)


def start_log_weights(log_target: jax.Array, x: jax.Array, variance: float) -> jax.Array:
    """log p̃_T(x) − log N(x; 0, variance·I) [b]: what particles weigh that start from a normal law.

    Args:
      log_target: [b], Σβ_i log q_i,T(x), unnormalised.
      x: [b, ...], drawn from N(0, variance·I); σ_T²/Σβ is the natural variance.
    """
    dimension = x[0].size
    return log_target + 0.5 * (_square(x) / variance + dimension * jnp.log(2.0 * jnp.pi * variance))


def _square(v: jax.Array) -> jax.Array:
    """‖v‖² of every row, [b, ...] -> [b]."""
    return (v * v).reshape(v.shape[0], -1).sum(-1)
