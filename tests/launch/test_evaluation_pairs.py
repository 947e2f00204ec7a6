"""Pairs: what is read, what is measured, and that the numbers move the way they should."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.audio import save_wav
from data.errors import UserError
from launch.evaluation import pairs
from launch.evaluation.pairs import Pair, aligned_distance, mel_statistics, read_pairs, similarity
from launch.plugins import plugin
from tests.launch.speech import make_clip, make_workdir

ROOT = Path(__file__).parents[2]
RATE = 24000


def hear(wave: np.ndarray, rate: int) -> str:
    """A recogniser for tests: loud waves say one thing, quiet ones another."""
    return "One two!" if np.abs(wave).mean() > 0.05 else "two two"


def voice(pitch: float, tilt: float, seconds: float = 1.0, seed: int = 0) -> np.ndarray:
    t = np.arange(int(seconds * RATE)) / RATE
    wave = sum(np.sin(2 * np.pi * pitch * k * t) * np.exp(-tilt * k) for k in range(1, 30))
    noise = np.random.default_rng(seed).normal(size=len(t)) * 0.01
    return (0.1 * wave * (1 + 0.3 * np.sin(20 * t)) + noise).astype(np.float32)


def test_lists_and_folders_are_read(tmp_path):
    lines = [{"text": "a", "ref_audio": "x.wav", "ref_text": "b", "truth": "sub/t.wav"}, {"generated": "g.wav"}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    first, second = read_pairs(tmp_path)
    assert first == Pair("0000", "a", tmp_path / "x.wav", "b", tmp_path / "sub/t.wav")
    assert second == Pair("0001", generated=tmp_path / "g.wav") and read_pairs(tmp_path / "pairs.jsonl") == [
        first,
        second,
    ]
    other = tmp_path / "other"
    for kind in ("generated", "truth"):
        save_wav(other / kind / "u1.wav", voice(100, 0.1), RATE)
    (other / "truth" / "u1.txt").write_text("one two\n")
    made, true = other / "generated" / "u1.wav", other / "truth" / "u1.wav"
    assert read_pairs(other) == [Pair("u1", "one two", truth=true, generated=made)]


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "line 1: not JSON"),
        ('{"text": 1}', "expected an object of strings"),
        ('{"text": "a", "voice": "x"}', "'voice' is not known"),
        ('{"truth": "a.wav"}', "a text to say, or a generated wave"),
        ('{"text": "a", "ref_audio": "x.wav"}', "come together"),
        ("", "holds no pairs"),
    ],
)
def test_bad_lists_are_named(tmp_path, content, message):
    (tmp_path / "pairs.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        read_pairs(tmp_path)
    with pytest.raises(UserError, match="no such file or folder"):
        read_pairs(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="the folders generated/ and truth/"):
        read_pairs(tmp_path / "empty")


def test_the_weak_embedding_tells_timbres_apart_and_not_levels():
    same = similarity(mel_statistics(voice(110, 0.1), RATE), mel_statistics(0.4 * voice(110, 0.1, seed=1), RATE))
    other = similarity(mel_statistics(voice(110, 0.1), RATE), mel_statistics(voice(230, 0.9), RATE))
    assert same > 0.95 > other


def test_alignment_forgives_pace_and_nothing_else():
    r = np.random.default_rng(0)
    a = np.cumsum(r.normal(size=(40, 6)), axis=0)
    assert aligned_distance(a, a) == 0.0 and aligned_distance(a, np.repeat(a, 3, axis=0)) == 0.0
    assert aligned_distance(a, a + 0.5) == pytest.approx(0.5, rel=0.2)
    b = np.cumsum(r.normal(size=(31, 6)), axis=0)
    assert aligned_distance(a, b) == pytest.approx(aligned_distance(b, a), rel=0.05)

    def slow(i: int, j: int) -> float:  # the definition, cell by cell
        best = np.full((i, j), np.inf)
        for x in range(i):
            for y in range(j):
                before = [best[x - dx, y - dy] for dx, dy in ((1, 1), (1, 0), (0, 1)) if x >= dx and y >= dy]
                best[x, y] = np.abs(a[x] - b[y]).mean() + (min(before) if before else 0.0)
        return best[-1, -1]

    assert slow(40, 31) / 71 <= aligned_distance(a, b) <= slow(40, 31) / 40


def test_error_rates_are_jiwers_and_ours():
    pytest.importorskip("jiwer")
    rates = pairs.error_rates(["One two, three.", "four"], ["one three", "Four!"])
    assert rates["wer"] == pytest.approx(1 / 4) and rates["words"] == 4 and 0 < rates["cer"] < 0.3
    assert rates["low"] <= rates["wer"] <= rates["high"]


def test_generated_waves_are_judged_without_a_model(tmp_path, capsys):
    pytest.importorskip("jiwer")
    for name, tilt in (("near", 0.12), ("far", 0.8)):
        save_wav(tmp_path / name / "generated" / "u.wav", voice(110, tilt), RATE)
        save_wav(tmp_path / name / "truth" / "u.wav", voice(110, 0.1), RATE)
        (tmp_path / name / "generated" / "u.txt").write_text("one two")
    near, far = (
        pairs.run(str(tmp_path / name), None, pairs.Options(), tmp_path / "out", transcribe=hear)["overall"]
        for name in ("near", "far")
    )
    assert near["mel_distance"] < far["mel_distance"] and near["stft_distance"] < far["stft_distance"]
    assert near["similarity"] > far["similarity"] and near["wer"] == 0.0
    assert json.loads((tmp_path / "out" / "pairs.json").read_text())["pairs"][0]["heard"]
    assert "weak embedding" in capsys.readouterr().out
    (tmp_path / "near" / "truth" / "u.wav").unlink()
    with pytest.raises(UserError, match="there is no u"):
        read_pairs(tmp_path / "near")


def test_plugins_are_found_or_named():
    assert plugin("tests.launch.test_evaluation_pairs:hear", "recogniser")(np.ones(9), 8000) == "One two!"
    for wrong, message in (
        ("json", "expected module:function"),
        ("nowhere_at_all:f", "No module"),
        ("json:f", "has no"),
    ):
        with pytest.raises(UserError, match=message):
            plugin(wrong, "recogniser")


@pytest.mark.slow
def test_a_model_is_judged_on_pairs(tmp_path):
    pytest.importorskip("jiwer")
    workdir, clip = make_workdir(tmp_path / "run"), make_clip(tmp_path / "ref.wav")
    shutil.copy(clip, tmp_path / "truth.wav")
    lines = [{"text": "ab cd", "ref_audio": "ref.wav", "ref_text": "ef gh", "truth": "truth.wav"}, {"text": "ef"}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    command = [sys.executable, "-m", "launch.run_eval", f"--workdir={workdir}", f"--pairs={tmp_path}", "--steps=2",
               "--recogniser=tests.launch.test_evaluation_pairs:hear"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for told in ("CPU cores", "WER", "CER", "speaker similarity", "STFT distance", "after a warm-up", "compiled in"):
        assert told in done.stdout, told
    report = json.loads((workdir / "eval" / "pairs.json").read_text())
    assert report["cost"]["rtf"] > 0 and report["cost"]["compile_seconds"] > 0 and len(report["pairs"]) == 2
    assert {p.name for p in (workdir / "eval").iterdir()} == {"pairs.json", "0000.wav", "0001.wav"}
