"""What every search has in common: runs, how many candidates are made at a time and where, and what was found.

A search makes candidates for all b prompts of a batch at once: candidate number i is one run over b rows, and every
choice is made inside a row, so prompts never mix.  Conditions live in the run's closure: they are not copied per
candidate.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import Mesh, PartitionSpec

from sampling.ledger import Ledger
from sampling.sample import Sample
from sampling.search.verifier import Ensemble, Verifier, members, merit, score

Run = Callable[[jax.Array, jax.Array], Sample]
"""(standard normal start [b, ...], the candidate's number) -> Sample of b rows.  The number is for the run's own noise,
``Keyed(fold_in(key, number), ids)``; a deterministic sampler ignores it."""


NUMBER = jax.ShapeDtypeStruct((), "int32")  # of a candidate, abstractly


@dataclasses.dataclass(frozen=True)
class Where:
    """How candidates are laid out; changes no result.

    Attributes:
      chunk: how many candidates a device makes at a time (so many times b rows lie in memory); None = all.
      mesh: one axis of devices that share the candidates; None = wherever the arrays are.
    """

    chunk: int | None = None
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"a chunk holds at least one candidate, got {self.chunk}")
        if self.mesh is not None and len(self.mesh.axis_names) != 1:
            raise ValueError(f"candidates are shared over a mesh of one axis, got {self.mesh.axis_names}")

    def each(self, function: Callable[[jax.Array], Any], n: int) -> Any:
        """``function`` of every number 0 … n − 1, results stacked.

        Raises:
          ValueError: n is not divisible by the number of devices.
        """

        def mine(numbers: jax.Array) -> Any:
            if self.chunk is None or self.chunk >= len(numbers):
                return jax.vmap(function)(numbers)
            return jax.lax.map(function, numbers, batch_size=self.chunk)

        numbers = jnp.arange(n)
        if self.mesh is None:
            return mine(numbers)
        if n % self.mesh.size:
            raise ValueError(f"{n} candidates cannot be shared by {self.mesh.size} devices: choose a multiple")
        split = PartitionSpec(self.mesh.axis_names[0])
        return jax.shard_map(mine, mesh=self.mesh, in_specs=split, out_specs=split, check_vma=False)(numbers)


ALL_AT_ONCE = Where()


class Round(NamedTuple):
    """One choice among n candidates; leading axes where a search makes several alike.

    Attributes:
      scores: [n, b], or [n, b, members] of an ensemble; NaN where a candidate could not be judged.
      chosen: the k kept candidates, best first [k, b]; −1 where the pivot was better than all.
      candidates: what was chosen among [n, b, ...], with ``keep="all"``.
    """

    scores: jax.Array
    chosen: jax.Array
    candidates: jax.Array | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Found:
    """Result of a search.

    Attributes:
      x: the best sample of every prompt [b, ...]; NaN, not a sample, where no candidate could be judged.
      score: its score [b], or [b, members] of an ensemble.
      valid: [b] bool, whether any candidate of the prompt could be judged.
      start: the noise that leads to it [b, ...]; None where a sample has no single one.
      rounds: every choice, in order.
      ledger: costs per prompt, of all candidates together.
    """

    x: jax.Array
    score: jax.Array
    valid: jax.Array
    start: jax.Array | None
    rounds: tuple[Round, ...]
    ledger: Ledger


def found(x: jax.Array, scores: jax.Array, start: jax.Array | None, rounds: tuple[Round, ...], ledger: Ledger) -> Found:
    """A result from its best sample and that sample's scores [b, members]."""
    valid = ~jnp.isnan(scores).any(axis=-1)
    if jnp.issubdtype(x.dtype, jnp.inexact):  # tokens have no NaN; there ``valid`` alone says it
        x = jnp.where(valid.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.nan)
    return Found(x, plain(scores), valid, start, rounds, ledger)


def plain(scores: jax.Array) -> jax.Array:
    """Without the axis of members, where there is one [..., members]."""
    return scores[..., 0] if scores.shape[-1] == 1 else scores


def best(scores: jax.Array, k: int) -> jax.Array:
    """Numbers of the k best candidates of every prompt [k, b], best first, by scores [n, b, members].

    Of equal ones the first is taken.
    """
    return jax.lax.top_k(merit(scores).T, k)[1].T


def pick(values: jax.Array, chosen: jax.Array) -> jax.Array:
    """Each prompt's own choice: [n, b, ...] and [k, b] -> [k, b, ...]."""
    return values[chosen, jnp.arange(values.shape[1])]


def price(run: Callable[..., Sample], *arguments: Any) -> tuple[Ledger, Any]:
    """(what one call of a run costs a row, the shape of its samples), found by tracing it and not by running it.

    Raises:
      ValueError: the run is jitted, which hides its costs; jit the search instead.
    """
    seen = []

    def traced(*arguments: Any) -> jax.Array:
        result = run(*arguments)
        seen.append(result.ledger)
        return result.x

    shape = jax.eval_shape(traced, *arguments)
    if any(isinstance(cost, Tracer) for cost in jax.tree.leaves(seen[0])):
        raise ValueError("the run hides its costs under jit: give the plain function, and jit the search")
    return jax.tree.map(int, seen[0]), shape


def check_verifier(verifier: Verifier | Ensemble, samples: Any, condition: Any, rows: int) -> int:
    """How many verifier calls one sample costs.

    Raises:
      ValueError: it does not return one real number per row; raised before anything is compiled.
    """
    jax.eval_shape(lambda s: score(verifier, s, condition, rows), samples)
    return len(members(verifier))


def scaled(one: Ledger, runs: int, verifiers: int) -> Ledger:
    """Cost of some runs, each scored once by ``verifiers``."""
    return Ledger(runs * one.network_calls, runs * (one.verifier_calls + verifiers), runs * one.tokens)


def fits(budget: int, calls: int) -> int:
    """How many times ``calls`` network calls fit into ``budget``.

    Raises:
      ValueError: not once.
    """
    if budget < calls:
        raise ValueError(f"the budget leaves {budget} network calls, but one more candidate or round takes {calls}")
    return budget // calls


def check_sizes(**sizes: int) -> None:
    """Raises ValueError: a size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def check_keep(keep: str) -> None:
    """Raises ValueError: unknown."""
    if keep not in ("best", "all"):
        raise ValueError(f'keep is "best" or "all", got {keep!r}')
