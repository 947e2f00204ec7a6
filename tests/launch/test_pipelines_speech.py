"""The speech pipeline: the same answer alone or in a batch, few programs, and clear refusals."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from data.audio import log_mel
from data.errors import UserError
from launch.pipelines.speech import Options, Request, load
from launch.pipelines.speech_durations import ByteRule
from launch.pipelines.speech_sampler import bucket
from tests.launch.speech import make_clip, make_workdir
from tests.train.speech import SPEC

TWO = Options(steps=2, prepare=False)


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
    wave = voice("ab cd", clip, "ef gh ab", Options(steps=4, prepare=False))
    frames = round(ByteRule(SPEC.hop)(SPEC.frames(int(0.6 * SPEC.sample_rate)), (), (), ("ef gh ab", "ab cd")))
    assert wave.dtype == np.float32 and wave.shape == ((frames - 1) * SPEC.hop,)
    assert np.isfinite(wave).all() and wave.std() > 0


def test_a_request_sounds_the_same_alone_and_in_any_batch(voice, clip):
    requests = [Request(text, clip, "ef gh", seed=i) for i, text in enumerate(("ab cd ef gh ab cd", "ab", "cd ef"))]
    together = voice.batch(requests, Options(steps=4))
    backwards = voice.batch(requests[::-1], Options(steps=4))[::-1]
    for i, request in enumerate(requests):
        alone = voice.batch([request], Options(steps=4))[0]
        for other in (together[i], backwards[i]):
            np.testing.assert_allclose(other.mel, alone.mel, atol=2e-4)
            assert other.wave.shape == alone.wave.shape
    assert not np.allclose(together[1].mel[:4], together[2].mel[:4], atol=0.1), "different seeds and texts"


def test_the_seed_decides(voice, clip):
    one, again, other = (voice("ab", clip, "cd", TWO, seed=s) for s in (3, 3, 4))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other)


def test_samples_and_files_are_the_same_reference(voice, clip):
    import soundfile

    wave, _ = soundfile.read(clip, dtype="float32")
    np.testing.assert_array_equal(voice("ab", wave, "cd", TWO), voice("ab", clip, "cd", TWO))


def test_few_programs_are_compiled(workdir, clip):
    voice = load(workdir)
    for text, duration in (("ab", 0.11), ("ab cd", 0.12), ("ab cd ef", 0.1)):  # of one bucket
        for strength in (0.5, 2.0):  # traced
            voice(
                text,
                clip,
                "gh ef",
                Options(steps=3, cfg_strength=strength, prepare=False),
                seed=len(text),
                duration=duration,
            )
    assert len(voice.sampler.programs) == 1
    request = Request("ab", clip, "cd", duration=0.1)
    costs = [
        voice.batch([request], Options(steps=3, cfg_strength=strength, prepare=False))[0].ledger
        for strength in (2.0, 0.0)
    ]
    calls = [cost.network_calls for cost in costs]
    assert calls == [6, 3] and len(voice.sampler.programs) == 2


def test_a_compiled_shape_serves_what_is_a_little_shorter(workdir, clip):
    voice = load(workdir)
    made = [voice.batch([Request("ab cd", clip, "cd ef", duration=d)], TWO)[0] for d in (0.4, 0.2, 0.05)]
    assert len(voice.sampler.programs) == 1
    voice.batch([Request("ab cd", clip, "cd ef", duration=2.0)], TWO)
    for spoken, duration in zip(made[1:], (0.2, 0.05), strict=True):  # a longer bucket changes nothing
        fresh = load(workdir).batch([Request("ab cd", clip, "cd ef", duration=duration)], TWO)[0]
        np.testing.assert_allclose(spoken.mel, fresh.mel, atol=2e-4)
        np.testing.assert_allclose(spoken.wave, fresh.wave, atol=1e-3)
    assert len(voice.sampler.programs) == 2


def test_duration_and_speed(voice, clip):
    normal = voice("ab cd ef", clip, "gh", TWO)
    fast = voice("ab cd ef", clip, "gh", TWO, speed=2.0)
    asked = voice("ab cd ef", clip, "gh", TWO, duration=0.4)
    assert len(fast) == pytest.approx(len(normal) / 2, abs=2 * SPEC.hop)
    assert len(asked) == pytest.approx(0.4 * SPEC.sample_rate, abs=1.5 * SPEC.hop)


def test_buckets_waste_at_most_an_eighth_and_are_few():
    sizes = {n: bucket(n, 64) for n in range(1, 4097)}
    assert all(size >= n and (size <= 64 or size <= 1.125 * n) for n, size in sizes.items())
    assert len(set(sizes.values())) <= 1 + 8 * 6
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
        ({"method": "ancestral"}, "draws noise at its steps"),
        ({"method": "edm_heun"}, "defined on VE"),
        ({"cfg_strength": -1.0}, "cfg_strength is -1"),
        ({"duration": 100.0}, "more than 90"),
        ({"seed": -1}, "seed is -1"),
        ({"text": ("ab", "cd"), "seed": (1,)}, "1 seeds for 2 chunks"),
        ({"behaviour": "odd"}, "behaviour is 'odd'"),
        ({"cross_fade": -0.1}, "cross_fade is -0.1"),
        ({"nbest": 0}, "nbest is 0"),
        ({"nbest": 2}, "no verifier to choose with"),
        ({"ref_audio": np.zeros(1, np.float32)}, "has 1 samples at 8000 Hz, less than 0.1 s"),
        ({"ref_audio": np.zeros(8000, np.float32)}, "reference clip is silent"),
        ({"ref_audio": np.full(8000, np.nan, np.float32)}, "expected finite samples"),
        ({"ref_audio": np.ones((30 * 8000,), np.float32)}, "lasts 30.0 s without its silence"),
    ],
)
def test_what_it_cannot_do_is_said(voice, clip, change, message):
    names = {field.name for field in dataclasses.fields(Options)}
    with pytest.raises(UserError, match=message):
        options = Options(**({"steps": 2} | {k: v for k, v in change.items() if k in names}))
        request = Request(
            **(
                {"text": "ab", "ref_audio": clip, "ref_text": "cd"}
                | {k: v for k, v in change.items() if k not in names}
            )
        )
        voice.batch([request], options)


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


def test_nan_in_the_weights_is_named(workdir, clip):
    voice = load(workdir)
    params = voice.sampler.variables["params"]
    params["output"]["bias"] = np.full_like(np.asarray(params["output"]["bias"]), np.nan)
    with pytest.raises(UserError, match="the parameter output/bias holds NaN"):
        voice("ab", clip, "cd", TWO)


def test_the_best_of_several_by_a_verifier(voice, clip):
    heard = []

    def loudness(wave: np.ndarray, text: str) -> float:
        heard.append(text)
        return float(np.abs(wave).mean())

    request = Request(("ab cd", "ef"), clip, "gh", seed=5)
    best = voice.batch([request], dataclasses.replace(TWO, nbest=3), loudness)[0]
    assert heard == ["ab cd"] * 3 + ["ef"] * 3
    assert best.ledger.network_calls == 2 * 3 * 4 and best.ledger.verifier_calls == 6
    again = voice.batch([dataclasses.replace(request, seed=best.seeds)], TWO)[0]
    np.testing.assert_allclose(again.wave, best.wave, atol=2e-4)
    plain = voice.batch([request], TWO)[0]
    assert plain.seeds[0] == 5 and len(set(plain.seeds) | set(best.seeds)) > 1
    scores = [
        float(np.abs(voice.batch([dataclasses.replace(request, seed=s.seeds)], TWO)[0].wave).mean())
        for s in (plain, best)
    ]
    assert scores[1] >= scores[0]


def test_without_a_reference_the_first_chunk_gives_the_voice(voice):
    spoken = voice.batch([Request(("ab cd", "ef", "gh"), None, "", seed=3), Request("ab", None, "")], TWO)
    assert spoken[0].chunks == ("ab cd", "ef", "gh") and len(spoken[0].seeds) == 3 and spoken[1].chunks == ("ab",)
    assert all(np.isfinite(s.wave).all() and s.wave.std() > 0 for s in spoken)
    alone = voice.batch([Request(("ab cd",), None, "", seed=3)], TWO)[0]
    np.testing.assert_allclose(spoken[0].mel[: len(alone.mel)], alone.mel, atol=2e-4)


def test_the_releases_behaviour_pastes_a_reference_frame(voice, clip):
    from data.audio import load_audio

    mel = log_mel(load_audio(clip, SPEC.sample_rate), SPEC)
    options = Options(steps=2, behaviour="release", prepare=False)
    release = voice.batch([Request("ab cd ef gh", clip, "gh")], options)[0]
    kept = len(mel) - 1  # samples // hop
    np.testing.assert_allclose(release.mel[0], mel[kept], atol=1e-5)
    corrected = voice.batch([Request("ab cd ef gh", clip, "gh")], dataclasses.replace(options, behaviour="corrected"))[
        0
    ]
    assert np.abs(corrected.mel[0] - mel[kept]).max() > 1e-2
