"""Device transforms against the golden mels, the numpy path, and each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data import audio
from models.ops import stft
from tests.models import golden

SPECS = {
    "vocos_logmel_100": audio.MelSpec("vocos"),
    "bigvgan_logmel_100": audio.MelSpec("bigvgan"),
    "vocos_logmel_small": audio.MelSpec("vocos", 16000, 512, 128, 400, 20),
}


def device_mel(wave, spec):
    eps = 1e-9 if spec.kind == "bigvgan" else 0.0
    window, bank = audio.window(spec), audio.filterbank(spec)
    return jax.jit(lambda x: stft.log_mel(x, window, bank, hop=spec.hop, pad=spec.padding, eps=eps))(wave)


@pytest.mark.parametrize("name", SPECS)
def test_log_mel_equals_the_release_and_the_numpy_path(name):
    numbers, spec = golden.load("mel"), SPECS[name]
    got = np.asarray(device_mel(numbers["wave"], spec))
    wanted = numbers[name].transpose(0, 2, 1)
    assert got.shape == wanted.shape
    assert np.abs(got - wanted)[wanted > -7].max() < 2e-4
    assert np.abs(np.exp(got) - np.exp(wanted)).max() < 2e-5
    numpy = audio.log_mel(numbers["wave"], spec)
    np.testing.assert_allclose(np.exp(got), np.exp(numpy), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("n_fft", "hop", "win"), [(64, 16, 64), (60, 25, 40), (32, 32, 32)])
@pytest.mark.parametrize("centred", [True, False])
def test_inverse_of_the_transform_is_the_wave(n_fft, hop, win, centred):
    """istft(stft(x)) == x wherever windows cover x, for hops that do and do not divide the frame."""
    wave = np.random.default_rng(0).normal(size=(2, 3, 500)).astype(np.float32)
    window = np.zeros(n_fft, np.float32)
    left = (n_fft - win) // 2
    window[left : left + win] = np.hanning(win + 2)[1:-1]
    pad = n_fft // 2 if centred else max((n_fft - hop) // 2, 0)
    back = stft.istft(stft.stft(jnp.asarray(wave), window, hop=hop, pad=pad), window, hop=hop, pad=pad)
    edge = 0 if centred else n_fft  # without centring the first and last samples are seen by one weak window end only
    inner = slice(edge, min(back.shape[-1], 500) - edge)
    np.testing.assert_allclose(back[..., inner], wave[..., inner], atol=2e-4)


def test_transform_is_linear_keeps_energy_and_finds_a_tone():
    window = np.hanning(65)[:-1].astype(np.float32)
    x, y = np.random.default_rng(0).normal(size=(2, 640)).astype(np.float32)

    def run(x):
        return stft.stft(jnp.asarray(x), window, hop=16, pad=32)

    np.testing.assert_allclose(run(2 * x + y), 2 * run(x) + run(y), atol=1e-4)
    tone = run(np.cos(2 * np.pi * 8 / 64 * np.arange(640)).astype(np.float32))
    assert (stft.magnitude(tone).argmax(-1)[2:-2] == 8).all()
    frame = np.fft.rfft(x[160:224] * window)
    np.testing.assert_allclose(run(x)[12], frame, atol=1e-4)  # frame 12 starts at 12·16 - 32


def test_masked_frames_count_nowhere():
    window = np.hanning(65)[:-1].astype(np.float32)
    spectrum = stft.stft(
        jnp.asarray(np.random.default_rng(0).normal(size=(1, 320)), jnp.float32), window, hop=16, pad=32
    )
    mask = jnp.arange(spectrum.shape[1])[None] < 9
    whole = stft.istft(spectrum, window, hop=16, pad=32, mask=mask)
    alone = stft.istft(spectrum[:, :9], window, hop=16, pad=32)
    np.testing.assert_allclose(whole[:, : alone.shape[1]], alone, atol=1e-6)
    assert not np.any(whole[:, 9 * 16 + 64 - 32 :])


def test_silence_has_finite_gradients_and_short_waves_are_refused():
    spec = SPECS["vocos_logmel_small"]
    grad = jax.grad(lambda x: device_mel(x, spec).sum())(jnp.zeros(2000))
    assert np.isfinite(grad).all()
    with pytest.raises(ValueError, match="too short"):
        device_mel(jnp.zeros(100), spec)
