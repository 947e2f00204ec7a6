"""Streams and edits with a network: the same sound as at once, and nothing touched that was to be kept."""

import dataclasses

import numpy as np
import pytest

from data.audio import load_audio, log_mel
from data.errors import UserError
from launch.pipelines.speech import Edit, Options, Request, load
from launch.pipelines.speech_editing import FADE
from tests.launch.speech import make_clip, make_workdir
from tests.train.speech import SPEC

TWO = Options(steps=2, cross_fade=0.02)
TEXTS = ("ab", "cd ef gh", "ef ab")


@pytest.fixture(scope="module")
def voice(tmp_path_factory):
    return load(make_workdir(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make_clip(tmp_path_factory.mktemp("audio") / "ref.wav")


@pytest.mark.parametrize("ref", [True, False])
def test_streamed_alone_or_in_a_batch_the_same_chunks_sound_the_same(voice, clip, ref):
    audio, words = (clip, "gh") if ref else (None, "")
    request = Request(TEXTS, audio, words, seed=(4, 9, 2))
    parts = list(voice.stream(request, TWO))
    alone = voice.batch([request], TWO)[0]
    others = [Request("ab ab cd cd", clip, "ef gh", seed=1), Request(("gh", "cd"), clip, "ab")]
    together = voice.batch([others[0], request, others[1]], TWO)[1]
    assert len(parts) == 3 and alone.seeds == together.seeds == (4, 9, 2)
    for other in (np.concatenate(parts), together.wave):
        assert other.shape == alone.wave.shape
        np.testing.assert_allclose(other, alone.wave, atol=1e-3)  # Griffin-Lim's 60 rounds magnify rounding
    np.testing.assert_allclose(together.mel, alone.mel, atol=2e-4)


def test_a_long_text_streams_with_a_short_beginning_and_few_programs(voice, clip, monkeypatch):
    monkeypatch.setattr(voice, "planner", dataclasses.replace(voice.planner, longest=3.0))
    request = Request("ab cd ef gh ab cd ef gh " * 12, clip, "ef gh ab cd")
    parts = list(voice.stream(request, dataclasses.replace(TWO, first_seconds=0.3)))
    lengths = np.array([len(part) for part in parts])
    assert len(parts) >= 3 and lengths[0] < 0.5 * lengths[1:].max()
    programs, shapes = len(voice.sampler.programs), len(voice.voicer.shapes)
    again = np.concatenate(list(voice.stream(request, dataclasses.replace(TWO, first_seconds=0.3))))
    np.testing.assert_array_equal(again, np.concatenate(parts))
    assert (len(voice.sampler.programs), len(voice.voicer.shapes)) == (programs, shapes), "nothing new to compile"


def test_the_next_chunk_is_sent_before_the_last_one_is_fetched(voice, clip, monkeypatch):
    events = []
    send, collect = voice._send, voice._collect
    monkeypatch.setattr(voice, "_send", lambda *a: (events.append("send"), send(*a))[1])
    monkeypatch.setattr(voice, "_collect", lambda *a: (events.append("fetch"), collect(*a))[1])
    for _ in voice.stream(Request(TEXTS, clip, "gh"), TWO):
        events.append("heard")
    assert events == ["send", "send", "fetch", "heard", "send", "fetch", "heard", "fetch", "heard"]


def test_what_is_wrong_with_a_stream_is_said_at_once(voice, clip):
    with pytest.raises(UserError, match="no id for"):
        voice.stream(Request("xyz", clip, "gh"), TWO)


def test_an_edit_keeps_frames_bit_for_bit_and_copies_samples(voice, clip):
    recording = load_audio(clip, SPEC.sample_rate)
    edits = [Edit(0.2, 0.3, 0.15), Edit(0.45, 0.45, 0.1)]
    spoken = voice.edit(clip, "ab cd ef", edits, TWO, seed=3)
    mel, hop = log_mel(recording, SPEC), SPEC.hop
    a, b, c = (round(s * SPEC.sample_rate / hop) for s in (0.2, 0.3, 0.45))
    new = [round(s * SPEC.sample_rate / hop) for s in (0.15, 0.1)]
    for old, place in (((0, a), 0), ((b, c), a + new[0]), ((c, len(mel)), a + new[0] + c - b + new[1])):
        length = old[1] - old[0]
        np.testing.assert_array_equal(spoken.mel[place : place + length], mel[old[0] : old[1]])
        fade = round(FADE * SPEC.sample_rate)
        at, part = place * hop, recording[old[0] * hop : old[1] * hop]
        inner = slice(fade if place else 0, len(part) - (fade if old[1] < len(mel) else 0))
        np.testing.assert_array_equal(spoken.wave[at : at + len(part)][inner], part[inner])
    gap = spoken.mel[a : a + new[0]]
    assert (
        np.isfinite(gap).all()
        and gap.std() > 0
        and len(spoken.wave) == len(recording) + (new[0] + a - b + new[1]) * hop
    )
    assert np.abs(spoken.wave[a * hop + 200 : (a + new[0]) * hop - 200]).max() > 0
    other = voice.edit(clip, "ab cd ef", edits, TWO, seed=4)
    assert not np.array_equal(other.mel, spoken.mel), "the seed decides what is new"


def test_bad_edits(voice, clip):
    with pytest.raises(UserError, match="does not lie in the recording"):
        voice.edit(clip, "ab", [Edit(0.1, 5.0)], TWO)
    with pytest.raises(UserError, match="symbols for"):
        voice.edit(clip, "ab cd " * 100, [Edit(0.1, 0.2)], TWO)
    with pytest.raises(UserError, match="silent or empty"):
        voice.edit(np.zeros(8000, np.float32), "ab", [Edit(0.1, 0.2)], TWO)
