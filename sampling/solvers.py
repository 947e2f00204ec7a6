"""Solvers: one step along a grid.  All time-dependent coefficients are planned on the host in float64.

A solver says which kind of prediction it works on (``target``) and at which times it evaluates the guide; the sampler
converts, so that a solver never asks what the network predicts and a network never knows its solver.

| of the probability flow, any path      | of diffusion, any path unless said  | stochastic                        |
|----------------------------------------|-------------------------------------|-----------------------------------|
| Euler 1, Midpoint 2, Heun 2, RK4 4     | DDIM 1, DPMpp2M 2; EDM 1 or 2 on VE | DDIM(eta), DPMpp2M(eta), EDM with |
| (orders of convergence)                |                                     | churn, ReverseSDE, Consistency    |
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from sampling.guidance import Guided
from sampling.paths import Path

Evaluate = Callable[[jax.Array, int], Guided]  # (x, which of the step's evaluations) -> mix and components as `target`
Row = dict[str, jax.Array]  # a step's own coefficients


class Plan(NamedTuple):
    """Host-side float64 constants of a whole trajectory of n steps.

    Attributes:
      times: [n, evaluations], where the guide is evaluated; NaN where a peeled last step does not.
      rows: named coefficients, each [n, ...]; a step sees its own row.  "spread" [n] is the standard deviation of the
        noise that a step adds: a plan that has it draws one array of normal numbers a step.
      peel: the last step, to σ = 0, is made by ``Solver.last`` instead of ``Solver.step``.
    """

    times: np.ndarray
    rows: dict[str, np.ndarray]
    peel: bool = False


class Step(NamedTuple):
    """Result of a step: new state, what the solver remembers, and the guide's answer at the step's left end."""

    x: jax.Array
    history: Any
    guided: Guided


class Solver(Protocol):
    """One way to follow a path; stateless, its memory between steps is ``history``."""

    target: str
    renoises: bool
    """Whether it puts noise back from ``Guided.renoise`` (CFG++)."""

    @property
    def evaluations(self) -> int:
        """Of the guide, at every step but a peeled one."""
        ...

    def plan(self, path: Path, grid: np.ndarray) -> Plan: ...

    def init(self, x: jax.Array) -> Any:
        """The history before the first step, a pytree; ``()`` for one-step methods."""
        ...

    def step(self, evaluate: Evaluate, x: jax.Array, history: Any, row: Row, noise: jax.Array | None) -> Step:
        """From one time of the grid to the next; ``noise`` is standard normal, None where the plan draws none."""
        ...

    def last(self, evaluate: Evaluate, x: jax.Array, history: Any, row: Row, noise: jax.Array | None) -> Step:
        """The same for the last step of a plan that peels it off."""
        ...


class OneStep:
    """What most solvers share: no memory, no renoising, every step alike."""

    renoises = False

    def init(self, x: jax.Array) -> Any:
        return ()

    def last(self, evaluate: Evaluate, x: jax.Array, history: Any, row: Row, noise: jax.Array | None) -> Step:
        raise NotImplementedError(f"{type(self).__name__} peels no step")


@dataclasses.dataclass(frozen=True)
class Euler(OneStep):
    """First order, one evaluation a step."""

    target = "velocity"
    evaluations = 1

    def plan(self, path: Path, grid: np.ndarray) -> Plan:
        return Plan(grid[:-1, None], {"h": np.diff(grid)})

    def step(self, evaluate: Evaluate, x: jax.Array, history: Any, row: Row, noise: jax.Array | None) -> Step:
        here = evaluate(x, 0)
        return Step(x + row["h"] * here.mix.value, history, here)


@dataclasses.dataclass(frozen=True)
class Midpoint(OneStep):
    """Second order, two evaluations a step: half an Euler step, then the whole step with the slope found there."""

    target = "velocity"
    evaluations = 2

    def plan(self, path: Path, grid: np.ndarray) -> Plan:
        h = np.diff(grid)
        return Plan(np.stack([grid[:-1], grid[:-1] + h / 2], axis=1), {"h": h, "half": h / 2})

    def step(self, evaluate: Evaluate, x: jax.Array, history: Any, row: Row, noise: jax.Array | None) -> Step:
        here = evaluate(x, 0)
        middle = evaluate(x + row["half"] * here.mix.value, 1)
        return Step(x + row["h"] * middle.mix.value, history, here)


class _ToTheEnd(Midpoint):
    """Methods that evaluate at a step's right end, where at σ = 0 there is no slope: the midpoint rule goes there."""

    fractions: tuple[float, ...]

    def plan(self, path: Path, grid: np.ndarray) -> Plan:
        h = np.diff(grid)
        times = grid[:-1, None] + h[:, None] * np.array(self.fractions)
        if peel := bool(path.sigma(grid[-1]) == 0.0):
            times[-1] = np.nan
            times[-1, :2] = grid[-2], grid[-2] + h[-1] / 2
        return Plan(times, {"h": h, "half": h / 2}, peel)

    def last(self, evaluate: Evaluate, x: jax.Array, history: Any, row: Row, noise: jax.Array | None) -> Step:
        return Midpoint.step(self, evaluate, x, history, row, noise)


