"""Search over paths: whole trajectories that branch on the way (https://arxiv.org/abs/2501.09732).

N states are solved down to a noise level; each is noised a little again M times and solved to the next level; the
verifier scores estimates of the data there and the best N of N·M go on.  At the end, the best of N.

    search = PathSearch.on(path, grid, levels=(8, 16, 24), back=4, keep_paths=2, copies=4)
    solve = lambda x, grid, number: sample(guide, x, grid, path=path)
    found = search(solve, verifier, Keyed(key, ids), (batch, *shape), condition)
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sampling import grids
from sampling.ledger import Ledger
from sampling.noise import Noise
from sampling.paths import Path
from sampling.sample import Sample
from sampling.search.candidates import (
    ALL_AT_ONCE,
    NUMBER,
    Found,
    Round,
    Where,
    best,
    check_keep,
    check_sizes,
    check_verifier,
    fits,
    found,
    pick,
    plain,
    price,
    scaled,
)
from sampling.search.verifier import Ensemble, Verifier, score

Solve = Callable[[jax.Array, np.ndarray, jax.Array], Sample]
"""(state [b, ...] at the grid's first time, host grid, the candidate's number) -> Sample at its last time."""


@dataclasses.dataclass(frozen=True, eq=False)
class PathSearch:
    """N paths that branch M-fold at every level.

    Attributes:
      path: α and σ.
      grids: host times of every stretch: from noise to the first level; for each further level, from a little above
        the last level to it; and from the last level to the data.
      keep_paths: N.
      copies: M.
      where: chunks and devices.
      keep: "best", or "all" to return the states of all candidates.
    """

    path: Path
    grids: tuple[np.ndarray, ...]
    keep_paths: int = 2
    copies: int = 4
    where: Where = ALL_AT_ONCE
    keep: str = "best"

    def __post_init__(self) -> None:
        check_sizes(keep_paths=self.keep_paths, copies=self.copies)
        check_keep(self.keep)
        if len(self.grids) < 3:
            raise ValueError(f"a search over paths has at least three stretches of times, got {len(self.grids)}")
        for grid in self.grids:
            grids.check(grid, self.path)
        pairs = list(itertools.pairwise(self.grids))
        for i, (before, after) in enumerate(pairs, 1):
            climb, fall = self.path.outward * (np.array([after[0], after[-1]]) - before[-1])
            last = i == len(pairs)
            if (abs(climb) > 1e-9 if last else climb < -1e-9) or fall >= 0:
                start = "start where the one before ended" if last else "start where the one before ended, or noisier"
                raise ValueError(f"stretch {i} must {start} (t = {before[-1]:g}) and end less noisy, got {after}")

    @classmethod
    def on(
        cls, path: Path, grid: np.ndarray, levels: Sequence[int], back: int, keep_paths: int = 2, copies: int = 4
    ) -> "PathSearch":
        """Stretches of one grid: down to ``grid[levels[0]]``, ``back`` steps up again, down to the next level, …

        Raises:
          ValueError: fewer than two levels, or levels that do not rise inside the grid.
        """
        inside = len(levels) > 1 and back >= 0 and back <= levels[0] and levels[-1] < len(grid) - 1
        if not inside or min(np.diff([0, *levels])) < 1:
            raise ValueError(f"levels must rise between step {max(back, 1)} and {len(grid) - 2}, got {tuple(levels)}")
        middle = [grid[a - back : b + 1] for a, b in itertools.pairwise(levels)]
        return cls(path, (grid[: levels[0] + 1], *middle, grid[levels[-1] :]), keep_paths, copies)

    def cost(
        self,
        solve: Solve,
        shape: tuple[int, ...],
        verifiers: int = 1,
        dtype: Any = jnp.float32,
        estimate: Solve | None = None,
    ) -> Ledger:
        """What the search will cost each prompt; traces ``solve``, runs nothing."""
        state = jax.ShapeDtypeStruct(shape, dtype)

        def stretch(grid: np.ndarray, solve: Solve = solve) -> Ledger:
            return price(lambda x, number: solve(x, grid, number), state, NUMBER)[0]

        total = scaled(stretch(self.grids[0]), self.keep_paths, 0)
        total += scaled(stretch(self.grids[-1]), self.keep_paths, verifiers)
        for grid in self.grids[1:-1]:
            one = stretch(grid) + stretch(self._to_data(grid[-1]), estimate or solve)
            total += scaled(one, self.keep_paths * self.copies, verifiers)
        return total

    def within(
        self,
        budget: int,
        solve: Solve,
        shape: tuple[int, ...],
        dtype: Any = jnp.float32,
        estimate: Solve | None = None,
    ) -> "PathSearch":
        """This search with as many copies as ``budget`` network calls per prompt allow."""
        one, two = (
            dataclasses.replace(self, copies=m).cost(solve, shape, 1, dtype, estimate).network_calls for m in (1, 2)
        )
        return dataclasses.replace(self, copies=fits(budget - (one - (two - one)), two - one))  # linear in M

    def __call__(
        self,
        solve: Solve,
        verifier: Verifier | Ensemble,
        noise: Noise,
        shape: tuple[int, ...],
        condition: Any = None,
        dtype: Any = jnp.float32,
        estimate: Solve | None = None,
    ) -> Found:
        """Searches for all prompts of a batch.

        Args:
          solve: the sampler on a part of its way.
          verifier: what is maximised; sees estimates of the data on the way, samples at the end.
          noise: draws 0 … N − 1 are the starts, the next N·M those of the first level, and so on.
          shape: [b, ...] of the states.
          condition: what the verifier is told about the prompts, leading axes b.
          dtype: of the states.
          estimate: the solver of the single step to the data that gives the estimate; ``solve`` by default, which is
            exact for Euler on flows and VE, DDIM and DPM-Solver++.

        Raises:
          ValueError: the verifier does not return one real number per row (nothing was compiled yet).
        """
        noise.check(self.keep_paths * (1 + self.copies * (len(self.grids) - 2)), shape)
        verifiers = check_verifier(verifier, jax.ShapeDtypeStruct(shape, dtype), condition, shape[0])
        ledger = self.cost(solve, shape, verifiers, dtype, estimate)

        def start(number: jax.Array) -> jax.Array:
            x = noise.at(number, shape, dtype) * self.path.sigma(self.grids[0][0])
            return solve(x, self.grids[0], number).x

        x, rounds = self.where.each(start, self.keep_paths), []
        for level in range(1, len(self.grids) - 1):
            x, choice = self.branch(level, x, solve, verifier, noise, condition, estimate or solve)
            rounds.append(choice)

        def finish(number: jax.Array) -> tuple[jax.Array, jax.Array]:
            end = solve(x[number], self.grids[-1], number).x
            return end, score(verifier, end, condition, shape[0])

        ends, scores = self.where.each(finish, self.keep_paths)
        chosen = best(scores, 1)
        rounds.append(Round(plain(scores), chosen, ends if self.keep == "all" else None))
        return found(pick(ends, chosen)[0], pick(scores, chosen)[0], None, tuple(rounds), ledger)

    def branch(
        self,
        level: int,
        x: jax.Array,
        solve: Solve,
        verifier: Verifier | Ensemble,
        noise: Noise,
        condition: Any,
        estimate: Solve,
    ) -> tuple[jax.Array, Round]:
        """From the N states [N, b, ...] at the end of stretch ``level`` − 1 to the N best at the end of ``level``."""
        shape, grid = x.shape[1:], self.grids[level]
        children = self.keep_paths * self.copies
        first = self.keep_paths + (level - 1) * children
        keep, add = renoising(self.path, self.grids[level - 1][-1], grid[0])

        def child(i: jax.Array) -> tuple[jax.Array, jax.Array]:
            noised = keep * x[i // self.copies] + add * noise.at(first + i, shape, x.dtype)
            state = solve(noised, grid, first + i).x
            data = estimate(state, self._to_data(grid[-1]), first + i).x
            return state, score(verifier, data, condition, shape[0])

        states, scores = self.where.each(child, children)
        chosen = best(scores, self.keep_paths)
        return pick(states, chosen), Round(plain(scores), chosen, states if self.keep == "all" else None)

    def _to_data(self, t: float) -> np.ndarray:
        return np.array([t, self.path.data_time])


def renoising(path: Path, t: float, up: float) -> tuple[float, float]:
    """(a, b) of x' = a·x + b·z, which takes a state at time t to the noisier time ``up`` of the same path."""
    keep = float(path.alpha(up) / path.alpha(t))
    return keep, float(np.sqrt(max(path.sigma(up) ** 2 - (keep * path.sigma(t)) ** 2, 0.0)))
