"""Vocos: a network at the frame rate that writes the spectrum of the wave, amplitude and phase (arXiv:2306.00814).

Shapes: b batch, t frames, m mel bins, d width.  Nothing is upsampled: the inverse Fourier transform does that.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.layers.conv import Conv1D, zero_outside
from models.layers.linear import linear
from models.layers.norm import LayerNorm
from models.layers.stack import run_stack, stacked
from models.ops.precision import accumulation_dtype
from models.ops.spread import spread
from models.ops.stft import istft

# Path of a parameter -> logical axis of each dimension; ``train/sharding.py`` maps those to mesh axes.
AXES: list[tuple[str, tuple[str | None, ...]]] = [
    (r"embed/kernel", ("conv", None, "embed")),
    (r"embed/bias", ("norm",)),
    (r"(norm|final_norm)/(scale|bias)", ("norm",)),
    (r"blocks/conv/kernel", ("layers", "conv", None, "norm")),
    (r"blocks/conv/bias", ("layers", "norm")),
    (r"blocks/norm/(scale|bias)", ("layers", "norm")),
    (r"blocks/up/kernel", ("layers", "embed", "mlp")),
    (r"blocks/up/bias", ("layers", "mlp")),
    (r"blocks/down/kernel", ("layers", "mlp", "embed")),
    (r"blocks/down/bias", ("layers", "norm")),
    (r"blocks/gamma", ("layers", "norm")),
    (r"head/kernel", ("embed", None)),
    (r"head/bias", ("norm",)),
]

LARGEST = 100.0  # magnitude; the release clips there
WIDTH = 7  # frames that every convolution sees


class Block(nnx.Module):
    """ConvNeXt over time: depthwise convolution, norm, expand, exact GELU, contract, scaled residual
    (arXiv:2201.03545)."""

    def __init__(self, dim: int, hidden: int, gamma: float, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = _like_release(Conv1D(dim, dim, WIDTH, groups=dim, dtype=dtype, rngs=rngs), rngs)
        self.norm = LayerNorm(dim)
        self.up = _like_release(linear(dim, hidden, rngs=rngs, dtype=dtype), rngs)
        self.down = _like_release(linear(hidden, dim, rngs=rngs, dtype=dtype), rngs)
        self.gamma = nnx.Param(jnp.full(dim, gamma))

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [b, t, d], zero outside each row -> [b, t, d]."""
        y = self.down(jax.nn.gelu(self.up(self.norm(self.conv(x))), approximate=False))
        return x + spread(self.gamma[...].astype(y.dtype), y.shape) * y


class Vocos(nnx.Module):
    """Log-mel -> wave.

    Args:
      mel_dim: mel bins.
      n_fft, hop: of the spectrum that is written; the synthesis window has ``n_fft`` samples.
      dim, hidden, depth: width, inner width and number of the blocks.
      padding: "center": the t frames are centred on samples 0, hop, … and give (t - 1)·hop samples; "same": each frame
        stands for hop samples, t·hop in all.
      remat, scan_layers: see ``models/layers/stack.py``.
      dtype: type of matrix products; parameters, spectrum and wave are float32.
    """

    def __init__(
        self,
        *,
        mel_dim: int,
        n_fft: int,
        hop: int,
        dim: int = 512,
        hidden: int = 1536,
        depth: int = 8,
        padding: str = "center",
        remat: str = "none",
        scan_layers: bool = True,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if padding not in ("center", "same"):
            raise ValueError(f"padding is {padding!r}; expected 'center' or 'same'")
        self.embed = _like_release(Conv1D(mel_dim, dim, WIDTH, dtype=dtype, rngs=rngs), rngs)
        self.norm = LayerNorm(dim)
        self.blocks = stacked(lambda rngs: Block(dim, hidden, 1 / depth, dtype=dtype, rngs=rngs), depth, rngs)
        self.final_norm = LayerNorm(dim)
        self.head = linear(dim, n_fft + 2, rngs=rngs, dtype=dtype)
        self.hop, self.pad = hop, n_fft // 2 if padding == "center" else (n_fft - hop) // 2
        self.scan, self.remat = scan_layers, remat

    def __call__(self, mel: jax.Array, lengths: jax.Array | None, window: jax.Array) -> jax.Array:
        """Waves; a padded batch equals its rows alone.

        Args:
          mel: [b, t, m] natural log-mel.
          lengths: [b] frames of each row; None = all.
          window: [n_fft] periodic Hann.

        Returns:
          [b, (t - 1)·hop + n_fft - 2·pad] float32, zero behind each row's last sample.
        """
        b, t, _ = mel.shape
        coefficients = self.coefficients(mel, lengths)
        magnitude, phase = jnp.split(coefficients.astype(accumulation_dtype(coefficients.dtype)), 2, -1)
        magnitude = jnp.exp(jnp.minimum(magnitude, math.log(LARGEST)))  # clipped first: exp's gradient stays finite
        spectrum = jax.lax.complex(magnitude * jnp.cos(phase), magnitude * jnp.sin(phase))
        lengths = jnp.full(b, t) if lengths is None else lengths
        wave = istft(spectrum, window, hop=self.hop, pad=self.pad, mask=_inside(lengths, t))
        last = (lengths - 1) * self.hop + window.shape[0] - 2 * self.pad
        return jnp.where(_inside(last, wave.shape[1]), wave, 0)

    def coefficients(self, mel: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        """[b, t, n_fft + 2]: log magnitudes, then phases in radians."""
        return self.head(self.backbone(mel, lengths))

    def backbone(self, mel: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        """[b, t, d]: what the head sees."""
        inside = None if lengths is None else _inside(lengths, mel.shape[1])
        x = self.norm(self.embed(zero_outside(mel, inside)))

        def layer(block, x, index):
            return zero_outside(block(x), inside)

        x = run_stack(self.blocks, zero_outside(x, inside), layer, scan=self.scan, remat=self.remat)
        return self.final_norm(x)


def _inside(lengths, size) -> jax.Array:
    return jnp.arange(size) < lengths[:, None]


def _like_release(module, rngs):
    """Kernels N(0, 0.02²), biases 0: where the release starts its backbone."""
    module.kernel[...] = 0.02 * jax.random.normal(rngs.params(), module.kernel.shape)
    module.bias[...] = jnp.zeros(module.bias.shape)
    return module
