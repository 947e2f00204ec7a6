"""Vocoders behind the pipelines: one interface, whatever is behind it."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from configs.vocos import get_config
from data.audio import MelSpec, log_mel, save_mel
from data.errors import UserError
from launch.evaluation import vocoders as evaluation
from launch.pipelines.vocoders import load_vocoder
from launch.recogniser import error_rate
from tests.launch.speech import make_workdir
from tests.train.speech import SPEC as SPEECH_SPEC
from train.assemble import plain
from train.checkpoint import CheckpointStore
from train.components import bind
from train.tasks.vocoder import VocoderTask

SPEC = MelSpec("vocos", 8000, 256, 64, 256, 40)


def wave(samples: int) -> np.ndarray:
    t = np.arange(samples) / SPEC.sample_rate
    return (0.3 * np.sin(2 * np.pi * 300 * t * (1 + t))).astype(np.float32)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    """A run folder of the tiny variant with shaken weights."""
    folder = tmp_path_factory.mktemp("vocos")
    config = plain(get_config("tiny"))
    config["data"]["mel"] = SPEC.to_dict()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "assets").mkdir()
    save_mel(folder / "assets", SPEC)
    options = {key: value for key, value in config["task"].items() if key != "type"}
    task, r = VocoderTask(bind(config["model"], "model"), folder / "assets", **options), np.random.default_rng(0)
    fresh = jax.jit(task.init)(jax.random.key(0))
    shaken = jax.tree.map(lambda a: np.asarray(a) + 0.1 * r.normal(size=a.shape).astype(np.float32), fresh)
    store = CheckpointStore(folder / "checkpoints")
    store.save(3, shaken, {"evaluate_with": "raw"})
    store.close()
    return folder


def check_rows(vocoder, atol: float) -> np.ndarray:
    """Two clips in a padded batch are what they are alone."""
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
        np.testing.assert_allclose(waves[i, : len(alone)], alone, atol=atol * np.abs(alone).max())
        assert not waves[i, len(alone) :].any()
    return waves


def test_griffin_lim_is_the_default_and_rows_do_not_see_padding():
    check_rows(load_vocoder(None, SPEC), 1e-3)


def test_a_trained_folder_loads_with_the_weights_that_it_holds(workdir):
    vocoder = load_vocoder(workdir, SPEC)
    waves = check_rows(vocoder, 1e-4)
    assert np.abs(waves).max() > 1e-3


def test_the_wrong_folder_is_named(workdir, tmp_path):
    with pytest.raises(UserError, match="another mel, with n_mels 40 where the model has 80"):
        load_vocoder(workdir, MelSpec("vocos", 8000, 256, 64, 256, 80))
    with pytest.raises(UserError, match="not a run folder"):
        load_vocoder(tmp_path, SPEC)
    with pytest.raises(UserError, match="is a run of SpeechTask; expected a vocoder"):
        load_vocoder(make_workdir(tmp_path / "speech", checkpoint=False), SPEECH_SPEC)


def test_distances_are_zero_for_the_recording_and_grow_with_noise():
    truth, r = [wave(1600), wave(900)], np.random.default_rng(0)
    noise = [r.normal(size=len(w)).astype(np.float32) for w in truth]
    steps = [
        evaluation.distances([w + s * n for w, n in zip(truth, noise, strict=True)], truth, SPEC)
        for s in (0, 0.01, 0.1)
    ]
    np.testing.assert_allclose(steps[0], 0.0, atol=1e-7)
    assert all(a < b < c for a, b, c in zip(*steps, strict=True))
    half = evaluation.distances([0.5 * n for n in noise], noise, SPEC)
    assert half[1] == pytest.approx(20 * np.log10(2), abs=1e-3) and half[2] == pytest.approx(np.log(2), abs=1e-3)


def test_a_loss_is_called_one():
    said = [["one", "two"]] * 20
    good, bad = error_rate(said, said), error_rate(said, [["three", "four"]] * 20)
    ours = evaluation.Judged(bad, 2.0, 9.0, 0.5, 100.0, 0.1)
    base = evaluation.Judged(good, 1.0, 12.0, 0.5, 50.0, 0.1)
    verdicts = evaluation.compare(ours, base)
    assert verdicts["WER"] == "LOSS" and verdicts["stft"].startswith("LOSS, 2.00 x")
    assert verdicts["lsd"].startswith("better") and verdicts["speed"].startswith("better, 2.00 x")
    assert evaluation.compare(base, base)["WER"] == "no difference within the intervals"
