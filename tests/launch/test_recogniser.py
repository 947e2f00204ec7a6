"""The judge: edit distances against brute force, an interval that covers, verdicts that do not depend on order."""

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import UserError
from launch.recogniser import Recogniser, align, error_rate, split_words

WORDS = st.lists(st.sampled_from(["one", "two", "three"]), max_size=6)


@functools.cache
def distance(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    if not a or not b:
        return len(a) + len(b)
    return min(distance(a[1:], b[1:]) + (a[0] != b[0]), distance(a[1:], b) + 1, distance(a, b[1:]) + 1)


@given(WORDS, WORDS)
def test_edits_are_the_levenshtein_distance_and_explain_the_difference(said, heard):
    edits = align(said, heard)
    assert len(edits) == distance(tuple(said), tuple(heard))
    assert all(a != b for a, b in edits)
    assert sum(a != "" for a, _ in edits) - sum(b != "" for _, b in edits) == len(said) - len(heard)


def test_error_rate_counts_words_not_utterances():
    result = error_rate([["one", "two", "three"], ["one"]], [["one", "two", "two"], []])
    assert result.rate == 0.5 and result.words == 4 and result.utterances == 2
    assert set(result.confusions) == {("three", "two", 1), ("one", "", 1)}
    assert 0.0 <= result.low <= result.rate <= result.high <= 1.0


def test_bootstrap_interval_covers_the_truth_and_narrows():
    rng, inside, widths = np.random.default_rng(0), 0, []
    for trial in range(60):
        wrong = rng.random((60, 4)) < 0.3
        result = error_rate([["a"] * 4] * 60, [["b" if w else "a" for w in row] for row in wrong], seed=trial)
        inside += result.low <= 0.3 <= result.high
        widths.append(result.high - result.low)
    assert inside >= 52  # 57 expected
    few = error_rate([["a"] * 4] * 6, [["b" if w else "a" for w in row] for row in rng.random((6, 4)) < 0.3])
    assert few.high - few.low > np.mean(widths)


def test_words_are_split_from_text():
    assert split_words("Don't stop -- Seven, two!  4 Ünder") == ["don't", "stop", "seven", "two", "ünder"]


def test_nothing_to_judge_is_an_error():
    with pytest.raises(ValueError, match="no words"):
        error_rate([[]], [["one"]])


def test_silence_and_noise_are_judged_in_any_order():
    pytest.importorskip("pocketsphinx")
    judge = Recogniser(["one", "two", "three", "xqzzt"])
    assert judge.unknown == ["xqzzt"] and judge.words == ["one", "three", "two"]
    rng = np.random.default_rng(0)
    waves = [0.1 * rng.normal(size=24000).astype(np.float32) * np.hanning(24000) for _ in range(3)]
    waves.append(np.zeros(12000, np.float32))
    first = [judge.transcribe(w, 24000) for w in waves]
    again = [judge.transcribe(w, 24000) for w in reversed(waves)][::-1]
    assert first == again and first[-1] == []
    with pytest.raises(UserError, match="none of the words"):
        Recogniser(["xqzzt"])
