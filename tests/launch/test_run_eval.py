"""run_eval: which sentences are judged, what frames the result, and a report that appears."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.audio import save_wav
from data.errors import UserError
from launch.evaluation import speech
from launch.pipelines.speech import load
from launch.recogniser import Recogniser
from tests.launch.speech import make_workdir
from tests.train.speech import SPEC
from train.workdir import read_config

ROOT = Path(__file__).parents[2]
TRAINED = ["one two", "two three", "three one two"]
HELD_OUT = ["two one", "one two", "three two one", "two twrhn"]  # the second is in training, the last no word


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory) -> Path:
    """Noise bursts, one per word, with a split column."""
    folder, r = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    lines = ["id|text|split"]
    for i, text in enumerate([*TRAINED, *HELD_OUT]):
        burst = np.concatenate([r.normal(size=2400) * np.hanning(2400) for _ in text.split()])
        save_wav(folder / "wavs" / f"{i}.wav", 0.1 * burst, SPEC.sample_rate)
        lines.append(f"{i}|{text}|{'train' if i < len(TRAINED) else 'eval'}")
    (folder / "metadata.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, corpus_folder) -> Path:
    folder = make_workdir(tmp_path_factory.mktemp("run"), texts=TRAINED)
    config = json.loads((folder / "config.json").read_text())
    config["data"] |= {"dir": str(corpus_folder), "tokenizer": "char"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_only_new_sentences_of_known_words_are_judged(workdir):
    pytest.importorskip("pocketsphinx")
    voice = load(workdir)
    corpus = speech.corpus_of(read_config(workdir), voice)
    judge = Recogniser(["one", "two", "three", "twrhn"])
    cases = speech.held_out_cases(corpus, voice, judge, words=100)
    assert [case.text for case in cases] == ["two one", "three two one"]
    assert [case.prompt_text for case in cases] == ["three two one", "two one"], "another held-out utterance"
    assert len(speech.held_out_cases(corpus, voice, judge, words=1)) == 1
    with pytest.raises(UserError, match="no sentence to judge"):
        speech.held_out_cases(corpus, voice, Recogniser(["seven"]), words=100)


def test_chance_compares_with_another_sentence():
    said = [["one", "two"], ["one", "two"], ["three", "four"]]
    assert speech.chance(said, said).rate == 1.0
    assert speech.chance(said[:2], said[:2]).rate == 0.0, "nothing differs: nothing to shuffle"


def test_the_table_is_the_product_of_its_axes():
    cells = speech.settings(["steps", "grid", "cfg"])
    assert len(cells) == 24 and len({json.dumps(names) for names, _ in cells}) == 24
    assert cells[0] == (
        {"steps": "4", "grid": "sway", "cfg": "off"},
        {"steps": 4, "sway": -1.0, "pruned": False, "cfg_strength": 0.0},
    )
    assert speech.settings([]) == [({}, {})]
    with pytest.raises(UserError, match="--table=colour"):
        speech.settings(["colour"])


def evaluate(workdir: Path, *flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "launch.run_eval", f"--workdir={workdir}", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_a_report_appears(workdir):
    pytest.importorskip("pocketsphinx")
    done = evaluate(workdir, "--steps=2", "--table=cfg", "--wavs=1")
    assert done.returncode == 0, done.stderr
    report = json.loads((workdir / "eval" / "eval.json").read_text())
    assert report["texts"] == ["two one", "three two one"]
    assert [row["cfg"] for row in report["results"]] == ["off", "weak", "strong"]
    assert [row["network_calls"] for row in report["results"]] == [2, 4, 4]
    assert all(row["wer"]["words"] == 5 and row["rtf"] > 0 for row in report["results"])
    assert set(report["references"]) == {"original recordings", "vocoder on their true spectrograms"}
    assert {p.name for p in (workdir / "eval").iterdir()} == {"eval.json", "eval.png", "0.wav"}
    assert "twrhn" in done.stdout and done.stdout.count("WER") == 5


def test_an_empty_folder_is_one_line(tmp_path):
    done = evaluate(tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
