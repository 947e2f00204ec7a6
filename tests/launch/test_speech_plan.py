"""Planning without a network: chunks, durations, seeds, and the parts that need no model (joining, splicing)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.audio import MelSpec, log_mel
from data.errors import UserError
from data.text import Tokenizer, tokenizer_from_texts
from launch.pipelines import speech_editing
from launch.pipelines.speech_durations import ByteRule, FixedPace, ReleaseRule, duration_rule
from launch.pipelines.speech_editing import Edit, parse_edits
from launch.pipelines.speech_joining import LEAST, STEP, CrossFade, join, silence
from launch.pipelines.speech_plan import Options, Planner, Request, derived_seed, piece_seeds
from launch.pipelines.speech_text import finished, joined, release_ending

SPEC = MelSpec(n_mels=8, sample_rate=8000, n_fft=256, hop=64, win=256)
RATE = SPEC.sample_rate / SPEC.hop
PLANNER = Planner(Tokenizer("byte"), SPEC, ByteRule(RATE), longest=6.0)


def voice(seconds: float = 2.0, amplitude: float = 0.3) -> np.ndarray:
    return (amplitude * np.sin(0.3 * np.arange(int(seconds * SPEC.sample_rate)))).astype(np.float32)


def test_frames_follow_utf8_bytes():
    rule = ByteRule(RATE)
    assert rule(100, (), (), ("four one", "nine two")) == 100
    assert rule(100, (), (), ("abc", "äöü")) == 175  # six bytes and a pause against three and a pause
    assert rule(0, (), (), ("", "a" * 13)) == RATE, "fourteen bytes a second where there is no reference"
    assert FixedPace(RATE, 7.0)(500, (), (), ("whatever", "a" * 13)) == 2 * RATE
    assert ReleaseRule()(375, (), (), ("Hello there my friend. ", "Hi.")) == pytest.approx(375 / 23 * 3)
    assert duration_rule("fixed:7", RATE) == FixedPace(RATE, 7.0) and duration_rule("rule", RATE) == rule
    for wrong in ("fixed:x", "learnt", "fixed:0"):
        with pytest.raises(UserError, match=r"durations are|fixed pace"):
            duration_rule(wrong, RATE)


def test_sentences_are_finished_where_the_model_knows_how():
    assert finished(" four one ") == "four one." and finished("four one", stop=False) == "four one"
    assert [finished(t) for t in ("why?", "你好。", "one.", "don't")] == ["why?", "你好。", "one.", "don't."]
    assert [release_ending(t) for t in ("a", "a.", "a. ", "好。")] == ["a. ", "a. ", "a. ", "好。"]


def test_texts_are_joined_by_one_blank_or_the_releases_two():
    assert joined("one.", "two.") == "one. two." and joined("", "two.") == "two."
    assert joined("你好。", "再见。") == "你好。再见。" and joined("кот", "пёс") == "кот пёс"
    assert joined(release_ending("one"), "two.", release=True) == "one.  two."


def test_long_texts_are_chunks_that_fit_and_lose_nothing():
    text = " ".join(["one two three four five"] * 400)  # ten minutes without a single stop
    request = Request(text, voice(), "one two three four five six.")
    plan = PLANNER(request, Options())
    assert len(plan.chunks) > 50
    assert " ".join(chunk.removesuffix(".") for chunk in plan.chunks) == text
    limit = 6.0 * RATE * 1.5
    assert all(len(plan.reference.mel) < piece.frames <= limit for piece in plan.pieces)
    assert len({piece.seed for piece in plan.pieces}) == len(plan.pieces)
    assert len(PLANNER(Request("one two three.", voice(), "four five six."), Options()).chunks) == 1


def test_a_stream_begins_with_a_short_chunk():
    text = "one two three four five six seven eight nine ten. " * 4
    request = Request(text, voice(), "one two three four five six.")
    whole, stream = PLANNER(request, Options()), PLANNER(request, Options(first_seconds=1.0), stream=True)
    assert len(stream.chunks[0]) < 0.6 * len(whole.chunks[0])
    assert "".join(" ".join(stream.chunks).split()).replace(".", "") == "".join(text.split()).replace(".", "")


def test_one_duration_is_shared_by_all_chunks():
    texts = ("one two three.", "four.", "five six.")
    options = Options(cross_fade=0.1)
    plan = PLANNER(Request(texts, voice(), "one two three.", duration=3.0), options)
    new = [piece.frames - piece.start for piece in plan.pieces]
    assert sum(new) == pytest.approx((3.0 + 2 * 0.1) * RATE, abs=2) and new[0] > new[2] > new[1]


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
@settings(max_examples=30)
def test_seeds_of_chunks_do_not_depend_on_how_many_there_are(seed: int, count: int):
    seeds = piece_seeds(seed, count)
    assert seeds == piece_seeds(seed, 50)[:count] and seeds[0] == seed
    assert piece_seeds(tuple(seeds), count) == seeds
    assert derived_seed(seed, 1) != derived_seed(seed, 0, 1)


def test_quiet_references_are_raised_and_the_answer_lowered():
    quiet = PLANNER.reference(voice(amplitude=0.02), "one.", Options())
    loud = PLANNER.reference(voice(amplitude=0.5), "one.", Options())
    rms = np.sqrt(np.mean(quiet.wave[:-500] ** 2))
    assert loud.gain == 1.0 and quiet.gain > 5 and rms == pytest.approx(0.1, rel=0.03)
    release = PLANNER.reference(voice(amplitude=0.5), "one", Options(behaviour="release"))
    assert release.text == "one. " and abs(len(release.wave) - len(loud.wave)) < 200


def test_a_text_in_another_script_is_refused():
    tokenizer = tokenizer_from_texts("char", ["one two."])
    planner = Planner(Tokenizer("char", tokenizer.symbols, unknown="space"), SPEC, ByteRule(RATE))
    with pytest.raises(UserError, match="knows no symbol of"):
        planner(Request("你好", voice(), "one."), Options())
    assert len(planner(Request("one 你好", voice(), "one."), Options()).pieces) == 1, "the release's silent blanks"
    with pytest.raises(UserError, match="no id for"):
        Planner(tokenizer, SPEC, ByteRule(RATE))(Request("你好", voice(), "one."), Options())


def test_loud_edges_do_not_overlap_and_silence_does():
    loud, quiet = np.full(6400, 0.3, np.float32), np.zeros(640, np.float32)
    assert silence(np.concatenate([quiet, loud])) == 640 and silence(quiet) == 640 and silence(loud) == 0
    overlap = 1280
    lengths = {
        "loud": (join([loud, loud], overlap, spare=True), LEAST),
        "silent before": (join([np.concatenate([loud, quiet]), loud], overlap, spare=True), 640),
        "silent on both sides": (
            join([np.concatenate([loud, quiet]), np.concatenate([quiet, loud])], overlap, True),
            1280,
        ),
    }
    for name, (wave, shared) in lengths.items():
        given = 12800 + (640 if "before" in name else 1280 if "both" in name else 0)
        assert given - len(wave) == shared, name
    assert len(join([loud, loud], overlap)) == 12800 - overlap, "the release's"
    assert join([loud, loud], overlap, spare=True).min() > 0.29, "nothing is lost"
    assert STEP < LEAST


@given(st.lists(st.integers(0, 60), min_size=1, max_size=6), st.integers(0, 40))
@settings(max_examples=60)
def test_waves_joined_as_they_come_are_those_joined_at_once(lengths: list[int], overlap: int):
    r = np.random.default_rng(sum(lengths))
    waves = [r.normal(size=n).astype(np.float32) for n in lengths]
    fade = CrossFade(overlap)
    np.testing.assert_array_equal(np.concatenate([*map(fade.add, waves), fade.finish()]), join(waves, overlap))
    expected = waves[0].astype(np.float64)  # the rule as the release states it
    for wave in waves[1:]:
        n = min(overlap, len(expected), len(wave))
        mixed = expected[len(expected) - n :] * np.linspace(1, 0, n) + wave[:n] * np.linspace(0, 1, n)
        expected = np.concatenate([expected[: len(expected) - n], mixed, wave[n:]])
    np.testing.assert_allclose(join(waves, overlap), expected, atol=1e-5)


EDITS = st.lists(
    st.tuples(st.floats(0, 1.9), st.floats(0, 0.5), st.none() | st.floats(0.05, 0.6)), min_size=1, max_size=3
)


@given(EDITS)
@settings(max_examples=60, deadline=None)
def test_kept_frames_and_samples_are_the_recordings(spans: list[tuple[float, float, float | None]]):
    recording = np.random.default_rng(0).normal(size=2 * SPEC.sample_rate + 17).astype(np.float32) * 0.1
    edits, last = [], 0.0
    for start, width, seconds in sorted(spans, key=lambda span: span[0]):
        start = max(start, last)
        last = min(start + width, 2.0)
        edits.append(Edit(start, last, seconds if seconds is not None or last - start > 0.05 else 0.1))
    mel = log_mel(recording, SPEC)
    lengths = speech_editing.new_lengths(edits, len(recording) / SPEC.sample_rate, "", "text")
    line = speech_editing.timeline(mel, len(recording), edits, lengths, SPEC)
    made = np.full(len(line.mel) * SPEC.hop, 7.0, np.float32)
    out = speech_editing.splice(recording, made, line, 100)
    assert len(line.mel) == len(line.known) and len(out) == line.samples
    for start, stop, place in line.kept:
        assert start % SPEC.hop == 0 == place % SPEC.hop, "frames and samples move together"
        frames = slice(start // SPEC.hop, start // SPEC.hop + min(-(-(stop - start) // SPEC.hop), 4))
        moved = place // SPEC.hop - start // SPEC.hop
        np.testing.assert_array_equal(line.mel[frames.start + moved : frames.stop + moved], mel[frames])
        inner = slice(min(100, (stop - start) // 2), max((stop - start) - 100, (stop - start) // 2))
        np.testing.assert_array_equal(out[place : place + stop - start][inner], recording[start:stop][inner])
    gaps = np.ones(len(out), bool)
    for start, stop, place in line.kept:
        gaps[place : place + stop - start] = False
    assert (out[gaps] == 7.0).all()


def test_the_length_of_an_edit():
    edits = parse_edits("0.5:1.0, 1.2:1.2:0.4")
    assert edits == [Edit(0.5, 1.0), Edit(1.2, 1.2, 0.4)]
    assert speech_editing.new_lengths(edits, 2.0, "", "x") == [0.5, 0.4]
    assert speech_editing.new_lengths([Edit(0.5, 0.5)], 2.0, "a" * 20, "a" * 25) == [pytest.approx(0.5)]


@pytest.mark.parametrize(
    "edits, message",
    [
        ("0.5", "is not start:end"),
        ("a:b", "is not start:end"),
        ("1.0:0.5", "does not lie in the recording"),
        ("0.5:3", "does not lie in the recording"),
        ("1.0:1.5,1.2:1.3", "begins before the one in front of it ends"),
        ("1.0:1.0", "how long is what comes at 1 s"),
        ("0.5:1.0:-1", "is to become -1 s"),
        ("0:2", "leave nothing of the recording"),
        ("1:1:0", "change nothing"),
    ],
)
def test_bad_spans_are_said(edits: str, message: str):
    recording = voice()
    with pytest.raises(UserError, match=message):
        parsed = parse_edits(edits)
        lengths = speech_editing.new_lengths(parsed, 2.0, "", "text")
        speech_editing.timeline(log_mel(recording, SPEC), len(recording), parsed, lengths, SPEC)
