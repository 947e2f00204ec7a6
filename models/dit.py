"""F5-TTS: a diffusion transformer that fills in masked mel frames given text (arXiv:2410.06885).

Shapes: b batch, t mel frames, nt text symbols, m mel bins. A batch is padded to one length; with ``padding="exact"``
the result of every row equals that row run alone.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.layers.attention import SelfAttention
from models.layers.conv import ConvPositionEmbedding, zero_outside
from models.layers.dropout import dropout, split_key
from models.layers.embed import TimeEmbedding
from models.layers.linear import linear
from models.layers.norm import layer_norm
from models.layers.rope import rope_phases
from models.layers.stack import run_stack, stacked
from models.layers.text import TextEncoder
from models.ops.attention import MaskSpec
from models.ops.precision import accumulation_dtype
from models.ops.spread import spread

# Path of a parameter -> logical axis of each dimension; ``train/sharding.py`` maps those to mesh axes.
AXES: list[tuple[str, tuple[str | None, ...]]] = [
    (r"time/up/kernel", (None, "mlp")),
    (r"time/up/bias", ("norm",)),
    (r"time/down/kernel", ("mlp", "embed")),
    (r"time/down/bias", ("norm",)),
    (r"text/embed/table", ("vocab", "text")),
    (r"text/blocks/conv/kernel", ("layers", "conv", None, "text")),
    (r"text/blocks/up/kernel", ("layers", "text", "mlp")),
    (r"text/blocks/down/kernel", ("layers", "mlp", "text")),
    (r"text/blocks/up/bias", ("layers", "mlp")),
    (r"text/blocks/grn/(gamma|beta)", ("layers", "mlp")),
    (r"text/blocks/(conv|down)/bias", ("layers", "norm")),
    (r"text/blocks/norm/(scale|bias)", ("layers", "norm")),
    (r"input/kernel", (None, "embed")),
    (r"input/bias", ("norm",)),
    (r"position/(first|second)/kernel", ("conv", None, "embed")),
    (r"position/(first|second)/bias", ("norm",)),
    (r"blocks/modulation/kernel", ("layers", "embed", None)),
    (r"blocks/modulation/bias", ("layers", "norm")),
    (r"blocks/attn/(q|k|v)/kernel", ("layers", "embed", "heads")),
    (r"blocks/attn/(q|k|v)/bias", ("layers", "heads")),
    (r"blocks/attn/(q|k)_norm/scale", ("layers", "norm")),
    (r"blocks/attn/out/kernel", ("layers", "heads", "embed")),
    (r"blocks/attn/out/bias", ("layers", "norm")),
    (r"blocks/up/kernel", ("layers", "embed", "mlp")),
    (r"blocks/up/bias", ("layers", "mlp")),
    (r"blocks/down/kernel", ("layers", "mlp", "embed")),
    (r"blocks/down/bias", ("layers", "norm")),
    (r"long_skip/kernel", (None, "embed")),
    (r"modulation/kernel", ("embed", None)),
    (r"modulation/bias", ("norm",)),
    (r"output/kernel", ("embed", "mel")),
    (r"output/bias", ("mel",)),
]


class Block(nnx.Module):
    """Transformer block whose norms are shifted, scaled and gated by the time embedding, starting as the identity
    (AdaLN-zero, arXiv:2212.09748)."""

    def __init__(
        self,
        dim: int,
        heads: int,
        dim_head: int,
        hidden: int,
        *,
        qk_norm: str | None,
        rope_heads: int | None,
        rate: float,
        attn_impl: str,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.modulation = linear(dim, 6 * dim, rngs=rngs, dtype=dtype, zero=True)
        self.attn = SelfAttention(
            dim, heads, dim_head, qk_norm=qk_norm, rope_heads=rope_heads, impl=attn_impl, dtype=dtype, rngs=rngs
        )
        self.up = linear(dim, hidden, rngs=rngs, dtype=dtype)
        self.down = linear(hidden, dim, rngs=rngs, dtype=dtype)
        self.rate = rate

    def __call__(self, x, time, phases, mask, inside, key=None):
        """x [b, t, dim], time [b, dim] after SiLU, inside [b, t] bool or None -> [b, t, dim]."""
        keys = [split_key(key, i) for i in range(2)]
        parts = jnp.split(self.modulation(time)[:, None], 6, -1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (spread(part, x.shape) for part in parts)
        y = self.attn(layer_norm(x) * (1 + scale_a) + shift_a, phases, mask)
        x = x + gate_a * zero_outside(dropout(y, self.rate, keys[0]), inside)
        y = jax.nn.gelu(self.up(layer_norm(x) * (1 + scale_m) + shift_m), approximate=True)
        y = self.down(dropout(y, self.rate, keys[1]))
        return x + gate_m * y


class DiT(nnx.Module):
    """The F5-TTS network: noisy mel, masked mel, text and time -> velocity of the flow.

    Args:
      dim, depth, heads, dim_head, ff_mult: transformer; ``heads * dim_head`` is independent of ``dim``.
      mel_dim: mel bins.
      text_num_embeds: number of symbols; the table has one row more (row 0 = filler).
      text_dim: width of the text encoding; None = ``mel_dim``.
      conv_layers: ConvNeXt V2 blocks over the text.
      text_mask_padding: filler is zeroed between these blocks (v1) or flows through them (v0).
      text_average_upsampling: encoded symbols are spread evenly over the frames.
      qk_norm: None or "rms_norm".
      pe_attn_head: rotary positions on the first that many heads only (v0: 1); None = all.
      attn_mask_enabled: only read with ``padding="reference"``: padded keys are masked.
      long_skip_connection: the embedded input joins again before the output norm.
      dropout: rate after attention and inside the feed-forward; active when a call gets a ``key``.
      padding: "exact": a padded batch equals its rows alone.  "reference": the release's batched behaviour, where real
        frames attend padding and text energies include it.
      remat, scan_layers: see ``models/layers/stack.py``.
      attn_impl: see ``models/ops/attention.py``.
      dtype: type of matrix products; parameters are float32.
    """

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        heads: int,
        dim_head: int = 64,
        ff_mult: float = 4,
        mel_dim: int = 100,
        text_num_embeds: int = 256,
        text_dim: int | None = None,
        conv_layers: int = 0,
        text_mask_padding: bool = True,
        text_average_upsampling: bool = False,
        qk_norm: str | None = None,
        pe_attn_head: int | None = None,
        attn_mask_enabled: bool = False,
        long_skip_connection: bool = False,
        dropout: float = 0.1,
        padding: Literal["exact", "reference"] = "exact",
        remat: str = "none",
        scan_layers: bool = True,
        attn_impl: str = "auto",
        dtype: DTypeLike = jnp.float32,
        conv_pos_kernel: int = 31,
        conv_pos_groups: int = 16,
        rngs: nnx.Rngs,
    ):
        if padding not in ("exact", "reference"):
            raise ValueError(f"padding is {padding!r}; expected 'exact' or 'reference'")
        text_dim = mel_dim if text_dim is None else text_dim
        self.exact = padding == "exact"
        self.time = TimeEmbedding(dim, rngs=rngs, dtype=dtype)
        self.text = TextEncoder(
            text_num_embeds,
            text_dim,
            blocks=conv_layers,
            mask_filler=text_mask_padding,
            upsample=text_average_upsampling,
            exact=self.exact,
            dtype=dtype,
            rngs=rngs,
        )
        self.input = linear(2 * mel_dim + text_dim, dim, rngs=rngs, dtype=dtype)
        self.position = ConvPositionEmbedding(
            dim, width=conv_pos_kernel, groups=conv_pos_groups, dtype=dtype, rngs=rngs
        )

        def block(rngs):
            return Block(
                dim,
                heads,
                dim_head,
                int(dim * ff_mult),
                qk_norm=qk_norm,
                rope_heads=pe_attn_head,
                rate=dropout,
                attn_impl=attn_impl,
                dtype=dtype,
                rngs=rngs,
            )

        self.blocks = stacked(block, depth, rngs)
        self.long_skip = linear(2 * dim, dim, rngs=rngs, dtype=dtype, use_bias=False) if long_skip_connection else None
        self.modulation = linear(dim, 2 * dim, rngs=rngs, dtype=dtype, zero=True)
        self.output = linear(dim, mel_dim, rngs=rngs, dtype=dtype, zero=True)
        self.mask_keys = self.exact or attn_mask_enabled
        self.dim_head, self.scan, self.remat, self.dtype = dim_head, scan_layers, remat, dtype

    def __call__(self, x, cond, text, time, lengths=None, drop_audio=False, drop_text=False, key=None) -> jax.Array:
        """``encode_text`` then ``velocity``: [b, t, m]."""
        text_emb = self.encode_text(text, lengths, x.shape[1], drop_text)
        return self.velocity(x, cond, text_emb, time, lengths, drop_audio, key)

    def encode_text(self, text: jax.Array, lengths: jax.Array | None, frames: int, drop=False) -> jax.Array:
        """Text encoding, which sampling computes once for all steps.

        Args:
          text: [b, nt] int, -1 = padding.
          lengths: [b] mel frames of each row; None = ``frames`` for all.
          frames: padded length (static).
          drop: bool or [b] bool: rows that get filler instead of their text (for guidance).

        Returns:
          [b, frames, text_dim].
        """
        batch = text.shape[0]
        lengths = jnp.full(batch, frames) if lengths is None else lengths
        drop = jnp.broadcast_to(jnp.asarray(drop, bool), (batch,))
        return self.text(text, lengths, frames, drop, scan=self.scan, remat=self.remat)

    def velocity(
        self,
        x: jax.Array,
        cond: jax.Array,
        text_emb: jax.Array,
        time: jax.Array,
        lengths: jax.Array | None = None,
        drop_audio: jax.Array | bool = False,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Velocity at ``x``.

        Args:
          x, cond: [b, t, m] noisy mel; known mel frames, zero where they are to be generated.
          text_emb: [b, t, text_dim] of ``encode_text``.
          time: [b] or scalar in [0, 1]; 0 = noise.
          lengths: [b] frames of each row; None = all.
          drop_audio: bool or [b] bool: rows whose ``cond`` is zeroed.
          key: for dropout: one key, or keys per row [b]; None = no dropout.

        Returns:
          [b, t, m] float32; in exact mode zero past each row's length.
        """
        b, t, _ = x.shape
        inside = None if lengths is None else jnp.arange(t) < lengths[:, None]
        mask = MaskSpec(kv_lengths=lengths) if self.mask_keys else MaskSpec()
        phases = rope_phases(jnp.arange(t), self.dim_head)
        time = jax.nn.silu(self.time(jnp.broadcast_to(jnp.asarray(time, jnp.float32), (b,))))
        x = skip = self.embed(x, cond, text_emb, inside, drop_audio)

        def layer(block, x, index):
            return block(x, time, phases, mask, inside, split_key(key, index))

        x = run_stack(self.blocks, x, layer, scan=self.scan, remat=self.remat)
        if self.long_skip is not None:
            x = self.long_skip(jnp.concatenate([x, skip], -1))
        x = self.output(self.modulate(x, time))
        x = x.astype(accumulation_dtype(x.dtype))
        return zero_outside(x, inside) if self.exact else x

    def embed(self, x, cond, text_emb, inside, drop_audio) -> jax.Array:
        """What enters the blocks, [b, t, dim]: the three signals side by side, projected, plus their positions."""
        drop_audio = jnp.broadcast_to(jnp.asarray(drop_audio, bool), x.shape[:1])
        cond = jnp.where(drop_audio[:, None, None], 0, cond)
        x = self.input(jnp.concatenate([a.astype(self.dtype) for a in (x, cond, text_emb)], -1))
        return x + self.position(x, inside)

    def modulate(self, x: jax.Array, time: jax.Array) -> jax.Array:
        """The last norm, scaled and shifted by the time embedding [b, dim] after SiLU."""
        scale, shift = jnp.split(self.modulation(time)[:, None], 2, -1)  # this order, unlike the blocks'
        return layer_norm(x) * (1 + scale) + shift