@dataclasses.dataclass(frozen=True)
class Heun(_ToTheEnd):
    """Second order, two evaluations a step: the mean of the slopes at both ends."""

    evaluations = 2
    fractions = (0.0, 1.0)

    def step(self, evaluate: Evaluate, x: jax.Array, history: Any, row: Row, noise: jax.Array | None) -> Step:
        here = evaluate(x, 0)
        there = evaluate(x + row["h"] * here.mix.value, 1)
        return Step(x + row["half"] * (here.mix.value + there.mix.value), history, here)


@dataclasses.dataclass(frozen=True)
class RK4(_ToTheEnd):
    """Fourth order, four evaluations a step: the classical Runge-Kutta method."""

    evaluations = 4
    fractions = (0.0, 0.5, 0.5, 1.0)

    def step(self, evaluate: Evaluate, x: jax.Array, history: Any, row: Row, noise: jax.Array | None) -> Step:
        here = evaluate(x, 0)
        k1 = here.mix.value
        k2 = evaluate(x + row["half"] * k1, 1).mix.value
        k3 = evaluate(x + row["half"] * k2, 2).mix.value
        k4 = evaluate(x + row["h"] * k3, 3).mix.value
        return Step(x + row["h"] / 6.0 * (k1 + 2.0 * (k2 + k3) + k4), history, here)


@dataclasses.dataclass(frozen=True)
class EDM(OneStep):
    """Karras et al.'s sampler in σ, Euler or Heun with churn (https://arxiv.org/abs/2206.00364, algorithm 2).

    The step to σ = 0 is Euler's, so Heun takes 2n − 1 evaluations.

    Attributes:
      order: 1 or 2.
      churn: S_churn; noise is raised by γ = min(S_churn/n, √2 − 1) before a step at tmin ≤ σ ≤ tmax.
      tmin, tmax, noise_scale: S_tmin, S_tmax, S_noise.
    """

    order: int = 2
    churn: float = 0.0
    tmin: float = 0.0
    tmax: float = float("inf")
    noise_scale: float = 1.0
    target = "velocity"  # (x − data)/σ, since σ is the time

    def __post_init__(self) -> None:
        if self.order not in (1, 2) or self.churn < 0:
            raise ValueError(f"EDM is of order 1 or 2 with churn ≥ 0, got order={self.order}, churn={self.churn}")

    @property
    def evaluations(self) -> int:
        return self.order

    def plan(self, path: Path, grid: np.ndarray) -> Plan:
        if not (np.array_equal(path.alpha(grid), np.ones_like(grid)) and np.array_equal(path.sigma(grid), grid)):
            raise ValueError(f"EDM's sampler is defined on VE, where time is σ, not on {path}; DDIM takes every path")
        sigma, to = grid[:-1], grid[1:]
        churned = (self.tmin <= sigma) & (sigma <= self.tmax)
        raised = sigma * (1.0 + churned * min(self.churn / sigma.size, np.sqrt(2.0) - 1.0))
        rows = {"h": to - raised}
        if self.churn:
            rows["spread"] = np.sqrt(raised**2 - sigma**2) * self.noise_scale
        times = np.stack([raised, to], axis=1)[:, : self.order]
        peel = self.order == 2 and to[-1] == 0.0
        if peel:
            times[-1, 1] = np.nan
        return Plan(times, rows, peel)

    def step(self, evaluate: Evaluate, x: jax.Array, history: Any, row: Row, noise: jax.Array | None) -> Step:
        if self.order == 1:
            return self.last(evaluate, x, history, row, noise)
        x = _spread(x, row, noise)
        here = evaluate(x, 0)
        there = evaluate(x + row["h"] * here.mix.value, 1)
        return Step(x + 0.5 * row["h"] * (here.mix.value + there.mix.value), history, here)

    def last(self, evaluate: Evaluate, x: jax.Array, history: Any, row: Row, noise: jax.Array | None) -> Step:
        x = _spread(x, row, noise)
        here = evaluate(x, 0)
        return Step(x + row["h"] * here.mix.value, history, here)


