"""SpeechData end to end on a small folder: what the batches hold, what is written, what is refused."""

from pathlib import Path

import numpy as np
import pytest

from data.audio import MelSpec, load_audio, load_mel, log_mel
from data.errors import UserError
from data.speech import SpeechData
from data.speech_source import CORPUS, read_source
from data.text import Tokenizer
from tests.data.conftest import write_folder

SMALL = {"n_mels": 20}


def make(folder: Path, **options) -> SpeechData:
    return SpeechData(str(folder), mel=SMALL, frames_per_batch=700, buckets=3, eval_fraction=0.2, **options)


def test_batches_hold_the_mel_and_the_text_of_their_utterances(speech_folder: Path):
    data = make(speech_folder)
    corpus, spec = data.corpus, MelSpec(n_mels=20)
    batch = data.train[5]
    bucket, examples = data.train.global_examples(5)
    for row, (example,) in enumerate(examples):
        utterance = corpus.utterances[corpus.train[example]]
        mel = log_mel(load_audio(utterance.audio, 24000), spec)
        frames = batch["mel_lengths"][row]
        assert frames == len(mel) and batch["mel"].shape == (bucket.rows, bucket.frames, 20)
        np.testing.assert_array_equal(batch["mel"][row, :frames], mel)
        assert (batch["mel"][row, frames:] == 0).all()
        ids = batch["text"][row]
        assert ids[ids >= 0].tolist() == corpus.tokenizer.encode(utterance.text)
        assert batch["mask"][row] == 1 and batch["index"][row] == row


@pytest.mark.parametrize("pairs", [False, True])
def test_shapes_are_announced_and_kept(speech_folder: Path, pairs: bool):
    data = make(speech_folder, pairs=pairs, row_multiple=2)
    announced = [{n: (s, np.dtype(d)) for n, (s, d) in shape.items()} for shape in data.shapes]
    assert len(announced) <= 3
    seen = set()
    for batch in [*(data.train[s] for s in range(60)), *data.evaluation]:
        shape = {n: (x.shape, x.dtype) for n, x in batch.items()}
        assert shape in announced and len(batch["mask"]) % 2 == 0
        assert batch["mel"].shape[0] * batch["mel"].shape[1] <= 700
        seen.add(announced.index(shape))
    assert seen == set(range(len(announced)))


@pytest.mark.parametrize("pairs", [False, True])
def test_two_hosts_see_halves_of_what_one_sees(speech_folder: Path, pairs: bool):
    whole = make(speech_folder, pairs=pairs, row_multiple=2, seed=3)
    halves = [make(speech_folder, pairs=pairs, row_multiple=2, seed=3, host_index=i, host_count=2) for i in range(2)]
    for get in (lambda d: d.train[0], lambda d: d.train[10**9], lambda d: d.evaluation[-1]):
        for name, value in get(whole).items():
            np.testing.assert_array_equal(np.concatenate([get(h)[name] for h in halves]), value)
    assert (
        make(speech_folder, pairs=pairs, row_multiple=2, seed=4).train[0]["mel"].tolist()
        != whole.train[0]["mel"].tolist()
    )


def test_pairs_are_two_utterances_one_after_the_other(speech_folder: Path):
    data = make(speech_folder, pairs=True, pair_seconds=2.0)
    corpus = data.corpus
    batch, (_, examples) = data.train[2], data.train.global_examples(2)
    assert all(len(e) == 2 for e in examples)
    for row, example in enumerate(examples):
        prompt, target = (int(corpus.train[i]) for i in example)
        mel = np.concatenate([corpus.mel(prompt), corpus.mel(target)])
        assert batch["mel_lengths"][row] == len(mel) <= corpus.spec.frames(2 * 24000) + 8
        np.testing.assert_array_equal(batch["mel"][row, : len(mel)], mel)
        text = f"{corpus.utterances[prompt].text} {corpus.utterances[target].text}"
        ids = batch["text"][row]
        assert ids[ids >= 0].tolist() == corpus.tokenizer.encode(text)


