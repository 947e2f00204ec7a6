"""Points of quality-against-compute curves: solvers, guidance, correctors and searches by name.

    euler:2-4-8    random:1-2-4-8-16    fkc:1-4-16

is a curve and the numbers along it; without numbers a curve has its own.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data.errors import UserError
from launch.pipelines.images import ImagePipeline, Options
from sampling.guidance import Conditional
from sampling.ledger import Ledger
from sampling.noise import Keyed
from sampling.sample import Sample, sample
from sampling.search.candidates import Where
from sampling.search.over_paths import PathSearch
from sampling.search.starts import RandomSearch, ZeroOrder
from sampling.solvers import SOLVERS

SEARCHES: dict[str, tuple[float, ...]] = {
    "random": (1, 2, 4, 8, 16),
    "zero_order": (4, 8, 16),
    "paths": (4, 8, 16),
}
OTHERS: dict[str, tuple[float, ...]] = {
    "own": (1, 2, 4),  # the sampler that goes with what the network was trained for
    "guided": (1, 1.5, 2, 3),
    "sde": (32, 128),
    "fkc": (1, 4, 16),
}
STEPS = (2, 4, 8, 16, 32)  # of every solver's own curve
BELOW = "dpmpp2m"  # the solver below searches and guidance
AT_ONCE = 4096  # rows that a search makes at a time

Verifier = Callable[[jax.Array, jax.Array], jax.Array]
"""(images [b, ...] as a pipeline returns them, labels [b]) -> scores [b]; not what judges the curves."""


@dataclasses.dataclass(frozen=True)
class Point:
    """One setting on a curve.

    Attributes:
      curve: its name.
      number: where on it: steps; guidance weight; particles per image; runs whose network calls a search may spend.
      options: of the sampler.
      search: a name of ``SEARCHES``, or "" for none.
    """

    curve: str
    number: float
    options: Options
    search: str = ""

    def __str__(self) -> str:
        return f"{self.curve} {self.number:g}"


def points(curves: Sequence[str], steps: int, weight: float) -> list[Point]:
    """The points of the curves asked for.

    Args:
      curves: ``name`` or ``name:n-n-n``.
      steps: of the solver below searches, guidance and correctors.
      weight: of guidance in ``sde`` and ``fkc``.

    Raises:
      UserError: no such curve, or numbers that are none.
    """
    out = []
    for curve in curves:
        name, _, text = curve.partition(":")
        known = {**OTHERS, **SEARCHES, **dict.fromkeys(SOLVERS, STEPS)}
        if name not in known:
            raise UserError(f"--curves={curve} is not known; choose from {', '.join(known)}")
        try:
            numbers = tuple(map(float, text.split("-"))) if text else known[name]
        except ValueError:
            raise UserError(f"--curves={curve}: expected numbers like {name}:1-2-4") from None
        if name != "guided" and (min(numbers) < 1 or any(n % 1 for n in numbers)):
            raise UserError(f"--curves={curve}: expected whole numbers from 1")
        if name in ("zero_order", "paths") and min(numbers) < 2:
            raise UserError(f"--curves={curve}: this search needs the network calls of two runs")
        out += [_point(name, number, steps, weight) for number in numbers]
    return out


def _point(name: str, number: float, steps: int, weight: float) -> Point:
    if name in SEARCHES:
        return Point(name, number, Options(steps=steps, solver=BELOW), search=name)
    if name == "guided":
        return Point(name, number, Options(steps=steps, solver=BELOW, guidance=number))
    if name == "fkc":
        return Point(name, number, Options(steps=2 * steps, solver="sde", guidance=weight, particles=int(number)))
    if name == "sde":
        return Point(name, number, Options(steps=int(number), solver="sde", guidance=weight))
    return Point(name, number, Options(steps=int(number), solver="" if name == "own" else name))


class Sampler:
    """A point of a curve, sampled by a pipeline.

    Args:
      pipeline: the model.
      point: what to do.
      labels: [n], one for each image that a call makes.
      verifier: what searches maximise.
    """

    def __init__(self, pipeline: ImagePipeline, point: Point, labels: np.ndarray, verifier: Verifier):
        self.pipeline, self.point, self.labels, self.verifier = pipeline, point, labels, verifier
        self._search = jax.jit(self._found) if point.search else None

    def __call__(self, seed: int) -> tuple[np.ndarray, Ledger]:
        """Images [n, h, w, c] in [-1, 1], and what each cost.

        Raises:
          UserError: the model cannot be sampled so.
        """
        try:
            if self._search is None:
                made = self.pipeline(self.labels, self.point.options, seed=seed)
                return made.images, made.ledger
            x, ledger = self._search(jax.random.key(seed))
        except ValueError as error:
            raise UserError(f"--curves: {self.point}: {error}") from error
        return np.asarray(x).clip(-1.0, 1.0), jax.tree.map(int, ledger)

    def _found(self, key: jax.Array) -> tuple[jax.Array, Ledger]:
        task, options, labels = self.pipeline.task, self.point.options, jnp.asarray(self.labels)
        shape, starts = (len(labels), *task.shape), Keyed(key, jnp.arange(len(labels)))
        where = Where(chunk=max(1, AT_ONCE // len(labels)))
        number = int(self.point.number)
        solver, grid = self.pipeline.solver(options)
        guide = Conditional(task.denoiser(self.pipeline.variables), labels)

        def solve(x: jax.Array, grid: np.ndarray, number: Any) -> Sample:
            return sample(guide, x, grid, path=task.path, solver=solver)

        def run(start: jax.Array, number: Any) -> Sample:
            return solve(float(task.path.sigma(grid[0])) * start, grid, number)

        def liked(x: jax.Array, labels: jax.Array) -> jax.Array:
            return self.verifier(task.denormalise(x), labels)

        budget = number * RandomSearch(1).cost(run, shape).network_calls  # alike for all, so that searches compare
        if self.point.search == "paths":
            quarter = options.steps // 4
            search = PathSearch.on(task.path, grid, (2 * quarter, 3 * quarter), max(1, quarter // 2), keep_paths=2)
            found = dataclasses.replace(search, where=where).within(budget, solve, shape)(
                solve, liked, starts, shape, labels
            )
        else:
            search = (
                RandomSearch(where=where)
                if self.point.search == "random"
                else ZeroOrder(min(3, number - 1), where=where)
            )
            found = search.within(budget, run, shape)(run, liked, starts, shape, labels)
        return task.denormalise(found.x), found.ledger
