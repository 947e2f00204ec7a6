"""Griffin-Lim: each promise on a synthetic voice-like wave."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data import audio
from models.ops import stft
from models.vocoders import griffin_lim

SPEC = audio.MelSpec("vocos", 8000, 256, 64, 256, 40)
WINDOW, BANK = audio.window(SPEC), audio.filterbank(SPEC)


def voice(samples=6016):
    """A gliding harmonic tone with a rhythm."""
    t = np.arange(samples) / SPEC.sample_rate
    phase = 2 * np.pi * (120 * t + 30 * t**2)
    wave = sum(np.sin(k * phase) / k for k in range(1, 12)) * (0.6 + 0.4 * np.sin(2 * np.pi * 5 * t))
    return (0.2 * wave).astype(np.float32)


def inconsistency(linear, **options):
    """Relative distance between the wanted magnitudes and those of the wave found."""
    lengths = jnp.full(linear.shape[0], linear.shape[1])
    run = jax.jit(lambda m: griffin_lim.griffin_lim(m, lengths, jax.random.key(0), WINDOW, hop=64, pad=128, **options))
    wave = run(linear)
    got = stft.magnitude(stft.stft(wave, WINDOW, hop=64, pad=128, mode="constant"))
    return float(jnp.linalg.norm(got - linear) / jnp.linalg.norm(linear))


def test_more_iterations_fit_better_and_momentum_helps():
    linear = jnp.asarray(audio.magnitude(voice(), SPEC))[None]
    errors = [inconsistency(linear, iterations=n) for n in (0, 4, 16, 60)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.12
    assert errors[-1] < inconsistency(linear, iterations=60, momentum=0.0)


@pytest.mark.parametrize("kind", ["vocos", "bigvgan"])
def test_mel_of_the_wave_is_the_mel_asked_for(kind):
    spec = audio.MelSpec(kind, 8000, 256, 64, 256, 40)
    mel = audio.log_mel(voice(), spec)[None]
    n = mel.shape[1]
    options = {"hop": 64, "pad": spec.padding, "iterations": 60}
    arrays = (audio.window(spec), audio.filterbank(spec))
    wave = np.asarray(griffin_lim.vocode(mel, np.array([n]), jax.random.key(0), *arrays, **options))
    assert wave.shape == (1, (n - 1) * 64 + 256 - 2 * spec.padding)
    again = audio.log_mel(wave, spec)
    loud = mel[:, 4:-4] > -4
    assert np.abs(again - mel)[:, 4:-4][loud].mean() < 0.25


def test_padding_changes_no_sample():
    mel = np.full((2, 95, 40), -3.0, np.float32)
    mel[:] += np.random.default_rng(0).normal(size=mel.shape)
    keys = jax.random.split(jax.random.key(0), 2)
    whole = griffin_lim.vocode(mel, np.array([95, 40]), keys, WINDOW, BANK, hop=64, pad=128, iterations=8)
    alone = griffin_lim.vocode(mel[1:, :40], np.array([40]), keys[1:], WINDOW, BANK, hop=64, pad=128, iterations=8)
    n = 39 * 64
    np.testing.assert_allclose(whole[1, :n], alone[0], atol=1e-3 * np.abs(alone).max())
    assert not np.any(whole[1, n:])


def test_unmixing_inverts_mixing_and_stays_positive():
    linear = np.abs(audio.magnitude(voice(), SPEC))
    mel = jnp.asarray(linear @ BANK)
    errors = []
    for n in (0, 5, 40):
        found = griffin_lim.unmix(mel, BANK, n)
        assert (found >= 0).all()
        errors.append(float(jnp.linalg.norm(found @ BANK - mel) / jnp.linalg.norm(mel)))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.03
