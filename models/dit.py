"""F5-TTS: a diffusion transformer that fills in masked mel frames given text (arXiv:2410.06885).

Shapes: b batch, t mel frames, nt text symbols, m mel bins. A batch is padded to one length; with ``padding="exact"``
the result of every row equals that row run alone.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.layers.adaln import AdaLNBlock, final_norm
from models.layers.axes import BLOCK, FRAME, MODULATION, under
from models.layers.backbone import Padding, SpeechBackbone, check_padding, drop_rows, frames_inside
from models.layers.conv import ConvPositionEmbedding
from models.layers.dropout import split_key
from models.layers.embed import TimeEmbedding
from models.layers.linear import linear
from models.layers.rope import rope_phases
from models.layers.stack import scan_stack, stacked
from models.layers.text import TextEncoder
from models.ops.attention import MaskSpec

# Path of a parameter -> logical axis of each dimension; ``train/sharding.py`` maps those to mesh axes.
AXES: list[tuple[str, tuple[str | None, ...]]] = [
    *FRAME,
    *under("blocks", BLOCK, stacked=True),
    (r"long_skip/kernel", (None, "embed")),
    *under("modulation", MODULATION),
]


class DiT(SpeechBackbone):
    """The F5-TTS network; for its methods see ``SpeechBackbone``.

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
        padding: Padding = "exact",
        remat: str = "none",
        scan_layers: bool = True,
        attn_impl: str = "auto",
        dtype: DTypeLike = jnp.float32,
        conv_pos_kernel: int = 31,
        conv_pos_groups: int = 16,
        rngs: nnx.Rngs,
    ):
        text_dim = mel_dim if text_dim is None else text_dim
        self.exact = check_padding(padding)
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
            return AdaLNBlock(
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

    def parts(self, x, cond, encoded, time, lengths=None, drop_audio=False, key=None, *, keep_layers=False):
        """See ``SpeechBackbone``; "layers" are the blocks' outputs, and there may be a "long_skip"."""
        b, t, _ = x.shape
        inside = frames_inside(lengths, t)
        mask = MaskSpec(kv_lengths=lengths) if self.mask_keys else MaskSpec()
        phases = rope_phases(jnp.arange(t), self.dim_head)
        found: dict[str, Any] = {"time": self.embed_time(time, b)}
        silu = jax.nn.silu(found["time"])
        x = found["input"] = self.embed((x, drop_rows(cond, drop_audio), encoded), inside)

        def layer(block, x, index, _):
            x = block(x, silu, phases, mask, inside, split_key(key, index))
            return x, x if keep_layers else None

        x, found["layers"] = scan_stack(self.blocks, x, layer, scan=self.scan, remat=self.remat)
        if self.long_skip is not None:
            x = found["long_skip"] = self.long_skip(jnp.concatenate([x, found["input"]], -1))
        found["norm"] = final_norm(self.modulation, x, silu)
        found["output"] = self.to_mel(found["norm"], inside)
        return found