@pytest.mark.parametrize("pairs", [False, True])
def test_held_out_utterances_are_evaluated_once_and_never_trained_on(speech_folder: Path, pairs: bool):
    data = make(speech_folder, pairs=pairs)
    texts = {u.text for i, u in enumerate(data.corpus.utterances) if i in data.corpus.held_out}
    trained = {data.corpus.utterances[i].text for i in data.corpus.train}
    assert texts and not texts & trained
    assert sum(b["mask"].sum() for b in data.evaluation) == len(data.corpus.held_out)


def test_assets_are_written_and_the_same_every_time(speech_folder: Path, tmp_path: Path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        data = make(speech_folder)
        data.train[3]  # what was read before must not matter
        data.write_assets(str(folder))
    assert Tokenizer.load(folders[0]) == data.corpus.tokenizer
    spec, mean, std = load_mel(folders[0])
    assert spec == MelSpec(n_mels=20) and -12 < mean < 3 and 0.5 < std < 5
    assert [p.read_bytes() for p in sorted(folders[0].iterdir())] == [
        p.read_bytes() for p in sorted(folders[1].iterdir())
    ]
    kept = make(speech_folder, vocab=str(folders[0] / "tokenizer.json"))
    assert kept.corpus.tokenizer == data.corpus.tokenizer
    (tmp_path / "vocab.txt").write_text(" \n" + "\n".join("abcdefghijklmnopqrstuvwxyz"))
    make(speech_folder, tokenizer="vocab", vocab=str(tmp_path / "vocab.txt")).write_assets(str(folders[0]))
    assert (folders[0] / "vocab.txt").exists()


def test_the_report_says_what_there_is(speech_folder: Path, tmp_path: Path):
    data = make(speech_folder)
    text = str(data.report)
    assert f"{len(data.corpus.train)} utterances" in text and "padding" in text and "left out" not in text
    assert 0 < data.report.padding < 0.35  # one shape of 136 frames would waste more
    mixed = {"a": ("plain words", 1.0), "b": ("plаin", 1.0), "c": ("words", 0.1)}  # b has a Cyrillic letter
    write_folder(tmp_path, mixed)
    text = str(make(tmp_path, on_bad="skip").report)
    assert "look-alikes: а" in text and "left out 1 shorter than data.min_seconds" in text


def test_more_buckets_pad_less(speech_folder: Path):
    one = SpeechData(str(speech_folder), mel=SMALL, frames_per_batch=700, buckets=1, eval_fraction=0.2)
    assert make(speech_folder).report.padding < one.report.padding


def test_a_small_set_is_one_batch(tmp_path: Path):
    write_folder(tmp_path, {f"u{i}": (f"text {i}", 0.5) for i in range(8)})
    data = SpeechData(str(tmp_path), mel=SMALL, eval_fraction=0.0, frames_per_batch=100_000, row_multiple=4)
    assert data.train[0]["mel"].shape[0] == 8 and data.evaluation == [] and data.report.steps_per_pass == 1


def test_settings_that_cannot_work_are_refused(speech_folder: Path):
    with pytest.raises(UserError, match=r"holds 0 examples.*frames_per_batch"):
        SpeechData(str(speech_folder), frames_per_batch=50)
    with pytest.raises(UserError, match=r"data\.mel\.hops is not a key"):
        SpeechData(str(speech_folder), mel={"hops": 1})


def test_the_shipped_corpus_is_small_whole_and_split():
    found, problems = read_source("")
    assert not problems and len(found) == 1240 and len({u.text for u in found}) == 1240
    assert sum(u.split == "eval" for u in found) == 40
    assert sum(p.stat().st_size for p in CORPUS.rglob("*")) < 5e6
    assert {w for u in found for w in u.text.rstrip(".").split()} == {
        "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"
    }  # fmt: skip
    for u in (found[0], found[-1]):
        wave = load_audio(u.audio, 24000)
        assert len(wave) == round(0.0615 * 24000 * (len(u.text) + 1)) and 0.05 < np.abs(wave).max() <= 1.0
