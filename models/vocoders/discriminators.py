"""Networks that tell recorded waves from made ones, for training vocoders.

``period`` ones see the wave folded into rows of p samples (HiFi-GAN, arXiv:2010.05646), ``resolution`` ones magnitude
spectra (UnivNet, arXiv:2106.07889).  Each gives its inner features, which the vocoder is asked to match, and a map of
verdicts: large = recorded.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from models.layers.linear import uniform_init

# Path of a parameter -> logical axis of each dimension; ``train/sharding.py`` maps those to mesh axes.
AXES: list[tuple[str, tuple[str | None, ...]]] = [
    (r"periods/\d+/layers/\d+/kernel", ("conv", None, None)),
    (r"resolutions/\d+/layers/\d+/kernel", ("conv", None, None, None)),
    (r"(periods|resolutions)/\d+/layers/\d+/(scale|bias)", ("norm",)),
]

SLOPE = 0.1  # of the leaky rectifier for negative inputs
Judgement = list[list[jax.Array]]  # per discriminator: features [b, ...] of every layer, the verdicts last


class Conv(nnx.Module):
    """Weight-normalised convolution over one or two dimensions, channels last; its kernel's directions and lengths are
    learned apart (arXiv:1602.07868)."""

    def __init__(self, c_in: int, c_out: int, width: Sequence[int], stride: Sequence[int], *, rngs: nnx.Rngs):
        shape = (*width, c_in, c_out)
        init = uniform_init(math.prod(shape[:-1]))
        self.kernel = nnx.Param(init(rngs.params(), shape))
        self.scale = nnx.Param(_length(self.kernel[...]))
        self.bias = nnx.Param(init(rngs.params(), (c_out,)))
        self.stride = tuple(stride)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [b, ..., c_in] -> [b, ..., c_out], zero padding of half a kernel at both ends."""
        kernel = self.kernel[...]
        kernel = kernel * (self.scale[...] / _length(kernel))
        pads = [(w // 2, w // 2) for w in kernel.shape[:-2]]
        dims = ("NWC", "WIO", "NWC") if len(pads) == 1 else ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, kernel.astype(x.dtype), self.stride, pads, dimension_numbers=dims)
        return y + self.bias[...].astype(x.dtype)


class Chain(nnx.Module):
    """Convolutions with leaky rectifiers between them; the last one gives the verdicts.

    Args:
      layers: (channels, width, stride) of each.
    """

    def __init__(self, layers: Sequence[tuple[int, Sequence[int], Sequence[int]]], *, rngs: nnx.Rngs):
        inputs = [1, *(channels for channels, _, _ in layers)]
        self.layers = nnx.List(
            [Conv(c_in, c, width, stride, rngs=rngs) for c_in, (c, width, stride) in zip(inputs, layers, strict=False)]
        )

    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """x [b, ..., 1] -> the output of every layer."""
        out = []
        for layer in self.layers:
            x = layer(jax.nn.leaky_relu(x, SLOPE) if out else x)
            out.append(x)
        return out


class Discriminators(nnx.Module):
    """All discriminators of a training.

    Args:
      periods: samples per row, one discriminator each.
      period_channels: of their layers; all but the last take every third row.
      resolutions: how many spectra there are, one discriminator each.
      resolution_channels: of their layers.
    """

    def __init__(
        self,
        *,
        periods: Sequence[int],
        period_channels: Sequence[int],
        resolutions: int,
        resolution_channels: int,
        rngs: nnx.Rngs,
    ):
        strides = [3] * (len(period_channels) - 1) + [1]
        folded = [(c, (5,), (s,)) for c, s in zip(period_channels, strides, strict=True)]
        spectral = [(resolution_channels, (3, 9), (1, s)) for s in (1, 2, 2, 2)] + [
            (resolution_channels, (3, 3), (1, 1))
        ]
        self.folds = tuple(periods)
        self.periods = nnx.List([Chain([*folded, (1, (3,), (1,))], rngs=rngs) for _ in periods])
        self.resolutions = nnx.List([Chain([*spectral, (1, (3, 3), (1, 1))], rngs=rngs) for _ in range(resolutions)])

    def __call__(self, wave: jax.Array, spectra: Sequence[jax.Array]) -> dict[str, Judgement]:
        """wave [b, samples], spectra: magnitudes [b, frames, bins] -> judgements by kind."""
        rows = len(wave)
        return {
            "period": [
                [feature.reshape(rows, -1) for feature in chain(fold(wave, period))]
                for chain, period in zip(self.periods, self.folds, strict=True)
            ],
            "resolution": [
                chain(spectrum[..., None]) for chain, spectrum in zip(self.resolutions, spectra, strict=True)
            ],
        }


def fold(wave: jax.Array, period: int) -> jax.Array:
    """[b, samples] -> [b · period, ⌈samples / period⌉, 1]: every ``period``-th sample, the end reflected to fill up."""
    b, samples = wave.shape
    wave = jnp.pad(wave, ((0, 0), (0, -samples % period)), mode="reflect")
    return wave.reshape(b, -1, period).swapaxes(1, 2).reshape(b * period, -1, 1)


def _length(kernel):
    """Of the weights that lead to each output channel."""
    return jnp.sqrt(jnp.sum(jnp.square(kernel), axis=tuple(range(kernel.ndim - 1))) + 1e-12)
