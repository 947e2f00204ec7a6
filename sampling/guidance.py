"""Guides: they call the network and mix its answers, and return the mix with its components.

Correctors need the components, so they cost no further network call.  A denoiser is ``(x [b, ...], scalar t, condition)
-> Prediction``; a condition is any pytree of arrays with leading dimension b.  One guidance scale everywhere:
û + w·(ĉ − û); w = 1 is the conditional model, w = 0 the unconditional one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from sampling.paths import expand
from sampling.prediction import Prediction

Denoiser = Callable[[jax.Array, jax.Array, Any], Prediction]


class Guided(NamedTuple):
    """One evaluation: what the solver follows, and the predictions it was mixed from."""

    mix: Prediction
    components: tuple[Prediction, ...]


class Guide(Protocol):
    """Everything a solver sees of the networks."""

    calls: int
    """Network calls that one evaluation costs each output row."""

    def __call__(self, x: jax.Array, t: jax.Array) -> Guided: ...


class Conditional:
    """No guidance: the denoiser under its condition."""

    calls = 1

    def __init__(self, denoiser: Denoiser, condition: Any):
        self.denoiser, self.condition = denoiser, condition

    def __call__(self, x: jax.Array, t: jax.Array) -> Guided:
        prediction = self.denoiser(x, t, self.condition)
        return Guided(prediction, (prediction,))


class ClassifierFree:
    """Classifier-free guidance (https://arxiv.org/abs/2207.12598), both halves in one batched network call.

    Args:
      denoiser: the network.
      condition, null: the condition and its dropped counterpart, same structure and shapes; stacked once, here, so a
        scan over time carries no concatenation of its constants.
      weight: w, scalar or one per row [b]; traced, so another scale does not recompile.
    """

    calls = 2

    def __init__(self, denoiser: Denoiser, condition: Any, null: Any, weight: float | jax.Array):
        self.denoiser = denoiser
        self.both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), condition, null)
        self.weight = jnp.asarray(weight)

    def __call__(self, x: jax.Array, t: jax.Array) -> Guided:
        both = self.denoiser(jnp.concatenate([x, x]), t, self.both)
        given, null = jnp.split(both.value, 2)
        weight = expand(self.weight.astype(given.dtype), given)
        mix = null + weight * (given - null)
        kind = both.kind
        return Guided(Prediction(mix, kind), (Prediction(given, kind), Prediction(null, kind)))
