"""How long a text takes: frames of every symbol from its neighbours, summed.

Trained on nothing but the lengths of utterances, so no alignment is needed.  What is predicted is the average pace of
the data; a reference clip gives the speaker's own, by which the rest is scaled (``pace``).

Shapes: b batch, n text symbols.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from models.layers.conv import Conv1D, zero_outside
from models.layers.linear import Table, linear
from models.layers.norm import LayerNorm

START = 8.0  # frames of a symbol before training: 85 ms at the released frame rate

AXES: list[tuple[str, tuple[str | None, ...]]] = [
    (r"embed/table", ("vocab", "text")),
    (r"convs/\d+/kernel", ("conv", None, "norm")),
    (r"(convs|norms)/\d+/(bias|scale)", ("norm",)),
    (r"output/kernel", (None, "norm")),
    (r"output/bias", ("norm",)),
    (r"edge", ()),
]


class DurationModel(nnx.Module):
    """Residual convolutions over the symbols, then one positive number for each.

    Args:
      vocab: number of symbols.
      dim: width.
      layers, width: of the convolutions; a symbol sees ``layers * (width // 2)`` neighbours on either side.
    """

    def __init__(self, vocab: int, dim: int = 64, layers: int = 3, width: int = 5, *, rngs: nnx.Rngs):
        self.embed = Table(vocab + 1, dim, rngs=rngs)
        self.convs = nnx.List([Conv1D(dim, dim, width, dtype=jnp.float32, rngs=rngs) for _ in range(layers)])
        self.norms = nnx.List([LayerNorm(dim) for _ in range(layers)])
        self.output = linear(dim, 1, rngs=rngs, zero=True)
        self.edge = nnx.Param(jnp.zeros(()))  # log of the silence around an utterance, frames

    def __call__(self, text: jax.Array) -> jax.Array:
        """text [b, n] int, -1 = padding -> frames [b, n] float32, 0 at padding."""
        real = text >= 0
        x = zero_outside(self.embed(text + 1), real)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = x + zero_outside(jax.nn.gelu(conv(zero_outside(norm(x), real))), real)
        frames = jnp.exp(self.output(x)[..., 0].astype(jnp.float32) + math.log(START))
        return jnp.where(real, frames, 0.0)

    def total(self, text: jax.Array) -> jax.Array:
        """Frames of whole utterances [b], the silence around them included."""
        return jnp.exp(self.edge[...]) + self(text).sum(-1)

    def pace(self, text: jax.Array, ref_symbols: jax.Array, ref_frames: jax.Array) -> jax.Array:
        """Frames [b] of what follows the reference, at the reference's pace.

        Args:
          text: [b, n] symbols of the reference and, after them, of the new speech.
          ref_symbols: [b] how many of them are the reference's.
          ref_frames: [b] how long it takes; 0 = no reference, the pace of the data.
        """
        frames, edge = self(text), jnp.exp(self.edge[...])
        inside = jnp.arange(text.shape[1]) < ref_symbols[:, None]
        known, new = jnp.where(inside, frames, 0.0).sum(-1), jnp.where(inside, 0.0, frames).sum(-1)
        return new * jnp.where(ref_frames > 0, ref_frames / (edge + known), 1.0)


def log_error(predicted: jax.Array, frames: jax.Array) -> jax.Array:
    """Logarithm of the ratio of predicted to real frames: an error counts the same in short and long utterances."""
    return jnp.log(predicted) - jnp.log(jnp.maximum(frames, 1).astype(jnp.float32))
