"""BigVGAN v2: transposed convolutions up to the sample rate, with periodic activations that do not alias
(arXiv:2206.04658).

Shapes: b batch, t frames or samples, c channels, m mel bins.  A row's own end is treated as the end of the signal,
whatever padding follows it: convolutions see zeros there, the activations' filters see the last sample repeated.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from models.layers.conv import zero_outside
from models.layers.linear import uniform_init
from models.ops.precision import accumulation_dtype

# Path of a parameter -> logical axis of each dimension; ``train/sharding.py`` maps those to mesh axes.
AXES: list[tuple[str, tuple[str | None, ...]]] = [
    (r"(pre|post|ups/\d+|blocks/\d+/(first|second)/\d+)/kernel", ("conv", None, None)),
    (r"(pre|ups/\d+|blocks/\d+/(first|second)/\d+)/bias", ("norm",)),
    (r"(snake|blocks/\d+/snakes/\d+)/(alpha|beta)", ("norm",)),
]

TAPS = 12  # of the filters for twice the rate


def kaiser_sinc(taps: int = TAPS, cutoff: float = 0.25, half_width: float = 0.3) -> np.ndarray:
    """Low-pass filter [taps] with sum 1: a sinc under a Kaiser window.

    Args:
      cutoff: where it falls, in cycles per sample; 0.25 is half of what the doubled rate can hold.
      half_width: of the transition, in the same unit.
    """
    attenuation = 2.285 * (taps // 2 - 1) * math.pi * 4 * half_width + 7.95  # Kaiser's formula, dB
    if attenuation > 50:
        beta = 0.1102 * (attenuation - 8.7)
    elif attenuation >= 21:
        beta = 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    else:
        beta = 0.0
    time = np.arange(taps) - (taps - 1) / 2
    taper = np.sinc(2 * cutoff * time) * np.kaiser(taps, beta)
    return (taper / taper.sum()).astype(np.float32)


def twice(x: jax.Array, taps: np.ndarray) -> jax.Array:
    """[b, t, c] -> [b, 2t, c]: a zero after every sample, then the filter (gain 2); ends are repeated.

    Each of the two outputs per sample meets every second tap only.
    """
    half = len(taps) // 2
    padded = jnp.pad(x, ((0, 0), (half // 2, half // 2), (0, 0)), mode="edge")
    size = x.shape[1]
    even = sum(2 * float(taps[len(taps) - 1 - 2 * i]) * padded[:, i : i + size] for i in range(half))
    odd = sum(2 * float(taps[len(taps) - 2 - 2 * i]) * padded[:, i + 1 : i + 1 + size] for i in range(half))
    return jnp.stack([even, odd], 2).reshape(x.shape[0], 2 * size, x.shape[2])


def halve(x: jax.Array, taps: np.ndarray) -> jax.Array:
    """[b, 2t, c] -> [b, t, c]: the filter, then every second sample; ends are repeated."""
    width, size = len(taps), x.shape[1] // 2
    padded = jnp.pad(x, ((0, 0), (width // 2 - 1, width // 2 + 1), (0, 0)), mode="edge")
    pairs = padded.reshape(x.shape[0], -1, 2, x.shape[2])
    parts = [float(taps[i]) * pairs[:, i // 2 : i // 2 + size, i % 2] for i in range(width)]
    return sum(parts[1:], parts[0])


class SnakeBeta(nnx.Module):
    """x + sin²(αx) / β per channel, α and β as logarithms, between a doubling and a halving of the rate, so that the
    harmonics it makes do not fold back."""

    def __init__(self, channels: int):
        self.alpha = nnx.Param(jnp.zeros(channels))
        self.beta = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        """x [b, t, c] -> [b, t, c]; only what is inside each row's length is valid."""
        wide = accumulation_dtype(x.dtype)
        alpha, beta = jnp.exp(self.alpha[...].astype(wide)), jnp.exp(self.beta[...].astype(wide))
        y = twice(hold_last(x.astype(wide), lengths), kaiser_sinc())
        y = y + jnp.square(jnp.sin(alpha * y)) / (beta + 1e-9)
        return halve(hold_last(y, None if lengths is None else 2 * lengths), kaiser_sinc()).astype(x.dtype)


def hold_last(x: jax.Array, lengths: jax.Array | None) -> jax.Array:
    """x [b, t, c] with everything past a row's length replaced by the row's last sample."""
    if lengths is None:
        return x
    last = jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)
    return jnp.where((jnp.arange(x.shape[1]) < lengths[:, None])[..., None], x, last)


class Conv(nnx.Module):
    """Dense convolution that keeps the length; kernel [width, c_in, c_out]."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        width: int,
        *,
        dilation: int = 1,
        use_bias: bool = True,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        init = uniform_init(width * c_in)
        self.kernel = nnx.Param(init(rngs.params(), (width, c_in, c_out)))
        self.bias = nnx.Param(init(rngs.params(), (c_out,))) if use_bias else None
        self.dilation, self.dtype = dilation, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [b, t, c_in] -> [b, t, c_out]."""
        kernel = self.kernel[...].astype(self.dtype)
        pad = (kernel.shape[0] - 1) * self.dilation // 2
        dims = ("NWC", "WIO", "NWC")
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype), kernel, (1,), [(pad, pad)], rhs_dilation=(self.dilation,), dimension_numbers=dims
        )
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


