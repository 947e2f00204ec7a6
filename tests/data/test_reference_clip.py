"""Reference clips: the release's preparation to the last sample, and what the corrected one must not do."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from data.errors import UserError
from data.reference_clip import LONGEST, prepare_clip, stretch, tail_samples

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "f5_tts"
CASES = json.loads((GOLDEN / "ref_audio_preprocess.json").read_text())["cases"]
RATE = 16000


def tone(*segments: tuple[float, float], rate: int = RATE) -> np.ndarray:
    """(seconds, amplitude) in turn, a tone of 200 Hz, float."""
    parts = [amp * np.sin(2 * np.pi * 200 / rate * np.arange(int(rate * seconds))) for seconds, amp in segments]
    return np.concatenate(parts).astype(np.float32)


@pytest.mark.parametrize("name", CASES)
def test_the_release_keeps_these_samples(name: str):
    stored = np.load(GOLDEN / "ref_audio_preprocess.npz")
    clip, rate = prepare_clip(stored[f"{name}_in"], CASES[name]["sample_rate"], "release")
    assert rate == CASES[name]["out_sample_rate"] and clip.dtype == np.int16
    np.testing.assert_array_equal(clip, stored[f"{name}_out"])


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100])
def test_edges_go_and_a_tail_comes_at_any_rate(rate: int):
    wave = tone((0.5, 0.0), (2.0, 0.5), (0.7, 0.0), rate=rate)
    clip, same = prepare_clip(wave, rate)
    tail = tail_samples(rate)
    assert same == rate and 0.04 < tail / rate < 0.0505
    assert len(clip) - tail == pytest.approx(2.0 * rate, abs=0.021 * rate)
    assert not clip[-tail:].any() and np.abs(clip[: rate // 100]).max() > 0.1


def test_every_sample_of_speech_stays():
    """What is kept is a subsequence of the recording, in order, and only silence is missing."""
    r = np.random.default_rng(0)
    noise = lambda seconds: (r.normal(size=int(seconds * RATE)) * 3000).astype(np.int16)  # noqa: E731
    speech = [noise(2.0), noise(9.0), noise(4.0)]
    pause = np.zeros(3 * RATE, np.int16)
    clip, _ = prepare_clip(np.concatenate([speech[0], pause, speech[1], pause, speech[2]]), RATE)
    loud = clip[np.flatnonzero(clip)[0] :]
    np.testing.assert_array_equal(loud[loud != 0], np.concatenate(speech)[np.concatenate(speech) != 0])
    assert len(clip) < (15 + 2 * 2.1) * RATE, "a pause keeps one second at each end"


def test_quiet_and_loud_recordings_are_cut_alike():
    wave = tone((0.5, 0.0005), (2.0, 0.3), (0.6, 0.0005))
    loud, quiet = prepare_clip(wave, RATE)[0], prepare_clip(wave * 0.02, RATE)[0]
    assert len(loud) == len(quiet) and len(loud) < 2.2 * RATE
    np.testing.assert_allclose(loud * 0.02, quiet, atol=1e-6)
    with pytest.raises(UserError, match="is silent"):
        prepare_clip((wave * 0.02).astype(np.float32), RATE, "release")  # all of it below its threshold


def test_channels_stay_and_types_agree():
    wave = (tone((0.3, 0.0), (1.5, 0.4)) * 32767).astype(np.int16)
    stereo, _ = prepare_clip(np.stack([wave, wave], 1), RATE, "release")
    mono, _ = prepare_clip(wave, RATE, "release")
    np.testing.assert_array_equal(stereo, np.stack([mono, mono], 1))
    as_float, _ = prepare_clip(wave.astype(np.float32) / 32768, RATE, "release")
    np.testing.assert_array_equal(as_float * 32768, mono)


def test_too_long_and_silent_clips_are_refused():
    with pytest.raises(UserError, match=f"lasts 2[0-9.]+ s without its silence, more than {LONGEST:.0f} s"):
        prepare_clip(tone((24.0, 0.3)), RATE)
    assert len(prepare_clip(tone((24.0, 0.3)), RATE, "release")[0]) == 12 * RATE + tail_samples(RATE)
    for wave in (np.zeros(RATE, np.float32), np.zeros(1, np.float32), np.zeros(3 * RATE, np.int16)):
        with pytest.raises(UserError, match="is silent"):
            prepare_clip(wave, RATE)


def test_stretching_is_audioops():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        audioop = pytest.importorskip("audioop")
    wave = np.random.default_rng(1).integers(-32768, 32767, (997, 2)).astype(np.int16)
    for rate, target in ((8000, 11025), (11025, 16000), (44100, 11025)):
        expected, _ = audioop.ratecv(wave.tobytes(), 2, 2, rate, target, None)
        np.testing.assert_array_equal(stretch(wave, rate, target), np.frombuffer(expected, np.int16).reshape(-1, 2))