@dataclasses.dataclass(frozen=True)
class DDIM(OneStep):
    """x' = α'·data + √(σ'² − c²)·noise + c·z (https://arxiv.org/abs/2010.02502), on every path.

    c = η·σ'/σ·√(σ² − (α/α')²σ'²): η = 0 is exponential Euler in λ, η = 1 draws from the posterior (DDPM).  On VE it is
    Euler (η = 0) and k-diffusion's ancestral sampler (η > 0).
    """

    eta: float = 0.0
    target = "data"
    evaluations = 1
    renoises = True

    def plan(self, path: Path, grid: np.ndarray) -> Plan:
        alpha, sigma, alpha_to, sigma_to = _ends(path, grid)
        posterior = sigma_to / sigma * np.sqrt(np.maximum(sigma**2 - (alpha / alpha_to * sigma_to) ** 2, 0.0))
        spread = np.minimum(self.eta * posterior, sigma_to)
        keep = np.sqrt(sigma_to**2 - spread**2) / sigma
        back = keep * alpha
        rows = {"keep": keep, "gain": alpha_to - back, "data": alpha_to, "back": back}
        return Plan(grid[:-1, None], rows | ({"spread": spread} if self.eta else {}))

    def step(self, evaluate: Evaluate, x: jax.Array, history: Any, row: Row, noise: jax.Array | None) -> Step:
        here = evaluate(x, 0)
        if here.renoise is None:
            moved = row["keep"] * x + row["gain"] * here.mix.value
        else:
            moved = row["keep"] * x + row["data"] * here.mix.value - row["back"] * here.renoise.value
        return Step(_spread(moved, row, noise), history, here)


@dataclasses.dataclass(frozen=True)
class DPMpp2M(OneStep):
    """DPM-Solver++(2M), second order with one evaluation a step (https://arxiv.org/abs/2211.01095), on every path.

    ``eta`` > 0 is its stochastic form (2M SDE, midpoint, as in k-diffusion).  The first step, and one to σ = 0, are of
    first order: their share of the last answer is 0.
    """

    eta: float = 0.0
    target = "data"
    evaluations = 1

    def plan(self, path: Path, grid: np.ndarray) -> Plan:
        alpha, sigma, alpha_to, sigma_to = _ends(path, grid)
        with np.errstate(divide="ignore", invalid="ignore"):
            h = 0.5 * np.diff(path.log_snr(grid))  # of λ; +inf from α = 0 and to σ = 0
            past = np.where(np.isfinite(h[1:]), 0.5 * h[1:] / h[:-1], 0.0)
        damped = np.exp(-self.eta * h) if self.eta else np.ones_like(h)
        ratio = alpha * sigma_to / (sigma * alpha_to)  # exp(−h)
        rows = {
            "keep": sigma_to / sigma * damped,
            "gain": alpha_to * (1.0 - ratio * damped),
            "past": np.append(0.0, past),
        }
        return Plan(grid[:-1, None], rows | ({"spread": sigma_to * np.sqrt(1.0 - damped**2)} if self.eta else {}))

    def init(self, x: jax.Array) -> jax.Array:
        return jnp.zeros_like(x)

    def step(self, evaluate: Evaluate, x: jax.Array, history: jax.Array, row: Row, noise: jax.Array | None) -> Step:
        here = evaluate(x, 0)
        data = here.mix.value
        moved = row["keep"] * x + row["gain"] * (data + row["past"] * (data - history))
        return Step(_spread(moved, row, noise), data, here)


