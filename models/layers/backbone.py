"""What every network of flow-matching speech is to its callers: text encoded once, then velocities."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.layers.conv import ConvPositionEmbedding, zero_outside
from models.layers.embed import TimeEmbedding
from models.ops.precision import accumulation_dtype

Padding = Literal["exact", "reference"]


class SpeechBackbone(nnx.Module):
    """Noisy mel, masked mel, text and time -> velocity of the flow.

    Shapes: b batch, t mel frames, nt text symbols, m mel bins.  A subclass makes the parts named here and defines
    ``parts``.
    """

    time: TimeEmbedding
    text: Any  # TextEncoder or alike
    input: nnx.Linear
    position: ConvPositionEmbedding
    output: nnx.Linear
    exact: bool
    scan: bool
    remat: str
    dtype: DTypeLike

    def __call__(self, x, cond, text, time, lengths=None, drop_audio=False, drop_text=False, key=None) -> jax.Array:
        """``encode_text`` then ``velocity``: [b, t, m]."""
        encoded = self.encode_text(text, lengths, x.shape[1], drop_text)
        return self.velocity(x, cond, encoded, time, lengths, drop_audio, key)

    def encode_text(
        self, text: jax.Array, lengths: jax.Array | None, frames: int, drop: jax.Array | bool = False
    ) -> Any:
        """Text encoding, which sampling computes once for all steps.

        Args:
          text: [b, nt] int, -1 = padding.
          lengths: [b] mel frames of each row; None = ``frames`` for all.
          frames: padded length (static).
          drop: bool or [b] bool: rows that get filler instead of their text (for guidance).

        Returns:
          An array, or a pytree of arrays, with leading dimension b; [b, frames, text_dim] unless a subclass differs.
        """
        batch = text.shape[0]
        lengths = jnp.full(batch, frames) if lengths is None else lengths
        return self.text(text, lengths, frames, per_row(drop, batch), scan=self.scan, remat=self.remat)

    def velocity(
        self,
        x: jax.Array,
        cond: jax.Array,
        encoded: Any,
        time: jax.Array,
        lengths: jax.Array | None = None,
        drop_audio: jax.Array | bool = False,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Velocity at ``x``.

        Args:
          x, cond: [b, t, m] noisy mel; known mel frames, zero where they are to be generated.
          encoded: of ``encode_text``.
          time: [b] or scalar in [0, 1]; 0 = noise.
          lengths: [b] frames of each row; None = all.
          drop_audio: bool or [b] bool: rows whose ``cond`` is zeroed.
          key: for dropout: one key, or keys per row [b]; None = no dropout.

        Returns:
          [b, t, m] float32; in exact mode zero past each row's length.
        """
        return self.parts(x, cond, encoded, time, lengths, drop_audio, key)["output"]

    def parts(
        self,
        x: jax.Array,
        cond: jax.Array,
        encoded: Any,
        time: jax.Array,
        lengths: jax.Array | None = None,
        drop_audio: jax.Array | bool = False,
        key: jax.Array | None = None,
        *,
        keep_layers: bool = False,
    ) -> dict[str, Any]:
        """``velocity`` ("output") and what led to it: "time", "input", "norm", and with ``keep_layers`` "layers",
        stacked; for finding where two implementations part."""
        raise NotImplementedError

    def embed(self, signals: Sequence[jax.Array], inside: jax.Array | None) -> jax.Array:
        """What enters the blocks, [b, t, dim]: the signals side by side, projected, plus their positions."""
        x = self.input(jnp.concatenate([a.astype(self.dtype) for a in signals], -1))
        return x + self.position(x, inside)

    def embed_time(self, time: jax.Array | float, batch: int) -> jax.Array:
        """time [b] or scalar -> [b, dim]."""
        return self.time(jnp.broadcast_to(jnp.asarray(time, jnp.float32), (batch,)))

    def to_mel(self, x: jax.Array, inside: jax.Array | None) -> jax.Array:
        """What leaves the last norm, [b, t, dim] -> [b, t, m] float32; in exact mode zero outside the rows."""
        x = self.output(x)
        x = x.astype(accumulation_dtype(x.dtype))
        return zero_outside(x, inside) if self.exact else x


def per_row(flag: jax.Array | bool, batch: int) -> jax.Array:
    """bool or [b] bool -> [b] bool."""
    return jnp.broadcast_to(jnp.asarray(flag, bool), (batch,))


def drop_rows(x: jax.Array, drop: jax.Array | bool) -> jax.Array:
    """x [b, t, m] with zeros in the rows that are dropped."""
    return jnp.where(per_row(drop, len(x))[:, None, None], 0, x)


def frames_inside(lengths: jax.Array | None, frames: int) -> jax.Array | None:
    """[b, frames] bool: which frames are real; None = all."""
    return None if lengths is None else jnp.arange(frames) < lengths[:, None]


def check_padding(padding: str) -> bool:
    """Whether it is "exact".

    Raises:
      ValueError: it is neither that nor "reference".
    """
    if padding not in ("exact", "reference"):
        raise ValueError(f"padding is {padding!r}; expected 'exact' or 'reference'")
    return padding == "exact"
