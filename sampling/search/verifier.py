"""Verifiers: what a search maximises.  One scores samples; several are joined by rank, since their scales differ.

    def sharp(samples, condition):         # [b, ...], any pytree -> [b], higher is better
        return classifier(samples)[jnp.arange(len(samples)), condition["label"]]

    Ensemble((sharp, likeness))            # mean rank over both

A verifier sees finished samples (or one-step estimates of them) of b prompts with the prompts' conditions.  It is no
judge: a search finds its weaknesses, so report quality by something the search never saw.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Verifier = Callable[[Any, Any], jax.Array]


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Several verifiers; a candidate is as good as the mean of its ranks (Ma et al., https://arxiv.org/abs/2501.09732)."""

    members: tuple[Verifier, ...]

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError("an ensemble needs at least one verifier")


def members(verifier: Verifier | Ensemble) -> tuple[Verifier, ...]:
    """The verifiers that score a sample: what one scored sample counts in the ledger."""
    return verifier.members if isinstance(verifier, Ensemble) else (verifier,)


def score(verifier: Verifier | Ensemble, samples: Any, condition: Any, rows: int) -> jax.Array:
    """[rows, members] scores, in float32 at least; NaN marks a sample that could not be judged.

    Raises:
      ValueError: a verifier does not return one real number per row.  Raised while tracing.
    """
    out = []
    for member in members(verifier):
        one = member(samples, condition)
        real = isinstance(one, jax.Array) and jnp.isrealobj(one) and one.dtype != bool
        if not real or one.shape != (rows,):
            got = f"{one.dtype}{list(one.shape)}" if isinstance(one, jax.Array) else type(one).__name__
            name = getattr(member, "__name__", type(member).__name__)
            raise ValueError(f"the verifier {name} must return one real score for each of {rows} samples, got {got}")
        out.append(one.astype(jnp.promote_types(one.dtype, jnp.float32)))
    return jnp.stack(out, axis=-1)


def merit(scores: jax.Array) -> jax.Array:
    """What is maximised over n candidates: [n, b, members] -> [n, b].

    One verifier's own scores, or minus the mean rank of several, of which 1 is the best and equal scores share the
    better one.  Whatever a member could not judge is below everything.
    """
    known = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
    joined = known[..., 0] if scores.shape[-1] == 1 else -ranks(known).mean(axis=-1, dtype=scores.dtype)
    joined = jnp.maximum(joined, jnp.finfo(joined.dtype).min)  # an honest −∞ stays above what could not be judged
    return jnp.where(jnp.isnan(scores).any(axis=-1), -jnp.inf, joined)


def ranks(scores: jax.Array) -> jax.Array:
    """Rank of each score [n, ...] along the first axis, 1 = the highest; 1 + how many are strictly higher."""
    n = len(scores)
    columns = scores.reshape(n, -1).T
    higher = jax.vmap(lambda s: n - jnp.searchsorted(jnp.sort(s), s, side="right"))(columns)
    return 1 + higher.T.reshape(scores.shape)


def host(function: Callable[..., Any]) -> Verifier:
    """A verifier that runs in Python: ``function`` gets numpy samples [b, ...] and conditions, returns b scores.

    A search calls it for one candidate of all prompts at a time, from inside the compiled program.
    """

    def verifier(samples: Any, condition: Any) -> jax.Array:
        rows = jax.tree.leaves(samples)[0].shape[0]
        shape = jax.ShapeDtypeStruct((rows,), jnp.float32)
        return jax.pure_callback(function, shape, samples, condition, vmap_method="sequential")

    return verifier
