"""Mel numbers against the golden files, invariances of the spectrogram, and files that are not what they claim."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from data.audio import MelSpec, filterbank, load_audio, log_mel, magnitude, resample, resample_sinc, save_wav, window
from data.errors import UserError

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "f5_tts"
SMALL = MelSpec("vocos", sample_rate=16000, n_fft=512, hop=128, win=400, n_mels=20)


def tone(hz: float, seconds: float, rate: int = 24000) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def test_filterbanks_and_window_are_the_references():
    golden = np.load(GOLDEN / "mel.npz")
    np.testing.assert_array_equal(filterbank(MelSpec()), golden["vocos_filterbank_fb"])
    np.testing.assert_allclose(filterbank(MelSpec("bigvgan")), golden["bigvgan_filterbank"].T, atol=1e-8)
    np.testing.assert_allclose(window(MelSpec()), golden["hann_window"], atol=5e-7)
    first = magnitude(golden["wave"][0], MelSpec())[:24].T
    np.testing.assert_allclose(first, golden["vocos_mag_first_wave_first24frames"], atol=2e-5)


@pytest.mark.parametrize(
    ("spec", "name"),
    [(MelSpec(), "vocos_logmel_100"), (MelSpec("bigvgan"), "bigvgan_logmel_100"), (SMALL, "vocos_logmel_small")],
)
def test_log_mel_is_the_references(spec: MelSpec, name: str):
    golden = np.load(GOLDEN / "mel.npz")
    expected = golden[name].transpose(0, 2, 1)
    actual = log_mel(golden["wave"], spec)
    loud = expected > -7
    np.testing.assert_allclose(actual[loud], expected[loud], atol=2e-4)
    np.testing.assert_allclose(np.exp(actual), np.exp(expected), atol=2e-5)
    assert actual.dtype == np.float32 and actual.shape[1] == spec.frames(golden["wave"].shape[1])


@given(st.integers(600, 5000), st.sampled_from([MelSpec(), MelSpec("bigvgan"), SMALL]))
@settings(deadline=None, max_examples=25)
def test_frame_count_is_known_without_computing(samples: int, spec: MelSpec):
    assert log_mel(np.zeros(samples, np.float32), spec).shape == (spec.frames(samples), spec.n_mels)


def test_a_later_start_by_whole_hops_moves_the_frames():
    rng = np.random.default_rng(0)
    wave = rng.normal(size=12000).astype(np.float32)
    inner = slice(8, 30)
    shifted = log_mel(np.concatenate([np.zeros(3 * 256, np.float32), wave]), MelSpec())
    np.testing.assert_allclose(shifted[11:33], log_mel(wave, MelSpec())[inner], atol=1e-4)


def test_ten_times_louder_adds_log_ten():
    wave = np.random.default_rng(1).normal(size=6000).astype(np.float32) * 0.05
    np.testing.assert_allclose(log_mel(wave * 10, MelSpec()) - log_mel(wave, MelSpec()), np.log(10), atol=1e-4)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".opus"])
def test_any_format_rate_and_channel_count_becomes_24_khz_mono(tmp_path: Path, suffix: str):
    rate = 48000 if suffix == ".opus" else 44100
    stereo = np.stack([tone(440, 1.0, rate), np.zeros(rate, np.float32)], axis=1)
    path = tmp_path / f"clip{suffix}"
    if suffix == ".opus":
        soundfile.write(path, stereo, rate, format="OGG", subtype="OPUS")
    else:
        soundfile.write(path, stereo, rate)
    wave = load_audio(path, 24000)
    assert wave.shape == (24000,) and wave.dtype == np.float32
    np.testing.assert_allclose(np.sqrt(np.mean(wave**2)), 0.25 / np.sqrt(2), rtol=0.05)
    spectrum = np.abs(np.fft.rfft(wave))
    assert abs(int(spectrum.argmax()) - 440) <= 1  # one-second clip: bins are 1 Hz


def test_resampling_removes_what_the_new_rate_cannot_hold():
    assert np.abs(resample(tone(15000, 0.5, 48000), 48000, 24000))[500:-500].max() < 1e-3
    kept = resample(tone(1000, 0.5, 16000), 16000, 24000)
    np.testing.assert_allclose(kept[500:-500], tone(1000, 0.5)[500:-500], atol=2e-3)


def test_bad_files_are_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"gone\.wav: no such audio file"):
        load_audio(tmp_path / "gone.wav", 24000)
    (tmp_path / "text.wav").write_text("this is not sound")
    with pytest.raises(UserError, match=r"text\.wav: cannot be read as audio"):
        load_audio(tmp_path / "text.wav", 24000)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), 24000)
    with pytest.raises(UserError, match=r"empty\.wav: the audio file holds no samples"):
        load_audio(tmp_path / "empty.wav", 24000)
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan], np.float32), 24000, subtype="FLOAT")
    with pytest.raises(UserError, match="NaN"):
        load_audio(tmp_path / "nan.wav", 24000)
    with pytest.raises(UserError, match="too short"):
        log_mel(np.zeros(100, np.float32), MelSpec())
    with pytest.raises(UserError, match="vocos"):
        MelSpec("mp3")


def test_save_wav_round_trips_and_leaves_no_partial_file(tmp_path: Path):
    wave = tone(300, 0.2)
    save_wav(tmp_path / "new" / "a.wav", wave, 24000)
    np.testing.assert_allclose(load_audio(tmp_path / "new" / "a.wav", 24000), wave, atol=1 / 32767)
    with pytest.raises(TypeError):
        save_wav(tmp_path / "new" / "b.wav", wave, "fast")  # type: ignore[arg-type]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.wav"]


@pytest.mark.parametrize("rate", [16000, 22050, 44100, 48000])
def test_sinc_resampling_is_the_references(rate: int):
    golden = np.load(GOLDEN / "resample.npz")
    expected = golden[f"resample_{rate}_24000"]
    np.testing.assert_allclose(resample_sinc(golden["wave"], rate, 24000), expected, atol=1e-5)


@pytest.mark.parametrize("rate", [8000, 44100])
def test_both_resamplers_agree_on_a_low_tone(rate: int):
    wave, inner = tone(440.0, 0.3, rate), slice(500, -500)
    expected = tone(440.0, 0.3)
    for resampled in (resample(wave, rate, 24000), resample_sinc(wave, rate, 24000)):
        assert abs(len(resampled) - len(expected)) <= 1
        np.testing.assert_allclose(resampled[: len(expected)][inner], expected[: len(resampled)][inner], atol=5e-3)
