"""Filling in masked frames of a sequence: how F5-TTS speaks (text, a reference clip, and silence to be filled).

The network is given as two callables, so the text encoding is computed once, outside the scan over time; the
conditional and the unconditional one in one batch.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sampling.guidance import ClassifierFree, Conditional
from sampling.ledger import Ledger
from sampling.prediction import Prediction
from sampling.sample import sample
from sampling.solvers import Solver


class InfillNetwork(NamedTuple):
    """A speech network under fixed parameters.

    Attributes:
      encode: (text [b, n] ids, lengths [b] or None, drop [b] bool) -> encoding, any pytree of arrays with leading
        dimension b.
      predict: (x [b, t, m], clip [b, t, m], encoding, time scalar, lengths [b] or None) -> [b, t, m].
      kind: what ``predict`` returns: "velocity" or "data".
    """

    encode: Callable[..., Any]
    predict: Callable[..., jax.Array]
    kind: str = "velocity"


class Infilled(NamedTuple):
    """Result of ``infill``.

    Attributes:
      out: [b, t, m], the known frames pasted in.
      states: see ``sampling.sample.sample``.
      ledger: costs per row.
    """

    out: jax.Array
    states: jax.Array | None
    ledger: Ledger


def infill(
    network: InfillNetwork,
    clip: ArrayLike,
    known: ArrayLike,
    text: ArrayLike,
    lengths: ArrayLike | None,
    noise: ArrayLike,
    grid: np.ndarray,
    *,
    weight: float | jax.Array | None,
    solver: Solver | None = None,
    keep: str | Sequence[int] = "final",
) -> Infilled:
    """Fills the frames of ``clip`` that are not ``known``, speaking ``text``.

    Args:
      network: the two callables.
      clip: [b, t, m] mel frames; what is not known is ignored.
      known: [b, t] bool.
      text: [b, n] int32 ids of the whole utterance, the known part's words included; −1 pads.
      lengths: [b] frames of each row, padding after; None for the release's unmasked single row.
      noise: [b, t, m] state at ``grid[0]``.
      grid: host times, see ``sampling.grids``.
      weight: guidance weight w (F5's ``cfg_strength`` is w − 1), scalar or [b]; None = no guidance, half the calls.
      solver, keep: see ``sampling.sample.sample``.
    """
    clip, text = jnp.asarray(clip), jnp.asarray(text)
    lengths = None if lengths is None else jnp.asarray(lengths)
    known = jnp.asarray(known)[..., None]
    given = jnp.where(known, clip, 0.0)
    rows = clip.shape[0]
    keep_text = jnp.zeros(rows, bool)

    def denoise(x: jax.Array, t: jax.Array, c: dict[str, Any]) -> Prediction:
        return Prediction(network.predict(x, c["clip"], c["text"], t, c["lengths"]), network.kind)

    if weight is None:
        condition = {"clip": given, "text": network.encode(text, lengths, keep_text), "lengths": lengths}
        guide = Conditional(denoise, condition)
    else:
        twice = None if lengths is None else jnp.concatenate([lengths, lengths])
        drop = jnp.concatenate([keep_text, ~keep_text])
        encoded = network.encode(jnp.concatenate([text, text]), twice, drop)
        spoken, unspoken = (jax.tree.map(lambda a, i=i: jnp.split(a, 2)[i], encoded) for i in range(2))
        condition = {"clip": given, "text": spoken, "lengths": lengths}
        null = {"clip": jnp.zeros_like(given), "text": unspoken, "lengths": lengths}
        guide = ClassifierFree(denoise, condition, null, weight)
    result = sample(guide, jnp.asarray(noise), grid, solver=solver, keep=keep)
    return Infilled(jnp.where(known, clip, result.x), result.states, result.ledger)


def least_frames(asked: np.ndarray, symbols: np.ndarray, known: np.ndarray, most: int = 65536) -> np.ndarray:
    """Frames of each row [b]: as ``asked``, but more than its text symbols and its known frames, up to ``most``."""
    return np.minimum(np.maximum(np.maximum(symbols, known) + 1, asked), most).astype(np.int32)
