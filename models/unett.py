"""E2-TTS: a flat U-Net of transformer layers that fills in masked mel frames given text (arXiv:2406.18009).

The time embedding is a token in front of the frames, and the first half of the layers is joined to the second half,
innermost to innermost.  Shapes and padding are as in ``models/dit.py``.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.layers.attention import Phases, SelfAttention
from models.layers.axes import ATTENTION, FEED_FORWARD, FRAME, Rules, under
from models.layers.backbone import Padding, SpeechBackbone, check_padding, drop_rows, frames_inside
from models.layers.conv import ConvPositionEmbedding, zero_outside
from models.layers.dropout import dropout, split_key
from models.layers.embed import TimeEmbedding
from models.layers.linear import linear
from models.layers.norm import L2Norm
from models.layers.rope import rope_phases
from models.layers.stack import scan_stack, stacked
from models.layers.text import TextEncoder
from models.ops.attention import MaskSpec

_LAYER: Rules = [(r"(attn|ff)_norm/scale", ("norm",)), *under("attn", ATTENTION), *FEED_FORWARD]
AXES: Rules = [
    *FRAME,
    *under("early", _LAYER, stacked=True),
    *under("late", _LAYER, stacked=True),
    (r"late/skip/kernel", ("layers", None, "embed")),
    (r"norm/scale", ("norm",)),
]
POSITIONS = 4096  # entries in the release's table of text positions


class Layer(nnx.Module):
    """Pre-norm transformer layer, which may first take in the input of its counterpart (``skip``)."""

    def __init__(
        self,
        dim: int,
        heads: int,
        dim_head: int,
        hidden: int,
        *,
        skip: Literal["add", "concat", "none"],
        qk_norm: str | None,
        rope_heads: int | None,
        rate: float,
        attn_impl: str,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.skip = linear(2 * dim, dim, rngs=rngs, dtype=dtype, use_bias=False) if skip == "concat" else None
        self.attn_norm = L2Norm(dim)
        self.attn = SelfAttention(
            dim, heads, dim_head, qk_norm=qk_norm, rope_heads=rope_heads, impl=attn_impl, dtype=dtype, rngs=rngs
        )
        self.ff_norm = L2Norm(dim)
        self.up = linear(dim, hidden, rngs=rngs, dtype=dtype)
        self.down = linear(hidden, dim, rngs=rngs, dtype=dtype)
        self.add, self.rate = skip == "add", rate

    def __call__(
        self,
        x: jax.Array,
        skip: Any,
        phases: Phases,
        mask: MaskSpec,
        inside: jax.Array | None,
        key: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array]:
        """x, skip [b, t, dim] (None if there is none) -> x, and what the feed-forward added to it."""
        if self.skip is not None:
            x = self.skip(jnp.concatenate([x, skip], -1))
        elif self.add:
            x = x + skip
        y = dropout(self.attn(self.attn_norm(x), phases, mask), self.rate, split_key(key, 0))
        x = x + zero_outside(y, inside)
        y = jax.nn.gelu(self.up(self.ff_norm(x)), approximate=True)
        y = self.down(dropout(y, self.rate, split_key(key, 1)))
        return x + y, y


class UNetT(SpeechBackbone):
    """The E2-TTS network; for its methods see ``SpeechBackbone``.

    Args:
      dim, depth, heads, dim_head, ff_mult: transformer; ``depth`` is even.
      mel_dim, text_num_embeds, text_dim, conv_layers, text_mask_padding, qk_norm, pe_attn_head, attn_mask_enabled,
        dropout: see ``models.dit.DiT``.
      skip_connect_type: how a layer of the second half takes in the input of its counterpart in the first: "concat"
        (and project), "add" or "none".
      padding: "exact": a padded batch equals its rows alone.  "reference": the release's batched behaviour, where real
        frames attend padding, positions are convolved with it, and text energies and filler run on past a row's end.
      remat, scan_layers, attn_impl, dtype: see ``models.dit.DiT``.
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
        qk_norm: str | None = None,
        pe_attn_head: int | None = None,
        attn_mask_enabled: bool = False,
        skip_connect_type: Literal["add", "concat", "none"] = "concat",
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
        if depth % 2 or depth < 2:
            raise ValueError(f"depth is {depth}; a U-Net needs an even number of layers")
        if skip_connect_type not in ("add", "concat", "none"):
            raise ValueError(f"skip_connect_type is {skip_connect_type!r}; expected 'add', 'concat' or 'none'")
        text_dim = mel_dim if text_dim is None else text_dim
        self.exact = check_padding(padding)
        self.time = TimeEmbedding(dim, rngs=rngs, dtype=dtype)
        self.text = TextEncoder(
            text_num_embeds,
            text_dim,
            blocks=conv_layers,
            mask_filler=text_mask_padding,
            upsample=False,
            exact=self.exact,
            positions=POSITIONS,
            dtype=dtype,
            rngs=rngs,
        )
        self.input = linear(2 * mel_dim + text_dim, dim, rngs=rngs, dtype=dtype)
        self.position = ConvPositionEmbedding(
            dim, width=conv_pos_kernel, groups=conv_pos_groups, dtype=dtype, rngs=rngs
        )

        def layers(skip):
            def layer(rngs):
                return Layer(
                    dim,
                    heads,
                    dim_head,
                    int(dim * ff_mult),
                    skip=skip,
                    qk_norm=qk_norm,
                    rope_heads=pe_attn_head,
                    rate=dropout,
                    attn_impl=attn_impl,
                    dtype=dtype,
                    rngs=rngs,
                )

            return stacked(layer, depth // 2, rngs)

        self.early, self.late = layers("none"), layers(skip_connect_type)
        self.norm = L2Norm(dim)
        self.output = linear(dim, mel_dim, rngs=rngs, dtype=dtype)
        self.mask_keys = self.exact or attn_mask_enabled
        self.half, self.dim_head = depth // 2, dim_head
        self.scan, self.remat, self.dtype = scan_layers, remat, dtype

    def encode_text(self, text, lengths, frames, drop=False):
        """See ``SpeechBackbone``; the release's text encoder knows no lengths."""
        return super().encode_text(text, lengths if self.exact else None, frames, drop)

    def parts(self, x, cond, encoded, time, lengths=None, drop_audio=False, key=None, *, keep_layers=False):
        """See ``SpeechBackbone``; "layers" are what the layers' feed-forwards added, time token first."""
        b, t, _ = x.shape
        inside = frames_inside(lengths, t)
        found: dict[str, Any] = {"time": self.embed_time(time, b)}
        x = found["input"] = self.embed((x, drop_rows(cond, drop_audio), encoded), inside if self.exact else None)

        x = jnp.concatenate([found["time"][:, None].astype(x.dtype), x], 1)
        with_token = frames_inside(None if lengths is None else lengths + 1, t + 1)
        mask = MaskSpec(kv_lengths=lengths + 1) if self.mask_keys and lengths is not None else MaskSpec()
        phases = rope_phases(jnp.arange(t + 1), self.dim_head)

        def early(layer, x, index, _):
            y, added = layer(x, None, phases, mask, with_token, split_key(key, index))
            return y, (x, added if keep_layers else None)

        def late(layer, x, index, skip):
            x, added = layer(x, skip, phases, mask, with_token, split_key(key, self.half + index))
            return x, added if keep_layers else None

        x, (skips, first) = scan_stack(self.early, x, early, scan=self.scan, remat=self.remat)
        x, second = scan_stack(self.late, x, late, skips[::-1], scan=self.scan, remat=self.remat)
        found["layers"] = jnp.concatenate([first, second]) if keep_layers else None
        found["norm"] = self.norm(x)
        found["output"] = self.to_mel(found["norm"][:, 1:], inside)
        return found
