"""The corpus maker: its texts, its cuts, and (where flite is installed) what it says."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data.audio import load_audio
from data.errors import UserError
from data.speech_source import read_source, split_by_text
from launch import corpus

ROOT = Path(__file__).resolve().parent.parent.parent
needs_flite = pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed (apt-get install flite)")


def say(text: str, voice: str, stretch: float, out: Path, rate: int = 16000) -> None:
    """A voice whose every letter takes 40 ms, between silences that are not quite silent."""
    rng = np.random.default_rng(len(text))
    n = int(0.04 * rate * stretch * sum(c != " " for c in text))
    speech = 0.5 * np.sin(np.arange(n) * 0.1)
    quiet = [1e-3 * rng.normal(size=int(s * rate)) for s in (0.21, 0.33)]
    soundfile.write(out, np.concatenate([quiet[0], speech, quiet[1]]), rate)


def test_texts_are_different_and_from_the_words_only():
    texts = corpus.draw_texts(["a", "b", "c"], 40, 2, 4, seed=1)
    assert len(set(texts)) == 40 and {len(t.split()) for t in texts} == {2, 3, 4}
    assert all(t.endswith(".") for t in texts)
    assert texts == corpus.draw_texts(["a", "b", "c"], 40, 2, 4, seed=1) != corpus.draw_texts(list("abc"), 40, 2, 4, 2)
    with pytest.raises(UserError, match="too few for 10 texts"):
        corpus.draw_texts(["a", "b"], 10, 1, 2, 0)
    with pytest.raises(UserError, match="expected words"):
        corpus.draw_texts(["a|b"], 1, 1, 1, 0)


def test_clips_are_trimmed_to_a_margin_or_to_the_pace_exactly():
    wave, rate = corpus.utter(say, "four nine", "any", pace=0)
    assert rate == 16000 and abs(len(wave) / rate - (8 * 0.04 + 0.1)) <= 0.02
    for text in ("one", "seven eight zero", "six six six six"):
        wave, rate = corpus.utter(say, text, "any", pace=0.065)
        assert len(wave) == round(0.065 * (len(text) + 1) * rate)
        start, end = corpus.speech_bounds(wave, rate)
        assert abs(start - corpus.MARGIN) <= 0.02 and abs(len(wave) / rate - end - corpus.MARGIN) <= 0.02
    with pytest.raises(UserError, match=r"cannot say 'one' in 20\.00 s; choose another --pace"):
        corpus.utter(say, "one", "any", pace=5.0)
    with pytest.raises(UserError, match="says nothing audible for ' '"):
        corpus.utter(say, " ", "any", pace=0)


def test_a_corpus_is_whole_readable_and_never_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(corpus.BACKENDS, "flite", say)
    monkeypatch.setattr(corpus, "check_backend", lambda *a: None)
    texts = corpus.draw_texts(["one", "two", "three"], 12, 2, 3, 0)
    counted: list[int] = []
    seconds = corpus.make(tmp_path / "c", texts, 3, ["x", "y"], format="opus", progress=counted.append)
    found, problems = read_source(tmp_path / "c")
    assert not problems and [u.text for u in found] == texts and counted == list(range(1, 13))
    assert [u.speaker for u in found] == ["x", "y"] * 6
    assert split_by_text(found, 0.0)[1].tolist() == [9, 10, 11]
    lengths = [len(load_audio(u.audio, 24000)) for u in found]
    assert lengths == [round(0.0615 * (len(u.text) + 1) * 24000) for u in found]
    assert seconds == pytest.approx(sum(lengths) / 24000)
    with pytest.raises(UserError, match=r"metadata\.csv exists"):
        corpus.make(tmp_path / "c", texts, 3, ["x"])
    with pytest.raises(UserError, match="leave none to train on"):
        corpus.make(tmp_path / "d", texts, 12, ["x"])
    with pytest.raises(UserError, match="--format='mp3'"):
        corpus.make(tmp_path / "d", texts, 0, ["x"], format="mp3")

    def fails(text: str, voice: str, stretch: float, out: Path) -> None:
        raise UserError("the voice is hoarse")

    monkeypatch.setitem(corpus.BACKENDS, "flite", fails)
    with pytest.raises(UserError, match="hoarse"):
        corpus.make(tmp_path / "d", texts, 0, ["x"])
    assert not (tmp_path / "d" / "metadata.csv").exists()


def test_missing_programs_are_named(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match="--backend='festival'"):
        corpus.check_backend("festival", ["x"])
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="flite is not installed: apt-get install flite"):
        corpus.check_backend("flite", ["slt"])


@needs_flite
def test_flite_speaks_at_the_pace(tmp_path: Path):
    corpus.check_backend("flite", ["slt", "rms"])
    with pytest.raises(UserError, match=r"flite has no voice 'nobody'; it has .*slt"):
        corpus.check_backend("flite", ["nobody"])
    wave, rate = corpus.utter(corpus.flite, "eight six", "slt", pace=0.065)
    assert len(wave) == round(0.65 * rate) and np.abs(wave).max() > 0.05


@needs_flite
@pytest.mark.slow
def test_the_command_makes_what_it_says(tmp_path: Path):
    command = [sys.executable, "-m", "launch.make_corpus", f"--out={tmp_path / 'c'}", "--count=4", "--held_out=1"]
    result = subprocess.run([*command, "--words=red,green", "--format=wav"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and "4 clips" in result.stdout, result.stderr
    assert len(list((tmp_path / "c" / "wavs").glob("slt-*.wav"))) == 4
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 2 and again.stderr.startswith("error: ") and "exists" in again.stderr
