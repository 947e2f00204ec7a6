"""Short-time Fourier transform, its inverse, and the log-mel spectrogram, on the device.

Windows and filterbanks come in as arrays: ``data/audio.py`` defines them, and its numpy mel equals this one.  Waves are
[..., samples], spectra and mels put time first: [..., frames, bins].
"""

import jax
import jax.numpy as jnp


def stft(wave: jax.Array, window: jax.Array, *, hop: int, pad: int, mode: str = "reflect") -> jax.Array:
    """Windowed Fourier transform.

    Args:
      wave: [..., samples].
      window: [n_fft]; a shorter analysis window comes zero-padded on both sides.
      hop: samples between frames.
      pad: samples added at both ends: n_fft // 2 centres the frames, (n_fft - hop) // 2 gives one frame per hop.
      mode: how to pad: "reflect" or "constant" (zeros).

    Returns:
      complex [..., (samples + 2·pad - n_fft) // hop + 1, n_fft // 2 + 1].

    Raises:
      ValueError: the wave is too short to reflect or to fill one frame.
    """
    n_fft, samples = window.shape[0], wave.shape[-1]
    if samples + 2 * pad < n_fft or (mode == "reflect" and samples <= pad):
        raise ValueError(f"a wave of {samples} samples is too short for frames of {n_fft} with {pad} padded samples")
    wave = jnp.pad(wave, [(0, 0)] * (wave.ndim - 1) + [(pad, pad)], mode=mode)
    frames = (samples + 2 * pad - n_fft) // hop + 1
    return jnp.fft.rfft(_frame(wave, n_fft, hop, frames) * window, axis=-1)


def istft(spectrum: jax.Array, window: jax.Array, *, hop: int, pad: int, mask: jax.Array | None = None) -> jax.Array:
    """Least-squares inverse of ``stft``: windowed overlap-add, divided by the overlapping squared windows.

    Args:
      spectrum: complex [..., frames, n_fft // 2 + 1].
      window, hop, pad: as in ``stft``.
      mask: [..., frames] bool: frames that count; None = all.  Samples that only masked frames reach are 0.

    Returns:
      [..., (frames - 1)·hop + n_fft - 2·pad].
    """
    n_fft = window.shape[0]
    pieces = jnp.fft.irfft(spectrum, n_fft, axis=-1) * window
    weight = jnp.broadcast_to(jnp.square(window), (spectrum.shape[-2], n_fft))
    if mask is not None:
        pieces, weight = (jnp.where(mask[..., None], a, 0) for a in (pieces, weight))
    wave, total = _overlap_add(pieces, hop), _overlap_add(weight, hop)
    end = wave.shape[-1] - pad
    wave, total = wave[..., pad:end], total[..., pad:end]
    return jnp.where(total > 1e-8, wave / jnp.where(total > 1e-8, total, 1), 0)


def magnitude(spectrum: jax.Array, eps: float = 0.0) -> jax.Array:
    """sqrt(|spectrum|² + eps) with gradient 0 (not NaN) where that is 0.  Vocos' mel: eps 0; BigVGAN's: 1e-9."""
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag) + eps
    return jnp.where(power > 0, jnp.sqrt(jnp.where(power > 0, power, 1)), 0)


def log_mel(
    wave: jax.Array,
    window: jax.Array,
    filterbank: jax.Array,
    *,
    hop: int,
    pad: int,
    eps: float = 0.0,
    floor: float = 1e-5,
) -> jax.Array:
    """Natural logarithm of the mel-weighted magnitudes: [..., samples] -> [..., frames, n_mels].

    Args:
      filterbank: [n_fft // 2 + 1, n_mels].
      floor: smallest value the logarithm sees.
    """
    bands = magnitude(stft(wave, window, hop=hop, pad=pad), eps) @ filterbank
    return jnp.log(jnp.maximum(bands, floor))


def _frame(wave, n_fft, hop, frames):
    """[..., samples] -> [..., frames, n_fft], from shifted views of hop-sized blocks: no gather."""
    per_frame = -(-n_fft // hop)
    blocks = frames + per_frame - 1
    short = blocks * hop - wave.shape[-1]
    wave = jnp.pad(wave, [(0, 0)] * (wave.ndim - 1) + [(0, max(short, 0))])[..., : blocks * hop]
    wave = wave.reshape(*wave.shape[:-1], blocks, hop)
    shifted = [wave[..., i : i + frames, :] for i in range(per_frame)]
    return jnp.concatenate(shifted, -1)[..., :n_fft]


def _overlap_add(pieces, hop):
    """[..., frames, n_fft] -> [..., (frames - 1)·hop + n_fft]; the transpose of ``_frame``."""
    *batch, frames, n_fft = pieces.shape
    per_frame = -(-n_fft // hop)
    zeros = [(0, 0)] * len(batch)
    pieces = jnp.pad(pieces, [*zeros, (0, 0), (0, per_frame * hop - n_fft)])
    pieces = pieces.reshape(*batch, frames, per_frame, hop)
    shifted = [jnp.pad(pieces[..., i, :], [*zeros, (i, per_frame - 1 - i), (0, 0)]) for i in range(per_frame)]
    total = sum(shifted[1:], shifted[0])
    return total.reshape(*batch, -1)[..., : (frames - 1) * hop + n_fft]
