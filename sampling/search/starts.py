"""Search over start noise: of N random starts, or around the best one so far (https://arxiv.org/abs/2501.09732).

    run = lambda start, number: sample(guide, start, grid)
    found = RandomSearch(16)(run, verifier, Keyed(key, ids), (batch, *shape), condition)

Both work with any sampler and any verifier.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from sampling.ledger import Ledger
from sampling.noise import Noise
from sampling.search.candidates import (
    ALL_AT_ONCE,
    NUMBER,
    Found,
    Round,
    Run,
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


@dataclasses.dataclass(frozen=True)
class RandomSearch:
    """The best of N independent samples.  The first N candidates of a larger search are those of a smaller one.

    Attributes:
      candidates: N.
      where: chunks and devices.
      keep: "best", or "all" to return all samples.
    """

    candidates: int = 16
    where: Where = ALL_AT_ONCE
    keep: str = "best"

    def __post_init__(self) -> None:
        check_sizes(candidates=self.candidates)
        check_keep(self.keep)

    def cost(self, run: Run, shape: tuple[int, ...], verifiers: int = 1, dtype: Any = jnp.float32) -> Ledger:
        """What the search will cost each prompt; traces the run, runs nothing."""
        return scaled(price(run, jax.ShapeDtypeStruct(shape, dtype), NUMBER)[0], self.candidates, verifiers)

    def within(self, budget: int, run: Run, shape: tuple[int, ...], dtype: Any = jnp.float32) -> "RandomSearch":
        """This search with as many candidates as ``budget`` network calls per prompt allow."""
        one, _ = price(run, jax.ShapeDtypeStruct(shape, dtype), NUMBER)
        return dataclasses.replace(self, candidates=fits(budget, one.network_calls))

    def __call__(
        self,
        run: Run,
        verifier: Verifier | Ensemble,
        noise: Noise,
        shape: tuple[int, ...],
        condition: Any = None,
        dtype: Any = jnp.float32,
    ) -> Found:
        """Searches for all prompts of a batch.

        Args:
          run: the sampler.
          verifier: what is maximised.
          noise: draw i is candidate i's start.
          shape: [b, ...] of the starts.
          condition: what the verifier is told about the prompts, leading axes b.
          dtype: of the starts.

        Raises:
          ValueError: the verifier does not return one real number per row (nothing was compiled yet).
        """
        noise.check(self.candidates, shape)
        one, sample = price(run, jax.ShapeDtypeStruct(shape, dtype), NUMBER)
        verifiers = check_verifier(verifier, sample, condition, shape[0])

        def candidate(number: jax.Array) -> tuple[jax.Array, jax.Array]:
            x = run(noise.at(number, shape, dtype), number).x
            return x, score(verifier, x, condition, shape[0])

        x, scores = self.where.each(candidate, self.candidates)
        chosen = best(scores, 1)
        choice = Round(plain(scores), chosen, x if self.keep == "all" else None)

        def fetch(number: jax.Array, start: jax.Array) -> jax.Array:  # drawn again: cheaper than keeping all of them
            wanted = (chosen[0] == number).reshape(-1, *[1] * (len(shape) - 1))
            return jnp.where(wanted, noise.at(number, shape, dtype), start)

        start = jax.lax.fori_loop(0, self.candidates, fetch, jnp.zeros(shape, dtype))
        ledger = scaled(one, self.candidates, verifiers)
        return found(pick(x, chosen)[0], pick(scores, chosen)[0], start, (choice,), ledger)


@dataclasses.dataclass(frozen=True)
class ZeroOrder:
    """Climbs from a random start: the best of a few neighbours becomes the pivot if it is strictly better.

    A neighbour lies on the pivot's sphere at a given angle to it.  A round without improvement keeps its pivot and
    looks at other neighbours (tt-scale-flux, where λ = ``cosine`` and neighbours come from, throws it away).

    Attributes:
      neighbours: candidates per round.
      iterations: rounds.
      cosine: λ of the angle between pivot and neighbour; nearer to 1 is a smaller step.
      where: chunks and devices.
      keep: "best", or "all" to return the starts of all candidates.
    """

    neighbours: int = 4
    iterations: int = 8
    cosine: float = 0.95
    where: Where = ALL_AT_ONCE
    keep: str = "best"

    def __post_init__(self) -> None:
        check_sizes(neighbours=self.neighbours, iterations=self.iterations)
        check_keep(self.keep)
        if not -1.0 <= self.cosine <= 1.0:
            raise ValueError(f"cosine is that of an angle, in [-1, 1], got {self.cosine}")

    @property
    def runs(self) -> int:
        """The first pivot and all neighbours."""
        return 1 + self.neighbours * self.iterations

    def cost(self, run: Run, shape: tuple[int, ...], verifiers: int = 1, dtype: Any = jnp.float32) -> Ledger:
        """What the search will cost each prompt; traces the run, runs nothing."""
        return scaled(price(run, jax.ShapeDtypeStruct(shape, dtype), NUMBER)[0], self.runs, verifiers)

    def within(self, budget: int, run: Run, shape: tuple[int, ...], dtype: Any = jnp.float32) -> "ZeroOrder":
        """This search with as many rounds as ``budget`` network calls per prompt allow."""
        one, _ = price(run, jax.ShapeDtypeStruct(shape, dtype), NUMBER)
        rounds = fits(budget - one.network_calls, self.neighbours * one.network_calls)
        return dataclasses.replace(self, iterations=rounds)

    def __call__(
        self,
        run: Run,
        verifier: Verifier | Ensemble,
        noise: Noise,
        shape: tuple[int, ...],
        condition: Any = None,
        dtype: Any = jnp.float32,
    ) -> Found:
        """As ``RandomSearch``; draw 0 is the first pivot, the others point to its neighbours, round by round."""
        noise.check(self.runs, shape)
        one, sample = price(run, jax.ShapeDtypeStruct(shape, dtype), NUMBER)
        verifiers = check_verifier(verifier, sample, condition, shape[0])
        if math.prod(shape[1:]) < 2:
            raise ValueError(f"one number has no neighbours on its sphere; got starts of shape {shape}")

        def candidate(start: jax.Array, number: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
            x = run(start, number).x
            return start, x, score(verifier, x, condition, shape[0])

        def climb(pivot: Any, iteration: jax.Array) -> tuple[Any, Round]:
            def neighbour(j: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
                number = 1 + iteration * self.neighbours + j
                return candidate(rotate(pivot[0], noise.at(number, shape, dtype), self.cosine), number)

            around = self.where.each(neighbour, self.neighbours)
            pool = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), pivot, around)
            chosen = best(pool[2], 1)  # the pivot stands first: an equal score does not replace it
            kept = around[0] if self.keep == "all" else None
            return jax.tree.map(lambda a: pick(a, chosen)[0], pool), Round(plain(around[2]), chosen - 1, kept)

        zero = jnp.zeros((), jnp.int32)
        pivot = candidate(noise.at(zero, shape, dtype), zero)
        (start, x, scores), rounds = jax.lax.scan(climb, pivot, jnp.arange(self.iterations))
        return found(x, scores, start, (rounds,), scaled(one, self.runs, verifiers))


def rotate(pivot: jax.Array, direction: jax.Array, cosine: float) -> jax.Array:
    """The point of the pivot's sphere at the given angle from it towards ``direction``, row by row: [b, ...].

    ‖p‖·(λ·u + √(1 − λ²)·w) with u = p/‖p‖ and w the unit vector of the direction's part orthogonal to u.
    """
    axes = tuple(range(1, pivot.ndim))
    length = jnp.sqrt((pivot**2).sum(axes, keepdims=True))
    along = pivot / length
    across = direction - (direction * along).sum(axes, keepdims=True) * along
    across /= jnp.sqrt((across**2).sum(axes, keepdims=True))
    return length * (cosine * along + math.sqrt(1.0 - cosine**2) * across)
