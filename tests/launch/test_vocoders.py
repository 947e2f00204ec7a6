"""Vocoders behind the pipelines: one interface, whatever is behind it."""

import jax
import numpy as np

from data.audio import MelSpec, log_mel
from launch.pipelines.vocoders import load_vocoder

SPEC = MelSpec("vocos", 8000, 256, 64, 256, 40)


def wave(samples: int) -> np.ndarray:
    t = np.arange(samples) / SPEC.sample_rate
    return (0.3 * np.sin(2 * np.pi * 300 * t * (1 + t))).astype(np.float32)


def test_griffin_lim_is_the_default_and_rows_do_not_see_padding():
    vocoder = load_vocoder(None, SPEC)
    mels = [log_mel(wave(n), SPEC) for n in (1600, 900)]
    batch = np.full((2, 32, SPEC.n_mels), 3.0, np.float32)
    for row, mel in zip(batch, mels, strict=True):
        row[: len(mel)] = mel
    keys = jax.random.split(jax.random.key(0), 2)
    lengths = np.array([len(mel) for mel in mels], np.int32)
    waves = np.asarray(vocoder(batch, lengths, keys))
    assert waves.shape == (2, vocoder.samples(32))
    for i, mel in enumerate(mels):
        alone = np.asarray(vocoder(mel[None], lengths[i : i + 1], keys[i : i + 1]))[0]
        assert alone.shape == (vocoder.samples(len(mel)),)
        np.testing.assert_allclose(waves[i, : len(alone)], alone, atol=1e-3 * np.abs(alone).max())
        assert not waves[i, len(alone) :].any()
