"""Speech folders good and bad: every unusable entry is named, under either policy, and nothing is damaged."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from data import speech_builder
from data.audio import MelSpec, load_audio
from data.errors import UserError
from data.speech_builder import prepare
from data.speech_corpus import SpeechCorpus
from data.speech_source import Utterance, read_source, split_by_text
from tests.data.conftest import write_folder


def corpus(folder: Path, **options) -> SpeechCorpus:
    return SpeechCorpus(str(folder), MelSpec(), **options)


def test_ljspeech_layout_and_normalised_column(tmp_path: Path):
    write_folder(tmp_path, {"a": ("x", 0.5), "b": ("x", 0.5)})
    (tmp_path / "metadata.csv").write_bytes("\ufeffa|5 cats|five  cats\r\nb|plain|\r\n".encode())
    found, problems = read_source(tmp_path)
    assert [(u.id, u.text) for u in found] == [("a", "five cats"), ("b", "plain")] and not problems


def test_header_names_speaker_and_split(tmp_path: Path):
    write_folder(tmp_path, {"a": ("x", 0.5), "b": ("x", 0.5)})
    (tmp_path / "metadata.csv").write_text("id|text|speaker|split\na|one|kim|train\nb|two|lee|eval\n")
    found, _ = read_source(tmp_path)
    assert [(u.speaker, u.split) for u in found] == [("kim", "train"), ("lee", "eval")]
    (tmp_path / "metadata.csv").write_text("id|text|mood\na|one|glad\n")
    with pytest.raises(UserError, match=r"mood.*columns may be"):
        read_source(tmp_path)
    (tmp_path / "metadata.csv").write_text("id|text|split\na|one|test\n")
    with pytest.raises(UserError, match=r"line 2: split is 'test'"):
        read_source(tmp_path)


def test_manifest_and_every_format(tmp_path: Path):
    wave = 0.3 * np.sin(np.arange(24000) * 0.05)
    lines = ["audio_file|text"]
    for ending in ("wav", "flac", "ogg", "opus"):
        path = tmp_path / "sound" / f"clip-{ending}.{ending}"
        path.parent.mkdir(exist_ok=True)
        if ending == "opus":
            soundfile.write(path, wave, 24000, format="OGG", subtype="OPUS")
        else:
            soundfile.write(path, wave, 24000)
        lines.append(f"sound/{path.name}|say {ending}")
    lines.append(f"{tmp_path / 'sound' / 'clip-wav.wav'}|by its whole path")
    (tmp_path / "list.txt").write_text("\n".join(lines))
    made = corpus(tmp_path / "list.txt")
    assert [u.text for u in made.utterances][:4] == ["say wav", "say flac", "say ogg", "say opus"]
    assert made.utterances[0].id == "sound/clip-wav" and len(made.utterances) == 5
    assert all(made.wave(i).shape == (24000,) for i in range(4))


def test_held_out_list_column_or_hash(tmp_path: Path):
    write_folder(tmp_path, {"a": ("one", 0.5), "b": ("two", 0.5), "c": ("three", 0.5)})
    (tmp_path / "eval.txt").write_text("b\n")
    found, _ = read_source(tmp_path)
    train, held_out = split_by_text(found, 0.0)
    assert train.tolist() == [0, 2] and held_out.tolist() == [1]
    (tmp_path / "eval.txt").write_text("b\nzz\n")
    with pytest.raises(UserError, match="'zz' is not an id"):
        read_source(tmp_path)


def test_hashed_split_follows_the_text_only():
    people = [Utterance(f"{who}{i}", Path("x"), f"text {i}", who) for i in range(200) for who in "ab"]
    train, held_out = split_by_text(people, 0.2)
    texts = [{people[i].text for i in side} for side in (train, held_out)]
    assert not texts[0] & texts[1] and 20 < len(texts[1]) < 60
    half_train, half_out = split_by_text(people[::2], 0.2)
    assert {people[::2][i].text for i in half_out} == texts[1] and len(half_train) + len(half_out) == 200
    assert len(split_by_text(people[:4], 0.001)[1]) > 0  # never empty when asked for
    with pytest.raises(UserError, match="eval_fraction"):
        split_by_text(people, 1.0)
    with pytest.raises(UserError, match="none is left"):
        split_by_text([Utterance("a", Path("x"), "t", split="eval")], 0.1)


def test_no_table(tmp_path: Path):
    with pytest.raises(UserError, match=r"metadata\.csv: not found; expected a folder"):
        read_source(tmp_path)
    (tmp_path / "metadata.csv").write_text("a|b\n", encoding="utf-16")
    with pytest.raises(UserError, match="save it as UTF-8"):
        read_source(tmp_path)


BAD = {
    "missing": (b"gone|hello\n", r"1 missing audio \(gone\)"),
    "corrupt": (b"corrupt|hello\n", r"1 unusable audio \(.*corrupt\.wav: cannot be read as audio"),
    "empty": (b"silent|hello\n", r"1 unusable audio \(.*silent\.wav: the audio file holds no samples"),
    "no text": (b"good2|  \n", r"1 empty text \(good2\)"),
    "encoding": (b"good2|caf\xe9\n", r"1 not UTF-8 \(line 3\)"),
    "mojibake": ("good2|caf\ufffd\n".encode(), r"1 not UTF-8 \(line 3, which holds the replacement"),
    "fields": (b"good2\n", r"1 malformed \(line 3, which has 1 fields\)"),
    "twice": (b"good|again\n", r"1 second entry of the same id \(good at line 3\)"),
    "long": (b"long|hello\n", r"1 longer than data\.max_seconds=2 \(long has 2\.50 s\)"),
    "short": (b"short|hello\n", r"1 shorter than data\.min_seconds=0\.3 \(short has 0\.10 s\)"),
    "wordy": (b"good2|" + b"blah " * 30 + b"\n", r"1 with more symbols than frames \(good2: 149 symbols, 94 frames\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_is_an_error_or_a_report(tmp_path: Path, case: str):
    line, message = BAD[case]
    seconds = {"good": 1.0, "other": 0.8, "good2": 1.0, "long": 2.5, "short": 0.1}
    write_folder(tmp_path, {name: ("hello", s) for name, s in seconds.items()})
    (tmp_path / "wavs" / "corrupt.wav").write_bytes(b"RIFF then nonsense")
    soundfile.write(tmp_path / "wavs" / "silent.wav", np.zeros(0), 16000)
    (tmp_path / "metadata.csv").write_bytes(b"good|hello there\nother|hello\n" + line)
    before = (tmp_path / "metadata.csv").read_bytes()
    with pytest.raises(UserError, match=message) as error:
        corpus(tmp_path, max_seconds=2.0)
    assert "1 of 3 utterances cannot be used" in str(error.value) and "data.on_bad=skip" in str(error.value)
    made = corpus(tmp_path, max_seconds=2.0, on_bad="skip")
    assert [u.id for u in made.utterances] == ["good", "other"] and len(made.problems) == 1
    assert made.wave(1).shape == (19200,)  # failures do not shift the records behind them
    assert (tmp_path / "metadata.csv").read_bytes() == before


def test_unknown_symbols_are_named_with_their_utterance(tmp_path: Path):
    write_folder(tmp_path, {"a": ("hello", 1.0), "b": ("hеllo!", 1.0)})  # the second "е" is Cyrillic
    vocab = tmp_path / "vocab.txt"
    vocab.write_text(" \nh\ne\nl\no\n")
    with pytest.raises(UserError, match=r"1 with unknown symbols \(b: 'е' \(U\+0435 CYRILLIC SMALL LETTER IE\) '!'\)"):
        corpus(tmp_path, tokenizer="vocab", vocab=str(vocab))
    made = corpus(tmp_path, tokenizer="vocab", vocab=str(vocab), on_bad="skip")
    assert [u.id for u in made.utterances] == ["a"] and made.ids([0]) == [1, 2, 3, 3, 4]


def test_nothing_usable_and_unknown_policy(tmp_path: Path):
    write_folder(tmp_path, {"a": ("hello", 0.1)})
    with pytest.raises(UserError, match=r"no usable utterance; 1 shorter"):
        corpus(tmp_path, on_bad="skip")
    with pytest.raises(UserError, match="on_bad='ignore'"):
        corpus(tmp_path, on_bad="ignore")
    (tmp_path / "metadata.csv").write_text("")
    with pytest.raises(UserError, match="the table is empty"):
        corpus(tmp_path)


def test_preparation_is_cached_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write_folder(tmp_path / "speech", {"a": ("one", 0.5), "b": ("two", 0.6)})
    cache = tmp_path / "cache"
    found, _ = read_source(folder)
    store = prepare(found, 24000, cache)
    np.testing.assert_array_equal(store.wave(1), load_audio(found[1].audio, 24000))
    assert store.samples.tolist() == [12000, 14400]
    calls = []
    monkeypatch.setattr(speech_builder, "load_audio", lambda *a: calls.append(a) or load_audio(*a))
    assert prepare(found, 24000, cache).samples.tolist() == [12000, 14400] and not calls
    unchanged = prepare(found, 16000, cache)  # the files' own rate: kept as their 16-bit samples
    assert unchanged.samples.tolist() == [8000, 9600] and len(calls) == 2
    np.testing.assert_array_equal(unchanged.wave(1), load_audio(found[1].audio, 16000))
    # An interrupted preparation is made again, and a changed file is noticed.
    made = next(
        p for p in cache.iterdir() if (p / "index.json").is_file() and "24000" in (p / "index.json").read_text()
    )
    (made / "index.json").unlink()
    assert prepare(found, 24000, cache).wave(0).shape == (12000,) and len(calls) == 4
    os.utime(found[0].audio, ns=(1, 1))
    prepare(found, 24000, cache)
    assert len(calls) == 6


def test_an_unwritable_cache_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write_folder(tmp_path / "speech", {"a": ("one", 0.5)})
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MURMURATION_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="MURMURATION_CACHE"):
        prepare(read_source(folder)[0], 24000)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write_folder(tmp_path / "speech", {"a": ("one", 0.5)})
    found = read_source(folder)[0]

    def full(self) -> None:
        (tmp_path / "cache" / "speech" / speech_builder.fingerprint(found, 24000) / "half").mkdir(parents=True)
        raise RuntimeError("write() failed: No space left on device")

    monkeypatch.setenv("MURMURATION_CACHE", str(tmp_path / "cache"))
    with monkeypatch.context() as broken, pytest.raises(UserError, match=r"No space left on device.*free some space"):
        broken.setattr(speech_builder.SpeechFolder, "download_and_prepare", full)
        prepare(found, 24000)
    assert [p.suffix for p in (tmp_path / "cache" / "speech").iterdir()] == [".lock"]
    assert prepare(found, 24000).wave(0).shape == (12000,)


def test_the_prepared_folder_is_an_ordinary_tfds_data_set(speech_folder: Path):
    import tensorflow_datasets as tfds

    made = corpus(speech_folder)
    place = next(p for p in (speech_builder.cache_root() / "speech").rglob("features.json")).parent
    builder: Any = tfds.builder_from_directory(str(place))
    rows = builder.as_data_source(split="utterances")
    assert builder.info.features is not None and rows[0]["wave"].dtype == np.float32 and rows[0]["pcm"].size == 0
    assert len(made.utterances) == 40


def test_statistics_are_of_the_training_frames(speech_folder: Path):
    made = corpus(speech_folder, eval_fraction=0.2)
    frames = np.concatenate([made.mel(int(i)) for i in made.train])
    mean, std = made.statistics()
    np.testing.assert_allclose([mean, std], [frames.mean(dtype=np.float64), frames.std(dtype=np.float64)], rtol=1e-5)
