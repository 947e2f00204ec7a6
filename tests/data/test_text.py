"""Tokenizers and text chunks against the golden file; nothing is silently a space."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import UserError
from data.pinyin import pinyin_tokens, segment_ascii
from data.text import (
    Tokenizer,
    UnknownSymbols,
    make_tokenizer,
    pad_ids,
    read_vocab,
    script,
    script_report,
    tokenizer_from_texts,
)
from data.text_chunks import chunk_text, cut_text

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "f5_tts"


@pytest.fixture(scope="module")
def golden() -> dict:
    return json.loads((GOLDEN / "text.json").read_text(encoding="utf-8"))


def test_pinyin_tokens_are_the_references(golden: dict):
    pytest.importorskip("rjieba")
    pytest.importorskip("pypinyin")
    for case in golden["pinyin"]:
        assert pinyin_tokens(case["text"]) == case["tokens"]
    for case in golden["pinyin_polyphone_false"]:
        assert pinyin_tokens(case["text"], polyphone=False) == case["tokens"]


def test_ascii_pinyin_needs_no_extra_and_says_what_it_lacks(golden: dict, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "rjieba", None)
    monkeypatch.setitem(sys.modules, "pypinyin", None)
    for case in golden["pinyin"]:
        if case["text"].isascii():
            assert pinyin_tokens(case["text"]) == case["tokens"]
    with pytest.raises(UserError, match=r"rjieba and pypinyin for '好'.*pip install"):
        pinyin_tokens("ok 好")


@given(st.text(alphabet="ab1.-_%+#&cCAT \r\n'\"(", max_size=12))
@settings(deadline=None, max_examples=300)
def test_ascii_words_are_cut_where_jieba_cuts(text: str):
    rjieba = pytest.importorskip("rjieba")
    assert segment_ascii(text) == rjieba.cut(text)
    assert "".join(segment_ascii(text)) == text


def test_vocab_and_byte_ids_are_the_references(golden: dict):
    case = golden["vocab_tiny"]
    symbols = read_vocab(GOLDEN / "vocab_tiny.txt")
    assert len(symbols) == case["size"]
    table = {s: i for i, s in enumerate(symbols)}
    rows = [[table.get(s, 0) for s in sequence] for sequence in case["sequences"]]
    assert pad_ids(rows).tolist() == case["ids"]

    tokenizer = Tokenizer("pinyin", symbols, unknown="space")
    text = "Some call me nature, others call me mother nature."
    assert tokenizer.encode(text) == [i for i in case["ids"][0] if i >= 0]

    byte = Tokenizer("byte")
    assert byte.size == 256
    assert pad_ids([byte.encode(t) for t in golden["byte"]["texts"]]).tolist() == golden["byte"]["ids"]


def test_chunks_are_the_references(golden: dict):
    for case in golden["chunk_text"]:
        assert chunk_text(case["text"], case["max_chars"]) == case["chunks"]
    assert chunk_text("") == []


@given(st.text(alphabet="ab ,.!?。，é", max_size=60), st.integers(1, 40))
@settings(deadline=None)
def test_chunks_lose_nothing_but_blanks(text: str, limit: int):
    assert "".join("".join(chunk_text(text, limit)).split()) == "".join(text.split())


def test_a_missing_final_newline_does_not_eat_a_symbol(tmp_path: Path):
    path = tmp_path / "vocab.txt"
    path.write_bytes(b" \na\nb")
    assert read_vocab(path) == (" ", "a", "b")
    assert read_vocab(path, eat_last=True) == (" ", "a", "")
    path.write_bytes(" \r\na\r\n\u2028\r\n".encode())
    assert read_vocab(path) == (" ", "a", "\u2028")


def test_bad_vocabularies_are_explained(tmp_path: Path):
    path = tmp_path / "vocab.txt"
    with pytest.raises(UserError, match="no such vocabulary"):
        read_vocab(path)
    path.write_text("a\n \n")
    with pytest.raises(UserError, match="line 1 must be a single space"):
        read_vocab(path)
    path.write_text(" \na\nb\na\n")
    with pytest.raises(UserError, match=r"'a' stands on lines \[2, 4\]"):
        read_vocab(path)
    path.write_bytes(b" \n\xff\n")
    with pytest.raises(UserError, match="not UTF-8"):
        read_vocab(path)


def test_unknown_symbols_are_refused_by_name():
    tokenizer = tokenizer_from_texts("char", ["one two", "тхе"])
    assert tokenizer.symbols[0] == " "
    with pytest.raises(UnknownSymbols, match=r"'а' \(U\+0430 CYRILLIC SMALL LETTER A\)") as e:
        tokenizer.encode("two оnа3")
    assert e.value.symbols == ["о", "а", "3"]
    assert tokenizer.unknown_symbols("one") == []


def test_symbol_tables_come_from_the_data():
    lower = tokenizer_from_texts("char", ["seven nine"])
    assert lower.lowercase and lower.encode("Seven") == lower.encode("seven")
    mixed = tokenizer_from_texts("char", ["Seven nine"])
    assert not mixed.lowercase and mixed.unknown_symbols("S n") == [] and mixed.unknown_symbols("E") == ["E"]
    # An accent written as a second code point is the same symbol, and any white space is a space.
    accents = tokenizer_from_texts("char", ["né"])
    assert accents.encode("ne\u0301\u00a0\t") == [*accents.encode("né"), 0, 0]
    assert tokenizer_from_texts("char", ["b a", "a c"]) == tokenizer_from_texts("char", ["c a b"])


@given(st.lists(st.text(max_size=20), min_size=1, max_size=4), st.sampled_from(["char", "byte"]))
@settings(deadline=None, max_examples=40)
def test_every_text_of_the_data_can_be_encoded_and_tables_survive_saving(texts: list[str], kind: str):
    try:
        [t.encode() for t in texts]
    except UnicodeEncodeError:
        return  # lone surrogates are not text
    tokenizer = tokenizer_from_texts(kind, texts)
    again = Tokenizer.from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    for text in texts:
        ids = tokenizer.encode(text)
        assert ids == again.encode(text) and all(0 <= i < tokenizer.size for i in ids)


def test_tokenizers_are_chosen_saved_and_reused(tmp_path: Path):
    vocab = tmp_path / "vocab.txt"
    vocab.write_text(" \na\nb\n")
    made = make_tokenizer("vocab", str(vocab))
    assert made.encode("ab a") == [1, 2, 0, 1]
    made.save(tmp_path / "assets")
    assert Tokenizer.load(tmp_path / "assets") == made
    assert make_tokenizer("char", str(tmp_path / "assets" / "tokenizer.json"), ["xyz"]) == made
    with pytest.raises(UserError, match="expected one of"):
        make_tokenizer("words")
    with pytest.raises(UserError, match=r"data\.vocab"):
        make_tokenizer("vocab", "", ["a"])
    with pytest.raises(UserError, match="makes its own table"):
        make_tokenizer("char", str(vocab))
    (tmp_path / "assets" / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not a tokenizer file"):
        Tokenizer.load(tmp_path / "assets")


def test_scripts_are_reported():
    assert [script(c) for c in "aяあ漢3-"] == ["Latin", "Cyrillic", "Hiragana", "Cjk", "other", "other"]
    report = script_report(["cat", "cаt"])  # the second "а" is Cyrillic
    assert report == {"Latin": {"c": 2, "t": 2, "a": 1}, "Cyrillic": {"а": 1}}


@given(st.text(alphabet="ab c.,。你 ", min_size=1, max_size=200), st.integers(4, 40), st.none() | st.integers(3, 20))
@settings(deadline=None, max_examples=60)
def test_cut_texts_lose_nothing_and_keep_their_limit(text: str, limit: int, first: int | None):
    pieces = cut_text(text, limit, first)
    assert "".join("".join(pieces).split()) == "".join(text.split()), "only blanks may go"
    assert all(piece == piece.strip() and piece for piece in pieces)
    for piece in pieces:  # words are not broken, so one of them may pass the limit
        words = [len(word.encode()) for word in piece.split()]
        assert len(piece.encode()) <= 1.5 * limit + max(words)


def test_a_text_without_punctuation_is_cut_between_words():
    pieces = cut_text("one two three four five six seven eight nine ten", 12)
    assert " ".join(pieces) == "one two three four five six seven eight nine ten"
    assert 4 <= len(pieces) <= 6 and max(map(len, pieces)) - min(map(len, pieces)) <= 6
    assert cut_text("One. Two three. Four five six.", 100, first_bytes=4)[0] == "One."
    assert cut_text("  ", 10) == []
