"""From a log-mel spectrogram to a wave without a learned model.

Mel bands are un-mixed into linear magnitudes, then phases are found that agree with them from frame to frame.
"""

import functools

import jax
import jax.numpy as jnp

from models.ops.stft import istft, magnitude, stft


@functools.partial(jax.jit, static_argnames=("hop", "pad", "iterations", "momentum", "unmix_iterations"))
def vocode(
    log_mel: jax.Array,
    lengths: jax.Array,
    key: jax.Array,
    window: jax.Array,
    filterbank: jax.Array,
    *,
    hop: int,
    pad: int,
    iterations: int = 60,
    momentum: float = 0.99,
    unmix_iterations: int = 40,
) -> jax.Array:
    """log-mel -> wave.

    Args:
      log_mel: [b, frames, n_mels], natural logarithm.
      lengths: [b] frames of each row.
      key: for the first phases: one key, or keys per row [b].
      window, filterbank, hop, pad: those of the analysis, see ``models.ops.stft``.

    Returns:
      [b, (frames - 1)·hop + n_fft - 2·pad], zero behind each row's last sample; padding changes no other sample.
    """
    linear = unmix(jnp.exp(log_mel), filterbank, unmix_iterations)
    return griffin_lim(linear, lengths, key, window, hop=hop, pad=pad, iterations=iterations, momentum=momentum)


def unmix(mel: jax.Array, filterbank: jax.Array, iterations: int = 40) -> jax.Array:
    """Non-negative magnitudes [..., bins] whose mel is near ``mel`` [..., n_mels] in the least-squares sense.

    The pseudo-inverse's positive part is refined by multiplicative updates (Lee and Seung, 2001): the error never grows
    and nothing becomes negative.
    """
    start = jnp.maximum(mel @ jnp.linalg.pinv(filterbank), 1e-6)
    target = mel @ filterbank.T

    def update(_, linear):
        return linear * target / jnp.maximum(linear @ filterbank @ filterbank.T, 1e-10)

    return jax.lax.fori_loop(0, iterations, update, start)


def griffin_lim(
    linear: jax.Array,
    lengths: jax.Array,
    key: jax.Array,
    window: jax.Array,
    *,
    hop: int,
    pad: int,
    iterations: int = 60,
    momentum: float = 0.99,
) -> jax.Array:
    """Phases for magnitudes [b, frames, bins] by alternating projections with momentum (Perraudin et al., 2013).

    Frames behind a row's length count nowhere, and the inner transforms pad with zeros, so a padded batch equals its
    rows alone.  Returns the wave as ``vocode`` does.
    """
    n_fft = window.shape[0]
    inside = jnp.arange(linear.shape[1]) < lengths[:, None]
    linear = jnp.where(inside[..., None], linear, 0)
    last = (lengths - 1) * hop + n_fft - 2 * pad

    def synthesise(phases):
        wave = istft(linear * phases, window, hop=hop, pad=pad, mask=inside)
        return jnp.where(jnp.arange(wave.shape[-1]) < last[:, None], wave, 0)

    def unit(z):
        return z / jnp.maximum(magnitude(z), 1e-12)

    def iterate(_, carry):
        phases, previous = carry
        spectrum = stft(synthesise(phases), window, hop=hop, pad=pad, mode="constant")
        return unit(spectrum - momentum / (1 + momentum) * previous), spectrum

    keys = key if key.ndim else jax.random.split(key, linear.shape[0])
    angle = jax.vmap(lambda k: jax.random.uniform(k, linear.shape[1:], maxval=2 * jnp.pi))(keys)
    start = jax.lax.complex(jnp.cos(angle), jnp.sin(angle))
    phases, _ = jax.lax.fori_loop(0, iterations, iterate, (start, jnp.zeros_like(start)))
    return synthesise(phases)
