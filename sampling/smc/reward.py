"""Tilting by a reward: the target ∏ q_i,t^β_i · exp(b(t)·r(x, t)), and the guide and the corrector that reach it.

    reward = Reward(lambda x, t: -((x - goal) ** 2).sum(-1), strength=lambda times: 2.0 * (1.0 - times))
    sample(Tilted(guide, reward, zeta=1.0), ..., solver=ReverseSDE(1.0), corrector=FeynmanKac(reward=reward), ...)

With S = Σβ_i s_i, the drift −f + ½(1 + ζ²)g²S + ½ζ²g²b∇r needs no second derivative of r, and adds to the increment

    b(t')·r(x, t') − b(t)·r(x, t) + h⟨b∇r, ½g²S − f⟩

from t to t' (https://arxiv.org/abs/2503.02819, there with ζ = 1).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sampling.guidance import Guide, Guided, GuidePlan, Row
from sampling.paths import Path
from sampling.prediction import Prediction, coefficients, kinds


@dataclasses.dataclass(frozen=True)
class Reward:
    """What samples should have more of.

    Attributes:
      value: (x [b, ...], t) -> r [b], differentiable in x.
      strength: b at host times [...], for example growing from 0 at the noise, where particles start from q alone.
    """

    value: Callable[[jax.Array, jax.Array], jax.Array]
    strength: Callable[[np.ndarray], ArrayLike]

    def at(self, times: np.ndarray) -> np.ndarray:
        """The strength, checked."""
        strength = np.broadcast_to(np.asarray(self.strength(times), np.float64), times.shape)
        if not np.isfinite(strength[np.isfinite(times)]).all():
            raise ValueError("a reward's strength must be finite at every time of the grid")
        return strength


class Tilted:
    """A guide that also follows a reward; for ``ReverseSDE`` of the same ``zeta``."""

    def __init__(self, guide: Guide, reward: Reward, zeta: float = 1.0):
        self.guide, self.reward, self.share = guide, reward, zeta**2 / (1.0 + zeta**2)

    def plan(self, path: Path, times: np.ndarray) -> GuidePlan:
        plan = self.guide.plan(path, times)
        table = {kind: coefficients(path, times, kind, "noise") for kind in kinds(path)}
        rows = {"guide": plan.rows, "noise": table, "strength": self.reward.at(times), "sigma": path.sigma(times)}
        return GuidePlan(rows, plan.calls)

    def __call__(self, x: jax.Array, t: jax.Array, row: Row) -> Guided:
        def noise(prediction: Prediction) -> Prediction:
            if prediction.kind == "noise":
                return prediction
            cx, cp = row["noise"][prediction.kind]
            return Prediction(cx * x + cp * prediction.value, "noise")

        guided = self.guide(x, t, row["guide"]).map(noise)
        value, pull = jax.vjp(lambda x: self.reward.value(x, t), x)
        (gradient,) = pull(jnp.ones_like(value))
        gradient = row["strength"] * gradient
        mix = guided.mix.value - row["sigma"] * self.share * gradient  # noise is −σ·score
        aux = guided.aux | {"reward": row["strength"] * value, "reward_gradient": gradient}
        return guided._replace(mix=Prediction(mix, "noise"), aux=aux)
