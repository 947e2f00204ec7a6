"""How far apart two waves are for an ear that does not hear phases: distances between magnitudes.

All take waves [b, samples] and give one number per row [b]; the windows come from ``data.audio``.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from models.ops.stft import magnitude, stft

FLOOR = (
    1e-3  # of magnitudes inside logarithms: 108 dB below a full-scale tone at n_fft 1024, below 16-bit noise's peaks
)


def magnitudes(wave: jax.Array, window: jax.Array) -> jax.Array:
    """[b, samples] -> [b, frames, bins], centred frames a quarter of the window apart."""
    n_fft = len(window)
    return magnitude(stft(wave, window, hop=n_fft // 4, pad=n_fft // 2))


def stft_distance(made: jax.Array, truth: jax.Array, windows: Sequence[jax.Array]) -> jax.Array:
    """Multi-resolution STFT distance (arXiv:1910.11480): spectral convergence plus the mean absolute difference of the
    natural logarithms of magnitudes, averaged over ``windows``."""
    total = jnp.zeros(len(truth))
    for window in windows:
        a, b = magnitudes(made, window), magnitudes(truth, window)
        error, size = (jnp.sqrt(jnp.square(x).sum((1, 2)) + 1e-12) for x in (a - b, b))
        logs = jnp.log(jnp.maximum(a, FLOOR)) - jnp.log(jnp.maximum(b, FLOOR))
        total += error / jnp.maximum(size, FLOOR) + jnp.abs(logs).mean((1, 2))
    return total / len(windows)


def log_spectral_distance(made: jax.Array, truth: jax.Array, window: jax.Array) -> jax.Array:
    """dB: root mean square over bins of the difference in level, averaged over frames."""
    levels = [20 * jnp.log10(jnp.maximum(magnitudes(x, window), FLOOR)) for x in (made, truth)]
    return jnp.sqrt(jnp.square(levels[0] - levels[1]).mean(-1)).mean(-1)
