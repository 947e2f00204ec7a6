"""Text for non-autoregressive speech: symbols, padded with filler to the mel's length, refined by ConvNeXt V2."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.layers.conv import ConvNeXtV2Block, zero_outside
from models.layers.embed import position_sinusoid
from models.layers.linear import Table
from models.layers.stack import run_stack, stacked


class TextEncoder(nnx.Module):
    """Text embedding of F5-TTS (arXiv:2410.06885); without blocks, the one of E2-TTS.

    Args:
      vocab: number of symbols; the table has one more row, row 0 being the filler.
      blocks: ConvNeXt V2 blocks; 0 also leaves out the absolute positions.
      mask_filler: zero the filler before the first and after every block (v1); else filler flows through (v0).
      upsample: spread the encoded symbols evenly over the frames instead of leaving them at the front.
      exact: GRN counts each row's own frames only; else those of the longest row, as the release does.
      positions: size of the release's table of absolute positions, whose last entry serves all later frames; None = no
        end.
    """

    def __init__(
        self,
        vocab: int,
        dim: int,
        *,
        blocks: int,
        mask_filler: bool,
        upsample: bool,
        exact: bool,
        positions: int | None = None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        if upsample and not mask_filler:
            raise ValueError("text_average_upsampling needs text_mask_padding: it must tell symbols from filler")
        self.embed = Table(vocab + 1, dim, rngs=rngs, dtype=dtype)
        self.blocks = (
            stacked(lambda r: ConvNeXtV2Block(dim, 2 * dim, dtype=dtype, rngs=r), blocks, rngs) if blocks else None
        )
        self.mask_filler, self.upsample, self.exact, self.positions = mask_filler, upsample, exact, positions

    def __call__(
        self, text: jax.Array, lengths: jax.Array, frames: int, drop: jax.Array, *, scan: bool, remat: str
    ) -> jax.Array:
        """text [b, nt] int (-1 = padding), lengths [b] mel frames, drop [b] bool -> [b, frames, dim].

        Symbols behind a row's last frame are cut.  Frames behind it are zero in exact mode.
        """
        ids = text[:, :frames] + 1
        ids = jnp.pad(ids, ((0, 0), (0, frames - ids.shape[1])))
        inside = jnp.arange(frames) < lengths[:, None]
        ids = jnp.where(inside, ids, 0)
        symbol = ids > 0  # before dropping: the unconditional branch keeps the text's extent
        x = zero_outside(self.embed(jnp.where(drop[:, None], 0, ids)), inside)
        if self.blocks is not None:
            x = self._refine(x, inside, symbol, scan, remat)
        if self.upsample:
            x = spread_symbols(x, symbol.sum(-1), lengths)
        return x

    def _refine(self, x, inside, symbol, scan, remat):
        positions = position_sinusoid(x.shape[1], x.shape[2], self.positions).astype(x.dtype)
        keep = symbol if self.mask_filler else inside if self.exact else None
        energy = inside if self.exact else None
        x = zero_outside(x + zero_outside(positions[None], inside), keep)

        def layer(block, x, index):
            return zero_outside(block(x, energy), keep)

        assert self.blocks is not None
        return run_stack(self.blocks, x, layer, scan=scan, remat=remat)


def spread_symbols(x: jax.Array, count: jax.Array, lengths: jax.Array) -> jax.Array:
    """Repeats the first ``count`` vectors of every row so that they fill ``lengths`` frames.

    Each is repeated floor(length / count) times, the last ``length mod count`` of them once more.

    Args:
      x: [b, t, dim]; count, lengths: [b] int.  Rows without symbols, and frames past the length, give zeros.
    """
    frame = jnp.arange(x.shape[1])[None]
    n, length = jnp.maximum(count, 1)[:, None], lengths[:, None]
    times, extra = length // n, length % n
    plain = n - extra  # symbols repeated `times` times; the others times + 1
    index = jnp.where(
        frame < plain * times, frame // jnp.maximum(times, 1), plain + (frame - plain * times) // (times + 1)
    )
    filled = (frame < length) & (count[:, None] > 0)
    rows = jnp.take_along_axis(x, jnp.clip(index, 0, x.shape[1] - 1)[..., None], axis=1)
    return zero_outside(rows, filled)
