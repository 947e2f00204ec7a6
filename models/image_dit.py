"""A diffusion transformer for small class-conditional images (DiT, arXiv:2212.09748).

Shapes: b batch, h x w pixels, c channels, t = h·w / patch² tokens.  Every part is differentiable in forward mode, time
included, so objectives that need ``jax.jvp`` (MeanFlow, sCM) train the same network as all others.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike

from models.layers.adaln import AdaLNBlock, final_norm
from models.layers.axes import BLOCK, MODULATION, TIME, under
from models.layers.embed import TimeEmbedding
from models.layers.linear import Table, linear
from models.layers.rope import rope_phases
from models.layers.stack import run_stack, stacked
from models.ops.attention import MaskSpec
from models.ops.precision import accumulation_dtype

# Path of a parameter -> logical axis of each dimension; ``train/sharding.py`` maps those to mesh axes.
AXES: list[tuple[str, tuple[str | None, ...]]] = [
    *under("time", TIME),
    *under("span", TIME),
    (r"label/table", ("vocab", "embed")),
    (r"position", (None, "embed")),
    (r"input/kernel", (None, "embed")),
    (r"input/bias", ("norm",)),
    *under("blocks", BLOCK, stacked=True),
    *under("modulation", MODULATION),
    (r"output/kernel", ("embed", None)),
    (r"output/bias", (None,)),
    *under("uncertainty", MODULATION),
]


class ImageDiT(nnx.Module):
    """Noisy image, time and class in, a prediction of the image's shape out.

    Args:
      dim, depth, heads, ff_mult: transformer.
      patch: side of the square of pixels that is one token.
      shape: (h, w, c) of an image.
      classes: labels are 0 .. classes - 1; the label ``classes`` means "any".
      span: the network takes a second time, the length of the step that it predicts (MeanFlow, shortcut models).
      uncertainty: the network has ``log_variance(time)``, the learned weighting of EDM2 and sCM.
      time_scale: of the sinusoids of both times, see ``TimeEmbedding``.
      remat, scan_layers: see ``models/layers/stack.py``.
      attn_impl: see ``models/ops/attention.py``; "forward" is certain to stay differentiable in forward mode.
      dtype: type of matrix products; parameters are float32.
    """

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        heads: int,
        ff_mult: float = 4,
        patch: int = 2,
        shape: Sequence[int] = (8, 8, 1),
        classes: int = 10,
        span: bool = False,
        uncertainty: bool = False,
        time_scale: float = 1000.0,
        remat: str = "none",
        scan_layers: bool = True,
        attn_impl: str = "auto",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        height, width, channels = shape
        if height % patch or width % patch:
            raise ValueError(f"patch is {patch}; expected a divisor of height and width, {height} x {width}")
        if dim % heads or dim // heads % 4:
            raise ValueError(f"dim {dim} over {heads} heads; expected heads of a multiple of 4 numbers")
        rows, columns = height // patch, width // patch
        self.time = TimeEmbedding(dim, scale=time_scale, rngs=rngs, dtype=dtype)
        self.span = TimeEmbedding(dim, scale=time_scale, rngs=rngs, dtype=dtype) if span else None
        self.label = Table(classes + 1, dim, rngs=rngs, dtype=dtype)
        self.position = nnx.Param(0.02 * jax.random.normal(rngs.params(), (rows * columns, dim)))
        self.input = linear(patch * patch * channels, dim, rngs=rngs, dtype=dtype)

        def block(rngs):
            return AdaLNBlock(
                dim,
                heads,
                dim // heads,
                int(dim * ff_mult),
                qk_norm="rms_norm",  # keeps derivatives by the time tame
                rate=0.0,
                attn_impl=attn_impl,
                dtype=dtype,
                rngs=rngs,
            )

        self.blocks = stacked(block, depth, rngs)
        self.modulation = linear(dim, 2 * dim, rngs=rngs, dtype=dtype, zero=True)
        self.output = linear(dim, patch * patch * channels, rngs=rngs, dtype=dtype, zero=True)
        self.uncertainty = linear(dim, 1, rngs=rngs, zero=True) if uncertainty else None
        self.patch, self.grid, self.dim_head = patch, (rows, columns), dim // heads
        self.scan, self.remat, self.dtype = scan_layers, remat, dtype

    def __call__(self, x: jax.Array, time: jax.Array, label: jax.Array, span: jax.Array | None = None) -> jax.Array:
        """The prediction.

        Args:
          x: [b, h, w, c], of about unit variance.
          time: [b].
          label: [b] int32.
          span: [b], only of networks with a second time; None = 0.

        Returns:
          [b, h, w, c] float32.
        """
        silu = jax.nn.silu(self.condition(time, label, span)).astype(self.dtype)
        rows, columns = self.grid
        tokens = rearrange(x, "b (r p) (s q) c -> b (r s) (p q c)", p=self.patch, q=self.patch)
        y = self.input(tokens.astype(self.dtype)) + self.position[...].astype(self.dtype)
        phases = grid_phases(rows, columns, self.dim_head)

        def layer(block, y, index):
            return block(y, silu, phases, MaskSpec(), None)

        y = run_stack(self.blocks, y, layer, scan=self.scan, remat=self.remat)
        y = self.output(final_norm(self.modulation, y, silu))
        y = y.astype(accumulation_dtype(y.dtype))
        return rearrange(y, "b (r s) (p q c) -> b (r p) (s q) c", r=rows, p=self.patch, q=self.patch)

    def condition(self, time: jax.Array, label: jax.Array, span: jax.Array | None) -> jax.Array:
        """What steers the norms [b, dim]: times and class, added up."""
        found = self.time(time) + self.label(label)
        if self.span is not None:
            return found + self.span(jnp.zeros_like(time) if span is None else span)
        if span is not None:
            raise ValueError("this network takes no second time; build it with span=True")
        return found

    def log_variance(self, time: jax.Array) -> jax.Array:
        """Logarithm of how large the error at these times [b] is: [b] float32, learned with the network."""
        if self.uncertainty is None:
            raise ValueError("this network has no uncertainty; build it with uncertainty=True")
        return self.uncertainty(jax.nn.silu(self.time(time)))[:, 0].astype(jnp.float32)


def grid_phases(rows: int, columns: int, dim: int) -> tuple[jax.Array, jax.Array]:
    """Rotary phases of a raster of tokens: half of each head turns with the row, half with the column.

    Returns:
      (cos, sin), each [rows · columns, dim / 2] float32.
    """
    row, column = jnp.meshgrid(jnp.arange(rows), jnp.arange(columns), indexing="ij")
    halves = [rope_phases(place.reshape(-1), dim // 2, base=100.0) for place in (row, column)]
    cos, sin = (jnp.concatenate(pair, -1) for pair in zip(*halves, strict=True))
    return cos, sin