class Upsample(nnx.Module):
    """Transposed convolution: output[rate·i + j - (width - rate) / 2] += input[i] · kernel[j], kernel
    [width, c_in, c_out]."""

    def __init__(self, c_in: int, c_out: int, width: int, rate: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        if width % rate or (width - rate) % 2:
            raise ValueError(f"width {width} of an upsampling by {rate}: expected a multiple of it, and an even rest")
        init = uniform_init(width * c_out)
        self.kernel = nnx.Param(init(rngs.params(), (width, c_in, c_out)))
        self.bias = nnx.Param(init(rngs.params(), (c_out,)))
        self.rate, self.dtype = rate, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [b, t, c_in] -> [b, t·rate, c_out]: one product for all taps, then pieces of ``rate`` samples add up."""
        kernel = self.kernel[...].astype(self.dtype)
        (b, t, _), (width, _, c_out) = x.shape, kernel.shape
        pieces = jnp.einsum("bti,wio->btwo", x.astype(self.dtype), kernel).reshape(b, t, -1, self.rate, c_out)
        count = width // self.rate
        shifted = [jnp.pad(pieces[:, :, i], ((0, 0), (i, count - 1 - i), (0, 0), (0, 0))) for i in range(count)]
        whole = sum(shifted[1:], shifted[0]).reshape(b, -1, c_out)
        cut = (width - self.rate) // 2
        return whole[:, cut : cut + t * self.rate] + self.bias[...].astype(self.dtype)


class Block(nnx.Module):
    """Residual dilated convolutions, each behind a periodic activation ("AMPBlock1")."""

    def __init__(self, channels: int, width: int, dilations: Sequence[int], *, dtype: DTypeLike, rngs: nnx.Rngs):
        options = {"dtype": dtype, "rngs": rngs}
        self.first = nnx.List([Conv(channels, channels, width, dilation=d, **options) for d in dilations])
        self.second = nnx.List([Conv(channels, channels, width, **options) for _ in dilations])
        self.snakes = nnx.List([SnakeBeta(channels) for _ in range(2 * len(dilations))])

    def __call__(self, x: jax.Array, lengths: jax.Array | None) -> jax.Array:
        """x [b, t, c], zero outside each row -> [b, t, c]."""
        inside = _inside(lengths, x.shape[1])
        for i, (first, second) in enumerate(zip(self.first, self.second, strict=True)):
            y = first(zero_outside(self.snakes[2 * i](x, lengths), inside))
            x = x + second(zero_outside(self.snakes[2 * i + 1](y, lengths), inside))
        return x


class BigVGAN(nnx.Module):
    """Log-mel -> wave, ``prod(rates)`` samples per frame.

    Args:
      mel_dim: mel bins.
      n_fft, hop: of the mel; the rates must multiply to ``hop``.
      channels: at the frame rate; halved by every upsampling.
      rates, rate_widths: upsampling factors and the widths of their kernels.
      widths: kernel widths of the blocks that run side by side after each upsampling.
      dilations: of the convolutions in every block.
      dtype: type of the convolutions; parameters, activations and wave are float32.
    """

    def __init__(
        self,
        *,
        mel_dim: int,
        n_fft: int,
        hop: int,
        channels: int = 1536,
        rates: Sequence[int] = (4, 4, 2, 2, 2, 2),
        rate_widths: Sequence[int] = (8, 8, 4, 4, 4, 4),
        widths: Sequence[int] = (3, 7, 11),
        dilations: Sequence[int] = (1, 3, 5),
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        del n_fft  # the wave is written directly
        if math.prod(rates) != hop:
            raise ValueError(f"rates {tuple(rates)} multiply to {math.prod(rates)}, and a frame has {hop} samples")
        if channels % 2 ** len(rates):
            raise ValueError(f"{channels} channels cannot be halved {len(rates)} times")
        options = {"dtype": dtype, "rngs": rngs}
        self.pre = Conv(mel_dim, channels, 7, **options)
        ups, blocks = [], []
        for rate, width in zip(rates, rate_widths, strict=True):
            ups.append(Upsample(channels, channels // 2, width, rate, **options))
            channels //= 2
            blocks += [Block(channels, w, dilations, **options) for w in widths]
        self.ups, self.blocks = nnx.List(ups), nnx.List(blocks)
        self.snake = SnakeBeta(channels)
        self.post = Conv(channels, 1, 7, use_bias=False, **options)
        self.rates, self.parallel = tuple(rates), len(widths)

    def __call__(self, mel: jax.Array, lengths: jax.Array | None, window: jax.Array | None = None) -> jax.Array:
        """Waves in -1..1; a padded batch equals its rows alone.

        Args:
          mel: [b, t, m] natural log-mel.
          lengths: [b] frames of each row; None = all.
          window: not used; vocoders that write spectra take one.

        Returns:
          [b, t·hop] float32, zero behind each row's last sample.
        """
        del window
        x = self.pre(zero_outside(mel, _inside(lengths, mel.shape[1])))
        for i, rate in enumerate(self.rates):
            x = self.ups[i](zero_outside(x, _inside(lengths, x.shape[1])))
            lengths = None if lengths is None else lengths * rate
            x = zero_outside(x, _inside(lengths, x.shape[1]))
            side = [self.blocks[i * self.parallel + j](x, lengths) for j in range(self.parallel)]
            x = sum(side[1:], side[0]) / self.parallel
        inside = _inside(lengths, x.shape[1])
        wave = self.post(zero_outside(self.snake(x, lengths), inside))
        wave = jnp.clip(wave.astype(accumulation_dtype(wave.dtype)), -1.0, 1.0)
        return zero_outside(wave, inside)[..., 0]


def _inside(lengths, size) -> jax.Array | None:
    return None if lengths is None else jnp.arange(size) < lengths[:, None]
