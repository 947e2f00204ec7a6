"""MMDiT: text and audio as two streams with their own weights and one joint attention (arXiv:2403.03206), for speech.

Text is not stretched to the mel's length here: its stream has one position per symbol.  Shapes and padding are as in
``models/dit.py``.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.layers.adaln import AdaLNBlock, final_norm
from models.layers.attention import Phases, SelfAttention, joint_attention
from models.layers.axes import ATTENTION, BLOCK, FRAME, MODULATION, Rules, under
from models.layers.backbone import Padding, SpeechBackbone, check_padding, drop_rows, frames_inside, per_row
from models.layers.conv import ConvPositionEmbedding, zero_outside
from models.layers.dropout import dropout, split_key
from models.layers.embed import TimeEmbedding, position_sinusoid
from models.layers.linear import Table, linear
from models.layers.rope import rope_phases
from models.layers.stack import scan_stack, stacked
from models.ops.attention import MaskSpec

AXES: Rules = [
    *FRAME,
    *under("blocks/(audio|text)", BLOCK, stacked=True),
    *under("last/audio", BLOCK),
    *under("last/text/modulation", MODULATION),
    *under("last/text/attn", ATTENTION),
    *under("modulation", MODULATION),
]
POSITIONS = 1024  # entries in the release's table of text positions


class EncodedText(NamedTuple):
    """What ``MMDiT.encode_text`` gives.

    Attributes:
      states: [b, nt, dim].
      symbols: [b, nt] bool, False where the batch pads.
    """

    states: jax.Array
    symbols: jax.Array


class TextTokens(nnx.Module):
    """Symbols as vectors with absolute positions."""

    def __init__(self, vocab: int, dim: int, *, mask_filler: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        self.embed = Table(vocab + 1, dim, rngs=rngs, dtype=dtype)  # row 0 = filler
        self.mask_filler = mask_filler

    def __call__(self, text: jax.Array, drop: jax.Array) -> EncodedText:
        """text [b, nt] int (-1 = padding), drop [b] bool."""
        symbols = text >= 0
        x = self.embed(jnp.where(drop[:, None], 0, text + 1))
        x = x + position_sinusoid(x.shape[1], x.shape[2], POSITIONS).astype(x.dtype)
        return EncodedText(zero_outside(x, symbols if self.mask_filler else None), symbols)


class TextEnd(nnx.Module):
    """The text stream of the last block: looked at by the audio, and then no longer needed."""

    def __init__(self, dim: int, attn: SelfAttention, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.modulation = linear(dim, 2 * dim, rngs=rngs, dtype=dtype, zero=True)
        self.attn = attn


class JointBlock(nnx.Module):
    """Two AdaLN blocks, one per stream, with one attention over both."""

    def __init__(self, audio: AdaLNBlock, text: AdaLNBlock | TextEnd):
        self.audio, self.text = audio, text

    def __call__(
        self,
        x: jax.Array,
        c: jax.Array,
        time: jax.Array,
        phases: tuple[Phases, Phases],
        mask: MaskSpec,
        inside: jax.Array | None,
        symbols: jax.Array,
        key: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array]:
        """Audio x [b, t, dim], text c [b, nt, dim], time [b, dim] after SiLU -> x, c."""
        audio, text = self.audio, self.text
        seen, rest = audio.enter(x, time)
        context, text_rest = (
            text.enter(c, time) if isinstance(text, AdaLNBlock) else (final_norm(text.modulation, c, time), [])
        )
        y, z = joint_attention(audio.attn, text.attn, seen, context, phases, mask)
        x = audio.leave(x, dropout(y, audio.rate, split_key(key, 0)), rest, inside, split_key(key, 1))
        if isinstance(text, AdaLNBlock) and z is not None:
            c = text.leave(c, z, text_rest, symbols, split_key(key, 2))
        return x, c


class MMDiT(SpeechBackbone):
    """Joint attention over text and audio; for its methods see ``SpeechBackbone``.

    Args:
      dim, depth, heads, dim_head, ff_mult, mel_dim, text_num_embeds, qk_norm, dropout: see ``models.dit.DiT``.
      text_mask_padding: the embedding of text padding is zeroed.
      attn_mask_enabled: only read with ``padding="reference"``: padded frames and symbols are masked as keys, if the
        batch has lengths.
      padding: "exact": a padded batch equals its rows alone.  "reference": the release's batched behaviour, where real
        frames attend padding and positions are convolved with it.
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
        text_mask_padding: bool = True,
        qk_norm: str | None = None,
        attn_mask_enabled: bool = False,
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
        self.exact = check_padding(padding)
        self.time = TimeEmbedding(dim, rngs=rngs, dtype=dtype)
        self.text = TextTokens(text_num_embeds, dim, mask_filler=text_mask_padding, dtype=dtype, rngs=rngs)
        self.input = linear(2 * mel_dim, dim, rngs=rngs, dtype=dtype)
        self.position = ConvPositionEmbedding(
            dim, width=conv_pos_kernel, groups=conv_pos_groups, dtype=dtype, rngs=rngs
        )

        def stream(rngs):
            return AdaLNBlock(
                dim,
                heads,
                dim_head,
                int(dim * ff_mult),
                qk_norm=qk_norm,
                rate=dropout,
                attn_impl=attn_impl,
                dtype=dtype,
                rngs=rngs,
            )

        self.blocks = stacked(lambda r: JointBlock(stream(r), stream(r)), depth - 1, rngs) if depth > 1 else None
        ignored = SelfAttention(
            dim, heads, dim_head, qk_norm=qk_norm, output=False, impl=attn_impl, dtype=dtype, rngs=rngs
        )
        self.last = JointBlock(stream(rngs), TextEnd(dim, ignored, dtype=dtype, rngs=rngs))
        self.modulation = linear(dim, 2 * dim, rngs=rngs, dtype=dtype, zero=True)
        self.output = linear(dim, mel_dim, rngs=rngs, dtype=dtype, zero=True)
        self.mask_keys = attn_mask_enabled
        self.depth, self.dim_head = depth, dim_head
        self.scan, self.remat, self.dtype = scan_layers, remat, dtype

    def encode_text(self, text, lengths, frames, drop=False):
        """See ``SpeechBackbone``; gives ``EncodedText``, which does not depend on the frames."""
        del lengths, frames
        return self.text(text, per_row(drop, len(text)))

    def parts(self, x, cond, encoded, time, lengths=None, drop_audio=False, key=None, *, keep_layers=False):
        """See ``SpeechBackbone``; "layers" are the audio streams that leave the blocks."""
        b, t, _ = x.shape
        c, symbols = encoded
        inside = frames_inside(lengths, t)
        mask = self._mask(inside, symbols, t, masked=self.exact or (self.mask_keys and lengths is not None))
        phases = rope_phases(jnp.arange(t), self.dim_head), rope_phases(jnp.arange(c.shape[1]), self.dim_head)
        found: dict[str, Any] = {"time": self.embed_time(time, b)}
        silu = jax.nn.silu(found["time"])
        x = found["input"] = self.embed((x, drop_rows(cond, drop_audio)), inside if self.exact else None)

        def layer(block, streams, index, _):
            x, c = block(*streams, silu, phases, mask, inside, symbols, split_key(key, index))
            return (x, c), x if keep_layers else None

        streams: Any = (x, c)
        left = []
        if self.blocks is not None:
            streams, stack = scan_stack(self.blocks, streams, layer, scan=self.scan, remat=self.remat)
            left = [stack] if keep_layers else []
        x, c = streams
        x, _ = self.last(x, c, silu, phases, mask, inside, symbols, split_key(key, self.depth - 1))
        found["layers"] = jnp.concatenate([*left, x[None]]) if keep_layers else None
        found["norm"] = final_norm(self.modulation, x, silu)
        found["output"] = self.to_mel(found["norm"], inside)
        return found

    def _mask(self, inside: jax.Array | None, symbols: jax.Array, frames: int, masked: bool) -> MaskSpec:
        """Real frames and real symbols as keys; neither are one stretch, so the others are marked as empty slots."""
        if not masked:
            return MaskSpec()
        inside = jnp.ones((len(symbols), frames), bool) if inside is None else inside
        real = jnp.concatenate([inside, symbols], 1)
        return MaskSpec(kv_positions=jnp.where(real, jnp.arange(real.shape[1]), -1))
