"""A generator against discriminators, as one loss: hinge losses and feature matching (as Vocos, arXiv:2306.00814).

Both sides are updated by the same step.  What they may not change of each other is held by ``stop_gradient``: the
discriminators' losses see the made wave as data, the generator's see the discriminators' parameters as constants.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Judge = Callable[[Any, jax.Array], dict[str, list[list[jax.Array]]]]
"""(discriminators' parameters, waves [b, samples]) -> by kind, for every discriminator: features, the verdicts last."""


def losses(judge: Judge, params: Any, made: jax.Array, truth: jax.Array) -> dict[str, jax.Array]:
    """Per row [b], averaged over the discriminators of each kind.

    ``fool_<kind>``: the generator's hinge loss, mean of max(0, 1 - verdict on the made wave).
    ``match_<kind>``: mean absolute difference of the features, summed over layers; also the generator's.
    ``tell_<kind>``: the discriminators' hinge loss, mean of max(0, 1 - verdict on the truth) + max(0, 1 + on the made).
    """
    on_truth = judge(params, truth)
    on_made = judge(params, jax.lax.stop_gradient(made))  # equal to the next in numbers; XLA computes them once
    for_generator = judge(jax.lax.stop_gradient(params), made)
    out = {}
    for kind in on_truth:
        if not on_truth[kind]:
            continue
        recorded, detached, reached = on_truth[kind], on_made[kind], for_generator[kind]
        out[f"fool_{kind}"] = _mean([_rows(jax.nn.relu(1 - judged[-1])) for judged in reached])
        out[f"match_{kind}"] = _mean([_matching(a, b) for a, b in zip(reached, recorded, strict=True)])
        out[f"tell_{kind}"] = _mean(
            [
                _rows(jax.nn.relu(1 - real[-1])) + _rows(jax.nn.relu(1 + fake[-1]))
                for real, fake in zip(recorded, detached, strict=True)
            ]
        )
    return out


def _matching(made: Sequence[jax.Array], truth: Sequence[jax.Array]) -> jax.Array:
    parts = [_rows(jnp.abs(a - jax.lax.stop_gradient(b))) for a, b in zip(made[:-1], truth[:-1], strict=True)]
    return jnp.sum(jnp.stack(parts), 0)


def _rows(x: jax.Array) -> jax.Array:
    return x.mean(tuple(range(1, x.ndim)))


def _mean(rows: Sequence[jax.Array]) -> jax.Array:
    return jnp.stack(rows).mean(0)
