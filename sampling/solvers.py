"""Solvers: one step along a grid.  All time-dependent coefficients are planned on the host in float64.

A solver says which kind of prediction it works on (``target``) and at which times it evaluates the guide; the sampler
converts, so that a solver never asks what the network predicts and a network never knows its solver.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from sampling.guidance import Guided
from sampling.paths import Path

Evaluate = Callable[[jax.Array, int], Guided]  # (x, which of the step's evaluations) -> mix and components as `target`


class Plan(NamedTuple):
    """Host-side float64 constants of a whole trajectory of n steps.

    Attributes:
      times: [n, evaluations], where the guide is evaluated.
      rows: named coefficients, each [n, ...]; a step sees its own row.
    """

    times: np.ndarray
    rows: dict[str, np.ndarray]


class Step(NamedTuple):
    """Result of a step: new state, what the solver remembers, and the guide's answer at the step's left end."""

    x: jax.Array
    history: Any
    guided: Guided


class Solver(Protocol):
    """One way to follow a path; stateless, its memory between steps is ``history``."""

    target: str
    evaluations: int

    def plan(self, path: Path, grid: np.ndarray) -> Plan: ...

    def init(self, x: jax.Array) -> Any:
        """The history before the first step; ``()`` for one-step methods."""
        ...

    def step(self, evaluate: Evaluate, x: jax.Array, history: Any, row: dict[str, jax.Array], noise: Any) -> Step:
        """From one time of the grid to the next; ``noise`` is None for deterministic solvers."""
        ...


class Euler:
    """First order, one evaluation a step."""

    target = "velocity"
    evaluations = 1

    def plan(self, path: Path, grid: np.ndarray) -> Plan:
        return Plan(grid[:-1, None], {"h": np.diff(grid)})

    def init(self, x: jax.Array) -> Any:
        return ()

    def step(self, evaluate: Evaluate, x: jax.Array, history: Any, row: dict[str, jax.Array], noise: Any) -> Step:
        here = evaluate(x, 0)
        return Step(x + row["h"] * here.mix.value, history, here)


class Midpoint:
    """Second order, two evaluations a step: half an Euler step, then the whole step with the slope found there."""

    target = "velocity"
    evaluations = 2

    def plan(self, path: Path, grid: np.ndarray) -> Plan:
        h = np.diff(grid)
        return Plan(np.stack([grid[:-1], grid[:-1] + h / 2], axis=1), {"h": h, "half": h / 2})

    def init(self, x: jax.Array) -> Any:
        return ()

    def step(self, evaluate: Evaluate, x: jax.Array, history: Any, row: dict[str, jax.Array], noise: Any) -> Step:
        here = evaluate(x, 0)
        middle = evaluate(x + row["half"] * here.mix.value, 1)
        return Step(x + row["h"] * middle.mix.value, history, here)


SOLVERS = {"euler": Euler, "midpoint": Midpoint}


def solver(name: str) -> Solver:
    """A solver by its name in commands and golden files."""
    if name not in SOLVERS:
        raise ValueError(f"unknown solver {name!r}; expected one of {', '.join(SOLVERS)}")
    return SOLVERS[name]()
