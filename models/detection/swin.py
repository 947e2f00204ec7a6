"""Swin Transformer: attention in windows that shift from block to block (arXiv:2103.14030), as detectors use it: any
image size, a map with its own norm from every resolution.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from models.detection.layers import EPS, Attention, inside, norm_channels
from models.layers.axes import ATTENTION, FEED_FORWARD, Rules, under
from models.layers.conv import zero_outside
from models.layers.dropout import split_key
from models.layers.norm import LayerNorm
from models.layers.stack import scan_stack, stacked
from models.ops.attention import MaskSpec

_BLOCK: Rules = [
    *under("attn", ATTENTION),
    (r"table", (None, None)),
    *FEED_FORWARD,
    (r"norm\d/(scale|bias)", ("norm",)),
]
AXES: Rules = [
    (r"patch/kernel", ("conv", "conv", None, "embed")),
    (r"patch/bias", ("norm",)),
    (r"(patch_norm|norms/\d+)/(scale|bias)", ("norm",)),
    *under(r"layers/\d+/(plain|shifted)", _BLOCK, stacked=True),
    (r"merges/\d+/norm/(scale|bias)", ("norm",)),
    (r"merges/\d+/reduce/kernel", (None, "embed")),
]
STD = 0.02  # of fresh weights
PATCH = 4  # pixels


def _linear(din: int, dout: int, *, use_bias: bool = True, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Linear:
    init = nnx.initializers.truncated_normal(STD)
    return nnx.Linear(din, dout, use_bias=use_bias, kernel_init=init, dtype=dtype, rngs=rngs)


class Block(nnx.Module):
    """Attention within windows with a learned bias per offset, then a feed-forward; both around shortcuts."""

    def __init__(self, dim: int, heads: int, window: int, *, shift: int, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm1, self.norm2 = LayerNorm(dim, eps=EPS), LayerNorm(dim, eps=EPS)
        self.attn = Attention(dim, heads, dtype=dtype, rngs=rngs)
        self.table = nnx.Param(STD * jax.random.normal(rngs.params(), ((2 * window - 1) ** 2, heads)))
        self.up = _linear(dim, 4 * dim, dtype=dtype, rngs=rngs)
        self.down = _linear(4 * dim, dim, dtype=dtype, rngs=rngs)
        self.window, self.shift = window, shift

    def __call__(self, x: jax.Array, mask: jax.Array | None, rate: jax.Array, key: jax.Array | None) -> jax.Array:
        """x [b, h, w, dim], mask [b, h, w] (real cells), rate of dropped branches -> [b, h, w, dim]."""
        x = x + drop_path(self.attend(norm_channels(self.norm1, x), mask), rate, split_key(key, 0))
        y = norm_channels(self.norm2, x)
        y = self.down(jax.nn.gelu(self.up(y), approximate=False))
        return x + drop_path(y, rate, split_key(key, 1))

    def attend(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Zeros complete the last windows; they are keys like others, as in the release, unless the size is known."""
        b, h, w, dim = x.shape
        rows, columns = (-(-size // self.window) * self.window for size in (h, w))
        fill = ((0, 0), (0, rows - h), (0, columns - w), (0, 0))
        windows = self._windows(jnp.pad(x, fill))
        regions = self._windows(jnp.broadcast_to(self._regions(rows, columns), (b, rows, columns))[..., None])[..., 0]
        keys = regions
        if mask is not None:
            real = self._windows(jnp.pad(mask[..., None], fill))[..., 0]
            keys = jnp.where(real, regions, -1)
        offsets = self.table[...][_offsets(self.window)]  # [window², window², heads]
        spec = MaskSpec(q_segments=regions, kv_segments=keys)
        y = self.attn(windows, spec, offsets.transpose(2, 0, 1)[None])
        y = y.reshape(b, rows // self.window, columns // self.window, self.window, self.window, dim)
        y = y.transpose(0, 1, 3, 2, 4, 5).reshape(b, rows, columns, dim)
        return jnp.roll(y, (self.shift, self.shift), (1, 2))[:, :h, :w]

    def _windows(self, x: jax.Array) -> jax.Array:
        """[b, rows, columns, c] -> [b · windows, window², c], after the shift."""
        b, rows, columns, c = x.shape
        x = jnp.roll(x, (-self.shift, -self.shift), (1, 2))
        x = x.reshape(b, rows // self.window, self.window, columns // self.window, self.window, c)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, self.window**2, c)

    def _regions(self, rows: int, columns: int) -> np.ndarray:
        """[rows, columns] int: cells that the shift brings together from opposite borders have different numbers."""

        def part(size):
            position = (np.arange(size) - self.shift) % size  # after the shift
            return (position >= size - self.window).astype(int) + (position >= size - self.shift) * (self.shift > 0)

        return 3 * part(rows)[:, None] + part(columns)


def _offsets(window: int) -> np.ndarray:
    """[window², window²]: row of the bias table for every query and key."""
    cell = np.stack(np.divmod(np.arange(window**2), window), -1)
    down, right = np.moveaxis(cell[:, None] - cell + window - 1, -1, 0)
    return down * (2 * window - 1) + right


def drop_path(x: jax.Array, rate: jax.Array, key: jax.Array | None) -> jax.Array:
    """Drops a whole branch of some rows and scales the rest up (stochastic depth); the identity without a key.

    ``key`` is one key, or one per row [b].
    """
    if key is None:
        return x
    b = len(x)
    keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - rate))(key if key.ndim else jax.random.split(key, b))
    return jnp.where(keep.reshape(b, *[1] * (x.ndim - 1)), x / (1 - rate), 0).astype(x.dtype)


class Pair(nnx.Module):
    """Two blocks, the second with its windows shifted by half."""

    def __init__(self, dim: int, heads: int, window: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.plain = Block(dim, heads, window, shift=0, dtype=dtype, rngs=rngs)
        self.shifted = Block(dim, heads, window, shift=window // 2, dtype=dtype, rngs=rngs)


class Merge(nnx.Module):
    """Two by two cells become one of twice the channels."""

    def __init__(self, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm = LayerNorm(4 * dim, eps=EPS)
        self.reduce = _linear(4 * dim, 2 * dim, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, h, w, dim] -> [b, ceil(h / 2), ceil(w / 2), 2 dim]."""
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        parts = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]  # down first
        return self.reduce(norm_channels(self.norm, jnp.concatenate(parts, -1)))


class Swin(nnx.Module):
    """Images -> maps at strides 4, 8, 16 and 32; the defaults are Swin-B.

    Args:
      dim: channels of the first map; they double from map to map.
      depths: blocks at each resolution, even numbers.
      heads: attention heads at each resolution.
      window: side of a window in cells.
      drop_path: rate of dropped branches in the last block, growing from 0 in the first; active with a ``key``.
      remat: see ``models/layers/stack.py``.
      dtype: type of matrix products.
    """

    def __init__(
        self,
        *,
        dim: int = 128,
        depths: Sequence[int] = (2, 2, 18, 2),
        heads: Sequence[int] = (4, 8, 16, 32),
        window: int = 7,
        drop_path: float = 0.3,
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if len(depths) != len(heads) or any(depth % 2 or depth < 2 for depth in depths):
            raise ValueError(f"depths {tuple(depths)} and heads {tuple(heads)}: expected as many, and even depths")
        self.channels = tuple(dim * 2**i for i in range(len(depths)))
        self.strides = tuple(PATCH * 2**i for i in range(len(depths)))
        self.patch = nnx.Conv(3, dim, (PATCH, PATCH), strides=PATCH, padding="VALID", dtype=dtype, rngs=rngs)
        self.patch_norm = LayerNorm(dim, eps=EPS)

        def layer(width, heads, depth):
            return stacked(lambda rngs: Pair(width, heads, window, dtype=dtype, rngs=rngs), depth // 2, rngs)

        self.layers = nnx.List([layer(*sizes) for sizes in zip(self.channels, heads, depths, strict=True)])
        self.merges = nnx.List([Merge(width, dtype=dtype, rngs=rngs) for width in self.channels[:-1]])
        self.norms = nnx.List([LayerNorm(width, eps=EPS) for width in self.channels])
        rates = np.linspace(0, drop_path, sum(depths), dtype=np.float32).reshape(-1, 2)
        self.rates = tuple(map(tuple, rates.tolist()))
        self.depths, self.remat = tuple(depths), remat

    def __call__(self, images: jax.Array, size: jax.Array | None = None, key: jax.Array | None = None):
        """images [b, H, W, 3] normalised, zero outside ``size`` (see ``layers``) -> a map per resolution, finest first.

        ``key``, one or one per row [b], drops branches at random; None = none.
        """
        _, height, width, _ = images.shape
        images = jnp.pad(images, ((0, 0), (0, -height % PATCH), (0, -width % PATCH), (0, 0)))
        x, out, first = norm_channels(self.patch_norm, self.patch(images)), [], 0
        for i, stride in enumerate(self.strides):
            mask = inside(size, stride, x.shape)
            pairs = slice(first, first := first + self.depths[i] // 2)

            def pair(pair, x, index, row, mask=mask, start=pairs.start):
                number = 2 * (start + index)
                x = pair.plain(x, mask, row[0], split_key(key, number))
                return pair.shifted(x, mask, row[1], split_key(key, number + 1)), None

            rates = jnp.asarray(self.rates[pairs], jnp.float32)
            x, _ = scan_stack(self.layers[i], zero_outside(x, mask), pair, rates, remat=self.remat)
            out.append(norm_channels(self.norms[i], x))
            if i < len(self.merges):
                x = self.merges[i](zero_outside(x, mask))
        return tuple(out)
