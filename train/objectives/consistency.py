"""Consistency models: one network that maps every point of a trajectory to its end (Song et al., arXiv:2303.01469).

    f(x, σ) = c_skip(σ) x + c_out(σ) F,  f(x, ε) = x

Two neighbours on a trajectory must have one end.  In distillation (CD) the second is a teacher's Heun step from the
first; in training (CT, and its improved form iCT, arXiv:2310.14189) both are the same image with the same noise, which
needs no teacher.  The papers' variants are five choices:

    | | levels | proposals | weight | distance | neighbour | target |
    |---|---|---|---|---|---|---|
    | CT | ct | uniform | one | l2 | data | average, decay ``consistency_schedules.ct_decay`` (see the config) |
    | iCT | ict | log_normal | inverse | pseudo_huber | data | the network itself |
    | CD | fixed | uniform | one | l2 | teacher | average |
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from sampling import preconditioning, solvers
from sampling.paths import VE, expand
from sampling.prediction import Prediction
from sampling.solvers import Solver
from train.objectives import consistency_schedules as schedules
from train.objectives.consistency_schedules import Levels
from train.objectives.generation import Draws, Network, Networks, even_angles, row_noise, row_uniforms, shown, squared

CHOICES = {
    "weight": ("one", "inverse"),
    "distance": ("l2", "pseudo_huber"),
    "neighbour": ("data", "teacher"),
}


@dataclasses.dataclass(frozen=True)
class Consistency:
    """The objective's settings; as they stand, iCT's.

    Attributes:
      path: VE; its ``sigma_min`` is the ε at which f is the identity.
      steps: of the whole training, for the schedules.
      levels: how many noise levels: "ct" and "ict" grow with the step, "fixed" = ``most`` always.
      fewest, most: s₀ and s₁ of these schedules, intervals at the start and at the end.
      rho: of the levels' spacing.
      proposals: which pair of neighbours: "uniform", or "log_normal": ln σ is N(time_mean, time_std²).
      weight: "one", or "inverse" = 1 / (σ_{n+1} − σ_n).
      distance: "l2" (mean square) or "pseudo_huber".
      neighbour: who knows the way to the next level: "data" (training) or "teacher" (distillation).
    """

    path: VE
    steps: int
    levels: str = "ict"
    fewest: int = 10
    most: int = 1280
    rho: float = 7.0
    proposals: str = "log_normal"
    time_mean: float = -1.1
    time_std: float = 2.0
    weight: str = "inverse"
    distance: str = "pseudo_huber"
    neighbour: str = "data"
    spans = False

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if not isinstance(self.path, VE) or not 0.0 < self.path.sigma_min < self.path.sigma_max:
            raise ValueError(f"consistency models live on the VE path with 0 < sigma_min < sigma_max, got {self.path}")
        _ = self.schedule  # its own errors, early

    @property
    def needs_teacher(self) -> bool:
        """See ``Objective``."""
        return self.neighbour == "teacher"

    @property
    def passes(self) -> int:
        """See ``Objective``."""
        return 6 if self.needs_teacher else 4

    @property
    def schedule(self) -> Levels:
        """Which levels a step compares."""
        return Levels(self.levels, self.steps, self.fewest, self.most, self.proposals, self.time_mean, self.time_std)

    def points(self, step: Any) -> Any:
        """How many noise levels there are at a step."""
        return self.schedule.points(step)

    def draw(self, key: jax.Array, index: jax.Array, shape: tuple[int, ...], step: jax.Array) -> Draws:
        """``time`` and ``end`` are neighbouring levels, the noisier one first."""
        noise_key, time_key = jax.random.split(key)
        [u] = row_uniforms(time_key, index, 1)
        end, time = self.schedule.pair(u, step, self.path.sigma_min, self.path.sigma_max, self.rho)
        return Draws(row_noise(noise_key, index, shape), time, end)

    def loss(self, networks: Networks, data: jax.Array, draws: Draws, step: jax.Array) -> dict[str, jax.Array]:
        """``consistency``: weighted distance of the two ends, of each row."""
        del step
        far, near = draws.time, draws.end
        x = data + expand(far, data) * draws.noise
        if self.needs_teacher and networks.teacher is not None:
            y = self.heun(networks.teacher, x, far, near)
        else:
            y = data + expand(near, data) * draws.noise
        target = jax.lax.stop_gradient(self.denoise(networks.target, y, near).value)
        error = self.denoise(networks.student, x, far).value - target
        if self.distance == "l2":
            distance = squared(error)
        else:
            distance = schedules.pseudo_huber(error, schedules.pseudo_huber_constant(data[0].size))
        return {"consistency": distance / (far - near) if self.weight == "inverse" else distance}

    def heun(self, teacher: Network, x: jax.Array, far: jax.Array, near: jax.Array) -> jax.Array:
        """One step of a denoising teacher (``Denoising`` with "F" on this path) from level ``far`` to ``near`` [b]."""

        def slope(x: jax.Array, sigma: jax.Array) -> jax.Array:
            around = preconditioning.edm(sigma, self.path.sigma_data)
            data = expand(around.skip, x) * x + expand(around.out, x) * teacher(*shown(self.path, x, sigma), None)
            return (x - data) / expand(sigma, x)

        first, h = slope(x, far), expand(near - far, x)
        return jax.lax.stop_gradient(x + h * 0.5 * (first + slope(x + h * first, near)))

    def denoise(self, network: Network, x: jax.Array, t: jax.Array) -> Prediction:
        """f: the end of the trajectory through x at level t."""
        around = preconditioning.consistency(t, self.path.sigma_data, self.path.sigma_min)
        inner = network(*shown(self.path, x, t), None)
        return Prediction(expand(around.skip, x) * x + expand(around.out, x) * inner, "data")

    def sampler(self, steps: int) -> tuple[Solver, np.ndarray]:
        """Jumps to the data, with noise put back in between."""
        return solvers.Consistency(self.path.sigma_min), even_angles(self.path, steps)
