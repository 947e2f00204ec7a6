"""The speech pipeline: the same answer alone or in a batch, few programs, and clear refusals."""

import json
import shutil

import numpy as np
import pytest

from data.audio import log_mel
from data.errors import UserError
from launch.pipelines.speech import Request, bucket, finished, load, spoken_frames
from tests.launch.speech import make_clip, make_workdir
from tests.train.speech import SPEC


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return make_workdir(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def voice(workdir):
    return load(workdir)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make_clip(tmp_path_factory.mktemp("audio") / "ref.wav")


def test_it_speaks_for_as_long_as_the_rule_says(voice, clip):
    wave = voice("ab cd", clip, "ef gh ab", steps=4)
    frames = spoken_frames(SPEC.frames(int(0.6 * SPEC.sample_rate)), "ef gh ab", "ab cd")
    assert wave.dtype == np.float32 and wave.shape == ((frames - 1) * SPEC.hop,)
    assert np.isfinite(wave).all() and wave.std() > 0


def test_a_request_sounds_the_same_alone_and_in_any_batch(voice, clip):
    requests = [Request(text, clip, "ef gh", seed=i) for i, text in enumerate(("ab cd ef gh ab cd", "ab", "cd ef"))]
    together = voice.batch(requests, steps=4)
    backwards = voice.batch(requests[::-1], steps=4)[::-1]
    for i, request in enumerate(requests):
        alone = voice.batch([request], steps=4)[0]
        for other in (together[i], backwards[i]):
            np.testing.assert_allclose(other.mel, alone.mel, atol=2e-4)
            assert other.wave.shape == alone.wave.shape
    assert not np.allclose(together[1].mel[:4], together[2].mel[:4], atol=0.1), "different seeds and texts"


def test_the_seed_decides(voice, clip):
    one, again, other = (voice("ab", clip, "cd", steps=2, seed=s) for s in (3, 3, 4))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other)


def test_samples_and_files_are_the_same_reference(voice, clip):
    import soundfile

    wave, _ = soundfile.read(clip, dtype="float32")
    np.testing.assert_array_equal(voice("ab", wave, "cd", steps=2), voice("ab", clip, "cd", steps=2))


def test_few_programs_are_compiled(workdir, clip):
    voice = load(workdir)
    for text, duration in (("ab", 0.1), ("ab cd", 0.15), ("ab cd ef", 0.12)):  # of one bucket
        for strength in (0.5, 2.0):  # traced
            voice(text, clip, "gh ef", steps=3, cfg_strength=strength, seed=len(text), duration=duration)
    assert len(voice.programs) == 1
    request = Request("ab", clip, "cd", duration=0.1)
    calls = [voice.batch([request], steps=3, cfg_strength=strength)[0].network_calls for strength in (2.0, 0.0)]
    assert calls == [6, 3] and len(voice.programs) == 2


def test_a_compiled_shape_serves_what_is_a_little_shorter(workdir, clip):
    voice = load(workdir)
    for duration in (0.4, 0.2, 0.05):
        voice.batch([Request("ab cd", clip, "cd ef", duration=duration)], steps=2)
    assert len(voice.programs) == 1
    voice.batch([Request("ab cd", clip, "cd ef", duration=2.0)], steps=2)
    assert len(voice.programs) == 2


def test_duration_and_speed(voice, clip):
    normal = voice("ab cd ef", clip, "gh", steps=2)
    fast = voice("ab cd ef", clip, "gh", steps=2, speed=2.0)
    asked = voice("ab cd ef", clip, "gh", steps=2, duration=0.4)
    assert len(fast) == pytest.approx(len(normal) / 2, abs=2 * SPEC.hop)
    assert len(asked) == pytest.approx(0.4 * SPEC.sample_rate, abs=1.5 * SPEC.hop)


def test_frames_follow_utf8_bytes():
    assert spoken_frames(100, "four one", "nine two") == 100
    assert spoken_frames(100, "abc", "äöü") == 175  # six bytes and a pause against three and a pause
    assert spoken_frames(100, "abc", "abcd", speed=0.5) == 250
    with pytest.raises(UserError, match="speed is 0"):
        spoken_frames(100, "a", "b", speed=0)


def test_buckets_waste_at_most_a_quarter_and_are_few():
    sizes = {n: bucket(n, 64) for n in range(1, 4097)}
    assert all(size >= n and (size <= 64 or size <= 1.25 * n) for n, size in sizes.items())
    assert len(set(sizes.values())) <= 1 + 4 * 6
    assert all(bucket(size, 64) == size for size in sizes.values())


def test_vocoder_makes_a_wave_of_that_mel(voice, clip):
    from data.audio import load_audio

    mel = log_mel(load_audio(clip, SPEC.sample_rate), SPEC)
    waves = voice.vocode([mel, mel[:40]])
    assert [len(wave) for wave in waves] == [(len(mel) - 1) * SPEC.hop, 39 * SPEC.hop]
    assert np.corrcoef(log_mel(waves[0], SPEC).ravel(), mel.ravel())[0, 1] > 0.8  # eight bands say little of a tone


@pytest.mark.parametrize(
    "change, message",
    [
        ({"text": "ab xy"}, "no id for 'x' 'y'"),
        ({"text": "  "}, "no text to say"),
        ({"ref_text": ""}, "reference clip needs its words"),
        ({"ref_audio": "nowhere.wav"}, r"nowhere\.wav: no such audio file"),
        ({"duration": -1.0}, "duration is -1"),
        ({"speed": 0.0}, "speed is 0"),
        ({"steps": 0}, "at least one step"),
        ({"sway": 3.0}, "sway coefficient 3"),
        ({"method": "rk45"}, "unknown solver 'rk45'"),
        ({"cfg_strength": -1.0}, "cfg_strength is -1"),
        ({"duration": 100.0}, "more than 90"),
    ],
)
def test_what_it_cannot_do_is_said(voice, clip, change, message):
    with pytest.raises(UserError, match=message):
        voice(**{"text": "ab", "ref_audio": clip, "ref_text": "cd", "steps": 2, **change})


def test_folders_that_cannot_speak(tmp_path, workdir):
    with pytest.raises(UserError, match="is not a run folder"):
        load(tmp_path)
    with pytest.raises(UserError, match="has no checkpoint"):
        load(make_workdir(tmp_path / "begun", checkpoint=False))
    with pytest.raises(UserError, match=r"no 'ema/0\.5'"):
        load(workdir, params="ema/0.5")
    other = make_workdir(tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["model"]["depth"] = 2
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="is of another configuration"):
        load(other)
    shutil.rmtree(other / "assets")
    with pytest.raises(UserError, match="has no assets/"):
        load(other)


def test_sentences_are_finished_where_the_model_knows_how():
    assert finished(" four one ") == "four one." and finished("four one", stop=False) == "four one"
    assert [finished(t) for t in ("why?", "你好。", "one.", "don't")] == ["why?", "你好。", "one.", "don't."]