@dataclasses.dataclass(frozen=True)
class Consistency(OneStep):
    """Multi-step consistency sampling: jump to the data, put noise back (https://arxiv.org/abs/2303.01469).

    The grid's inner times are the noise levels returned to; one step is one jump.  ``epsilon`` is the σ at which the
    model is the identity, already contained in what it returns.
    """

    epsilon: float = 0.0
    target = "data"
    evaluations = 1

    def plan(self, path: Path, grid: np.ndarray) -> Plan:
        _, _, alpha_to, sigma_to = _ends(path, grid)
        spread = np.sqrt(np.maximum(sigma_to**2 - (alpha_to * self.epsilon) ** 2, 0.0))
        return Plan(grid[:-1, None], {"data": alpha_to} | ({"spread": spread} if spread.any() else {}))

    def step(self, evaluate: Evaluate, x: jax.Array, history: Any, row: Row, noise: jax.Array | None) -> Step:
        here = evaluate(x, 0)
        return Step(_spread(row["data"] * here.mix.value, row, noise), history, here)


@dataclasses.dataclass(frozen=True)
class ReverseSDE(OneStep):
    """Euler-Maruyama of the reverse process at any noise scale: x + h[−f + ½(1 + ζ²)g²·score] + ζg√h·z.

    ζ = 0 is the probability flow, 1 the time reversal (https://arxiv.org/abs/2011.13456); more is legal.  The step that
    Feynman-Kac correctors weigh.
    """

    zeta: float = 1.0
    target = "score"
    evaluations = 1

    def plan(self, path: Path, grid: np.ndarray) -> Plan:
        t, h = grid[:-1], np.abs(np.diff(grid))
        g2 = path.diffusion(t)
        rows = {"keep": 1.0 - h * path.drift_rate(t), "push": 0.5 * h * (1.0 + self.zeta**2) * g2}
        return Plan(t[:, None], rows | ({"spread": self.zeta * np.sqrt(g2 * h)} if self.zeta else {}))

    def step(self, evaluate: Evaluate, x: jax.Array, history: Any, row: Row, noise: jax.Array | None) -> Step:
        here = evaluate(x, 0)
        return Step(_spread(row["keep"] * x + row["push"] * here.mix.value, row, noise), history, here)


def _ends(path: Path, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(α, σ, α', σ') of every step."""
    alpha, sigma = np.asarray(path.alpha(grid)), np.asarray(path.sigma(grid))
    return alpha[:-1], sigma[:-1], alpha[1:], sigma[1:]


def _spread(x: jax.Array, row: Row, noise: jax.Array | None) -> jax.Array:
    """``x`` with the step's noise, if the plan has any."""
    return x if noise is None else x + row["spread"] * noise


SOLVERS: dict[str, Callable[[], Solver]] = {
    "euler": Euler,
    "midpoint": Midpoint,
    "heun": Heun,
    "rk4": RK4,
    "edm_euler": lambda: EDM(order=1),
    "edm_heun": EDM,
    "ddim": DDIM,
    "ancestral": lambda: DDIM(eta=1.0),
    "dpmpp2m": DPMpp2M,
    "dpmpp2m_sde": lambda: DPMpp2M(eta=1.0),
}


def solver(name: str) -> Solver:
    """A solver by its name in commands and golden files."""
    if name not in SOLVERS:
        raise ValueError(f"unknown solver {name!r}; expected one of {', '.join(SOLVERS)}")
    return SOLVERS[name]()
