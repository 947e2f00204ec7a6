"""Exact gradients over microbatches: four microbatches give what one batch gives, whatever the weights of the rows.

The loss is ``sum over terms of coefficient * sum / weight`` with both sums over the whole batch, so the weights must be
known before the first gradient.  They do not depend on the parameters: a first scan returns nothing else, and the
compiler drops the network from it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from data.errors import UserError
from train.sharding import batch_spec
from train.task import LossOutput

LossFn = Callable[[Any, Any, Mapping[str, jax.Array]], LossOutput]  # (params, stats, batch)


class Gradients(NamedTuple):
    """Result for the whole batch: float32 gradients, (sum, weight) pairs, new statistics, the total loss."""

    grads: Any
    loss: jax.Array
    pairs: dict[str, tuple[jax.Array, jax.Array]]
    stats: Any


def gradients(
    loss_fn: LossFn,
    params: Any,
    stats: Any,
    batch: Mapping[str, jax.Array],
    *,
    microbatches: int = 1,
    scale: jax.Array | None = None,
    mesh: Mesh | None = None,
    constrain: Callable[[Any], Any] = lambda grads: grads,
) -> Gradients:
    """Gradients of the globally normalised loss.

    Args:
      loss_fn: gives the terms of one microbatch.
      params: in the compute type; the accumulated gradients are float32.
      microbatches: how many parts the batch is cut into; they run one after the other.
      scale: float16's loss scale; the returned gradients are already divided by it.
      mesh: if given, each microbatch keeps the batch's sharding.
      constrain: puts a tree like ``params`` where its gradients belong, so that every microbatch's are reduced at once.
    """

    def objective(p: Any, s: Any, part: Any, weights: Any) -> tuple[jax.Array, Any]:
        out = _checked(loss_fn(p, s, part), s)
        sums, own, coefficients = _columns(out)
        total = _total(sums, weights or jax.lax.stop_gradient(own), coefficients)
        return total if scale is None else total * scale, ((sums, own, coefficients), dict(out.metrics), out.stats)

    if microbatches == 1:
        grads, (columns, metrics, stats) = jax.grad(objective, has_aux=True)(params, stats, batch, None)
        grads = constrain(jax.tree.map(lambda g: g.astype(jnp.float32), grads))
    else:
        parts = split(batch, microbatches, mesh)
        _, every = jax.lax.scan(lambda c, part: (c, _columns(loss_fn(params, stats, part))[1]), None, parts)
        weights = {name: w.sum() for name, w in every.items()}

        def body(carry: Any, part: Any) -> tuple[Any, Any]:
            total, s = carry
            grads, (columns, metrics, s) = jax.grad(objective, has_aux=True)(params, s, part, weights)
            total = constrain(jax.tree.map(lambda t, g: t + g.astype(jnp.float32), total, grads))
            return (total, s), (columns, metrics)

        zeros = constrain(jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params))
        (grads, stats), ((sums, own, coefficients), metrics) = jax.lax.scan(body, (zeros, stats), parts)
        sums, own, metrics = jax.tree.map(lambda x: x.sum(0), (sums, own, metrics))
        columns = sums, own, {name: c[0] for name, c in coefficients.items()}

    if scale is not None:
        grads = jax.tree.map(lambda g: g / scale, grads)
    sums, own, _ = columns
    pairs = {f"loss/{name}": (sums[name], own[name]) for name in sums} | metrics
    return Gradients(grads, _total(*columns), pairs, stats)


def split(batch: Mapping[str, jax.Array], count: int, mesh: Mesh | None = None) -> dict[str, jax.Array]:
    """``[B, ...] -> [count, B / count, ...]``; microbatch ``j`` gets rows ``j, j + count, ...``.

    Interleaved, because the rows of a batch lie in blocks on the devices: every device cuts its own block and nothing
    moves.  Which rows meet in a microbatch does not matter to the result.
    """
    out = {}
    for name, x in batch.items():
        if x.shape[0] % count:
            raise UserError(f"a batch of {x.shape[0]} rows cannot be cut into accumulate={count} equal microbatches")
        part = x.reshape(x.shape[0] // count, count, *x.shape[1:])
        if mesh is not None:
            rows, *rest = batch_spec(name, (part.shape[0], *x.shape[1:]), mesh)
            part = jax.lax.with_sharding_constraint(part, NamedSharding(mesh, P(rows, None, *rest)))
        out[name] = part.swapaxes(0, 1)
        if mesh is not None:
            out[name] = jax.lax.with_sharding_constraint(out[name], NamedSharding(mesh, P(None, rows, *rest)))
    return out


def _columns(out: LossOutput) -> tuple[dict[str, jax.Array], dict[str, jax.Array], dict[str, jax.Array]]:
    """Sums, weights and coefficients by term, float32."""
    names = sorted(out.terms)
    columns = ({n: jnp.asarray(out.terms[n][i], jnp.float32) for n in names} for i in range(3))
    sums, weights, coefficients = columns
    return sums, weights, coefficients


def _total(sums: Mapping[str, Any], weights: Mapping[str, Any], coefficients: Mapping[str, Any]) -> jax.Array:
    """A term without any weight in the whole batch (no valid row) counts nothing."""
    terms = [
        coefficients[n] * jnp.where(weights[n] > 0, sums[n] / jnp.where(weights[n] > 0, weights[n], 1.0), 0.0)
        for n in sums
    ]
    return jnp.sum(jnp.stack(terms))


def _checked(out: LossOutput, stats: Any) -> LossOutput:
    if jax.tree.structure(out.stats) != jax.tree.structure(stats):
        raise ValueError(
            f"Task.loss returned statistics of another structure than it was given: {jax.tree.structure(out.stats)} "
            f"instead of {jax.tree.structure(stats)}; return variables['stats'] unchanged if the model has none"
        )
    return out
